-- swapped_ns: time in which the request's pages were in the swap space; one of the parts that sum to total_ns.
ALTER TABLE requests ADD COLUMN swapped_ns INTEGER NOT NULL DEFAULT 0;
