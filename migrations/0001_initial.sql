-- Times: *_at are Unix seconds, ts are Unix milliseconds, *_ns are nanoseconds of durations.

-- One row a request, written before the client is answered. The five parts of its time sum to total_ns.
-- An id alone is no key: a client may use one again.
CREATE TABLE requests (
  id TEXT NOT NULL,
  user TEXT NOT NULL,
  model TEXT NOT NULL,
  state TEXT NOT NULL,
  nice INTEGER NOT NULL,
  n INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  max_tokens INTEGER NOT NULL,
  created_at REAL NOT NULL,
  ended_at REAL,
  queued_ns INTEGER NOT NULL,
  prefill_ns INTEGER NOT NULL,
  decode_ns INTEGER NOT NULL,
  preempted_ns INTEGER NOT NULL,
  other_ns INTEGER NOT NULL,
  total_ns INTEGER NOT NULL,
  ttft_ns INTEGER,
  preemptions INTEGER NOT NULL,
  finish TEXT,
  error TEXT,
  label TEXT NOT NULL,
  PRIMARY KEY (id, created_at)
) STRICT;
CREATE INDEX requests_created ON requests (created_at);
CREATE INDEX requests_ended ON requests (ended_at);

-- Whole Frames for replay; thinned with age.
CREATE TABLE frames (
  ts INTEGER PRIMARY KEY,
  seq INTEGER NOT NULL,
  running INTEGER NOT NULL,
  waiting INTEGER NOT NULL,
  payload TEXT NOT NULL
) STRICT;

-- One gauge at one moment. (ts, series) order: a second's samples share a page, so that the write-ahead log stays small.
CREATE TABLE samples (
  ts INTEGER NOT NULL,
  series TEXT NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (ts, series)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  severity TEXT NOT NULL,
  kind TEXT NOT NULL,
  request TEXT,
  text TEXT NOT NULL
) STRICT;
CREATE INDEX events_at ON events (at);

-- One row a daemon's life. A row without stopped_at is the running daemon's, or one that was killed: seen_at says when.
CREATE TABLE runs (
  id INTEGER PRIMARY KEY,
  pid INTEGER NOT NULL,
  started_at REAL NOT NULL,
  seen_at REAL NOT NULL,
  stopped_at REAL
) STRICT;

-- Times of which nothing is known, and why.
CREATE TABLE gaps (
  from_at REAL NOT NULL,
  to_at REAL NOT NULL,
  why TEXT NOT NULL
) STRICT;
