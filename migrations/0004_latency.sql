-- queued_ns by reason, and parts of other_ns. What swapped_ns counts is a part of other_ns too from here on, so that
-- queued_ns + prefill_ns + decode_ns + preempted_ns + other_ns = total_ns.
UPDATE requests SET other_ns = other_ns + swapped_ns;
ALTER TABLE requests ADD COLUMN queued_slots_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN queued_pages_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN queued_quota_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN queued_policy_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN queued_model_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN queued_step_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN tokenise_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN suspended_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN paused_ns INTEGER NOT NULL DEFAULT 0;
-- [[state, nanoseconds after arrival], …] as JSON: when each state began, at most 64 of them.
ALTER TABLE requests ADD COLUMN timeline TEXT NOT NULL DEFAULT '[]';
