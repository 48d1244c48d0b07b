-- Batch jobs. `record` is the object that the API shows, as JSON; a file's contents lie in the directory `files`.
CREATE TABLE files (
  id TEXT PRIMARY KEY,
  user TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  record BLOB NOT NULL
) STRICT;

CREATE TABLE batches (
  id TEXT PRIMARY KEY,
  user TEXT NOT NULL,
  status TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  record BLOB NOT NULL
) STRICT;

-- What came of one line of a batch that is not finished, as it will stand in its output or error file.
CREATE TABLE batch_results (
  batch TEXT NOT NULL,
  line INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  record BLOB NOT NULL,
  PRIMARY KEY (batch, line)
) STRICT;
