"""The tables of the registry. A script is never edited once it was released; add another."""

from typing import Final

_FIRST: Final = """
-- A candidate was published and has not been taken by a name yet: it is not collected.
CREATE TABLE version (
  digest TEXT PRIMARY KEY CHECK (length(digest) = 64),
  source TEXT NOT NULL,
  parents TEXT NOT NULL,
  metrics TEXT NOT NULL,
  num_bytes INTEGER NOT NULL,
  rank INTEGER NOT NULL,
  base TEXT NOT NULL,
  created INTEGER NOT NULL,
  is_candidate INTEGER NOT NULL DEFAULT 1
) STRICT;

-- Outlives names and versions, and numbers every event.
CREATE TABLE history (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL,
  action TEXT NOT NULL,
  time INTEGER NOT NULL,
  from_digest TEXT,
  to_digest TEXT,
  weight REAL
) STRICT;
CREATE INDEX history_by_name ON history (name, id);

CREATE TABLE name (
  name TEXT PRIMARY KEY,
  digest TEXT NOT NULL REFERENCES version,
  created INTEGER NOT NULL,
  updated INTEGER NOT NULL,
  is_pinned INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What a name can go to at once. `touched` and `activated` are ids of events; the activated ones
-- form the stack that a rollback walks down, and those it left behind are NULL again.
CREATE TABLE kept (
  name TEXT NOT NULL REFERENCES name ON DELETE CASCADE,
  digest TEXT NOT NULL REFERENCES version,
  touched INTEGER NOT NULL,
  activated INTEGER,
  PRIMARY KEY (name, digest)
) STRICT;
CREATE INDEX kept_by_digest ON kept (digest);

CREATE TABLE canary (
  name TEXT PRIMARY KEY REFERENCES name ON DELETE CASCADE,
  id INTEGER NOT NULL,
  digest TEXT NOT NULL REFERENCES version,
  weight REAL NOT NULL CHECK (weight > 0 AND weight <= 1)
) STRICT
"""

_SECOND: Final = """
-- Answers to requests that carried an Idempotency-Key; no answer yet while the request runs, or
-- after a crash in the middle of it.
CREATE TABLE answer (
  key TEXT PRIMARY KEY,
  fingerprint TEXT NOT NULL,
  status INTEGER,
  body BLOB,
  created INTEGER NOT NULL
) STRICT
"""

_THIRD: Final = """
-- A JSON list: what a version has beside LoRA on the decoder's linears, which was all before.
ALTER TABLE version ADD COLUMN features TEXT NOT NULL DEFAULT '[]'
"""

_FOURTH: Final = """
-- Files that clients uploaded, or that jobs made for them; `number` is the order of arrival.
CREATE TABLE file (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  filename TEXT NOT NULL,
  purpose TEXT NOT NULL,
  num_bytes INTEGER NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER,
  status TEXT NOT NULL CHECK (status IN ('uploaded', 'processed', 'error')),
  details TEXT
) STRICT
"""

_FIFTH: Final = """
-- Training jobs. `wish` is what was asked for, `settings` what `auto` became; both are JSON, as
-- are `verdict` and `error`. `start` is the version to go on from. A sealed job passed its gate
-- and only has to be published: it cannot be cancelled any more.
CREATE TABLE job (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL CHECK (
    status IN ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled')
  ),
  wish TEXT NOT NULL,
  name TEXT NOT NULL,
  start TEXT,
  settings TEXT,
  is_paused INTEGER NOT NULL DEFAULT 0,
  is_sealed INTEGER NOT NULL DEFAULT 0,
  step INTEGER NOT NULL DEFAULT 0,
  num_steps INTEGER,
  trained_tokens INTEGER,
  digest TEXT,
  verdict TEXT,
  error TEXT,
  created INTEGER NOT NULL,
  started INTEGER,
  finished INTEGER
) STRICT;

CREATE TABLE job_event (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
  created INTEGER NOT NULL,
  level TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
  kind TEXT NOT NULL CHECK (kind IN ('message', 'metrics')),
  message TEXT NOT NULL,
  data TEXT
) STRICT;
CREATE INDEX job_event_by_job ON job_event (job, number);

CREATE TABLE job_checkpoint (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
  step INTEGER NOT NULL,
  name TEXT NOT NULL,
  metrics TEXT NOT NULL,
  is_best INTEGER NOT NULL,
  created INTEGER NOT NULL,
  UNIQUE (job, step)
) STRICT
"""

_SIXTH: Final = """
-- How an adapter learns from its users; `policy` is JSON. It goes with the name, and takes all that
-- was kept for it along.
CREATE TABLE learning (
  adapter TEXT PRIMARY KEY REFERENCES name (name) ON DELETE CASCADE,
  policy TEXT NOT NULL,
  is_keeping INTEGER NOT NULL,
  updated INTEGER NOT NULL
) STRICT;

-- Answers of adapters that opted in; `prompt` is JSON, a text or a list of messages. `id` is that
-- of the HTTP answer, which may have several choices.
CREATE TABLE completion (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL,
  choice INTEGER NOT NULL,
  adapter TEXT NOT NULL REFERENCES learning ON DELETE CASCADE,
  digest TEXT NOT NULL,
  tenant TEXT NOT NULL,
  user TEXT,
  prompt TEXT NOT NULL,
  answer TEXT NOT NULL,
  is_cut INTEGER NOT NULL,
  created INTEGER NOT NULL,
  UNIQUE (id, choice)
) STRICT;
CREATE INDEX completion_by_adapter ON completion (adapter, number);
CREATE INDEX completion_by_user ON completion (user);

-- A run of the loop: the job that learns from `feedback.run`, and what became of its version.
-- `traffic` and `verdict` are JSON.
CREATE TABLE learning_run (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  adapter TEXT NOT NULL REFERENCES learning ON DELETE CASCADE,
  status TEXT NOT NULL CHECK (status IN (
    'collecting', 'training', 'canary',
    'promoted', 'rolled_back', 'refused', 'failed', 'cancelled', 'superseded'
  )),
  num_rows INTEGER NOT NULL,
  file TEXT,
  job TEXT,
  start TEXT,
  digest TEXT,
  traffic TEXT,
  verdict TEXT,
  reason TEXT,
  created INTEGER NOT NULL,
  watched INTEGER,
  finished INTEGER
) STRICT;
CREATE UNIQUE INDEX learning_run_open ON learning_run (adapter) WHERE finished IS NULL;

-- `value` is up, down, or the text that should have been served. A run takes a row once.
CREATE TABLE feedback (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  completion INTEGER NOT NULL REFERENCES completion (number) ON DELETE CASCADE,
  kind TEXT NOT NULL CHECK (kind IN ('rating', 'edit', 'preferred')),
  value TEXT NOT NULL,
  run TEXT REFERENCES learning_run (id) ON DELETE SET NULL,
  created INTEGER NOT NULL,
  UNIQUE (completion, kind)
) STRICT;
CREATE INDEX feedback_by_run ON feedback (run);

-- What an automatic change rests on, as JSON.
ALTER TABLE history ADD COLUMN evidence TEXT;

-- Files that the server made for itself are not listed.
ALTER TABLE file ADD COLUMN is_internal INTEGER NOT NULL DEFAULT 0
"""

_SEVENTH: Final = """
CREATE TABLE batch (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  endpoint TEXT NOT NULL,
  input_file TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'validating' CHECK (status IN
    ('validating', 'in_progress', 'cancelling', 'completed', 'failed', 'cancelled', 'expired')),
  metadata TEXT NOT NULL,
  total INTEGER NOT NULL DEFAULT 0,
  answered INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0,
  output_file TEXT,
  error_file TEXT,
  errors TEXT,
  created INTEGER NOT NULL,
  started INTEGER,
  finished INTEGER,
  expires INTEGER NOT NULL
) STRICT;

CREATE TABLE batch_result (
  batch TEXT NOT NULL REFERENCES batch (id) ON DELETE CASCADE,
  line INTEGER NOT NULL,
  is_error INTEGER NOT NULL,
  result TEXT NOT NULL,
  PRIMARY KEY (batch, line)
) STRICT
"""

_EIGHTH: Final = """
-- API keys: `hash` is SHA-256 of the whole key, `scopes` and `limits` are JSON. A revoked key
-- stays, so that a server whose keys are all revoked does not turn into one without keys.
CREATE TABLE api_key (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  hash TEXT NOT NULL CHECK (length(hash) = 64),
  tenant TEXT NOT NULL,
  scopes TEXT NOT NULL,
  limits TEXT NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER,
  revoked INTEGER
) STRICT
"""

_NINTH: Final = """
-- Whose it is; empty is shared, as everything was before.
ALTER TABLE name ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE history ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE file ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE job ADD COLUMN tenant TEXT NOT NULL DEFAULT ''
"""

_TENTH: Final = """
-- Rows that an adapter was taught and repeats: its reservoir. `key` is a digest of the question,
-- `feedback` what the row was made of, `fields` JSON. A stratum is a pair of source and task.
CREATE TABLE replay_row (
  adapter TEXT NOT NULL REFERENCES learning ON DELETE CASCADE,
  source TEXT NOT NULL,
  task TEXT NOT NULL,
  key TEXT NOT NULL,
  feedback TEXT NOT NULL,
  tenant TEXT NOT NULL,
  user TEXT,
  created INTEGER NOT NULL,
  fields TEXT NOT NULL,
  PRIMARY KEY (adapter, source, task, key)
) STRICT;
CREATE INDEX replay_row_by_feedback ON replay_row (feedback);
CREATE INDEX replay_row_by_user ON replay_row (user);

CREATE TABLE replay_threshold (
  adapter TEXT NOT NULL REFERENCES learning ON DELETE CASCADE,
  source TEXT NOT NULL,
  task TEXT NOT NULL,
  threshold INTEGER NOT NULL,
  PRIMARY KEY (adapter, source, task)
) STRICT;

-- What is repeated has settings in every policy.
UPDATE learning SET policy = json_set(policy, '$.replay', json('{}'))
  WHERE policy ->> '$.replay' IS NULL
"""

_ELEVENTH: Final = """
-- Whose a batch is, and the id of the key that answers for its lines; empty without keys.
ALTER TABLE batch ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE batch ADD COLUMN key TEXT NOT NULL DEFAULT ''
"""

MIGRATIONS: Final = (
    *(_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH),
    *(_SIXTH, _SEVENTH, _EIGHTH, _NINTH, _TENTH),
    _ELEVENTH,
)
