-- page_ns: the integral over time of the pages that the request held, page·nanoseconds.
ALTER TABLE requests ADD COLUMN page_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN reused_tokens INTEGER NOT NULL DEFAULT 0;
