"""Tables of the ledger.

What belongs here: the tables, and whether a database has them. Losing the ledger loses work, never data: every row can be made
again from the directory, the lake and the sinks' snapshots.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    inspect,
)

metadata = MetaData()

exports = Table(
    "indexport_exports",
    metadata,
    Column("export", String, primary_key=True),
    Column("tenant_id", String),
    Column("export_config_id", String),
    Column("index_status", String),
    Column("index_error", Text),
    Column("change_key", String),
    Column("listing_id", Integer, nullable=False, default=0),
    Column("listed_at", Float),
    Column("complete_at", Float),
    Column("refetch_cursor", String),
    Column("sync_requested_at", Float),
    Column("allowed_deletes", Integer, nullable=False, default=0),
)
"""One row an export. Times are Unix seconds. ``listed_at`` is the watermark of incremental listings, ``complete_at`` when
the last complete listing of a settled index ended, ``allowed_deletes`` what a person approved beyond the fuse."""

files = Table(
    "indexport_files",
    metadata,
    Column("export", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("storage_id", String),
    Column("metadata", Text, nullable=False, default="{}"),
    Column("updated_at", Float),
    Column("change_token", Text, nullable=False),
    Column("listing_id", Integer, nullable=False, default=0),
    Column("missing_since", Float),
    Column("status", String, nullable=False),
    Column("wave", String),
    Column("run_id", String),
    Column("lease_until", Float),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_retry_at", Float),
    Column("last_error", Text),
    Column("fetched_token", Text),
    Column("payload_digest", String),
    Column("text_digest", String),
    Column("provenance", Text),
    Column("chunks_key", String),
    Column("vectors_key", String),
    Column("records_key", String),
    Column("record_set_hash", String),
    Column("settings_digest", String),
    Column("chunk_count", Integer),
    Column("token_count", BigInteger),
    Column("refetch", Boolean, nullable=False, default=False),
    PrimaryKeyConstraint("export", "file_id"),
)
"""One row a file. ``*_key`` columns digest what a stage's output was made from: equal key = nothing to do."""

file_sinks = Table(
    "indexport_file_sinks",
    metadata,
    Column("export", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("sink", String, nullable=False),
    Column("record_set_hash", String),
    Column("model", String),
    Column("updated_at", Float, nullable=False),
    PrimaryKeyConstraint("export", "sink", "file_id"),
    Index("indexport_file_sinks_by_file", "export", "file_id"),
)
"""Which record set of a file each sink holds; ``model`` is the slug of the model of its vectors."""

refusals = Table(
    "indexport_refusals",
    metadata,
    Column("export", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("sink", String, nullable=False),
    Column("record_set_hash", String, nullable=False),
    PrimaryKeyConstraint("export", "file_id", "sink"),
)
"""Which record set of a file a sink refused last: while the file fails, it goes to the other sinks alone."""

sinks = Table(
    "indexport_sinks",
    metadata,
    Column("export", String, nullable=False),
    Column("sink", String, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("down_until", Float),
    Column("last_error", Text),
    PrimaryKeyConstraint("export", "sink"),
)

collections = Table(
    "indexport_collections",
    metadata,
    Column("export", String, nullable=False),
    Column("sink", String, nullable=False),
    Column("slug", String, nullable=False),
    Column("model", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("dimension", Integer, nullable=False),
    Column("settings", Text, nullable=False),
    PrimaryKeyConstraint("export", "sink", "slug"),
)
"""Where records were ever written: one row a sink and model, with the sink's settings (never secrets) as JSON, so that an
old model's collection or a sink that has left the export's YAML can still be emptied."""

former_scopes = Table(
    "indexport_former_scopes",
    metadata,
    Column("export", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("export_config_id", String, nullable=False),
    PrimaryKeyConstraint("export", "tenant_id", "export_config_id"),
)
"""Under which ids an export wrote before its index was made anew: what it wrote under them must leave the sinks too."""

tombstones = Table(
    "indexport_tombstones",
    metadata,
    Column("export", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("erased_at", Float, nullable=False),
    Column("proved_at", Float),
    PrimaryKeyConstraint("export", "file_id"),
)
"""Erased files: a listing never brings them back. The lake holds a copy, in case the ledger is lost."""

vectors = Table(
    "indexport_vectors",
    metadata,
    Column("export", String, nullable=False),
    Column("model", String, nullable=False),
    Column("digest", LargeBinary(16), nullable=False),
    Column("file_id", String, nullable=False),
    PrimaryKeyConstraint("export", "model", "digest", "file_id"),
    Index("indexport_vectors_by_file", "export", "file_id"),
    sqlite_with_rowid=False,
)
"""Which partitions of the lake hold the vector of an embedding text (16 bytes of its SHA-256) under a model; ``model`` is its
slug."""

vector_claims = Table(
    "indexport_vector_claims",
    metadata,
    Column("export", String, nullable=False),
    Column("model", String, nullable=False),
    Column("digest", LargeBinary(16), nullable=False),
    Column("run_id", String, nullable=False),
    Column("claimed_until", Float, nullable=False),
    PrimaryKeyConstraint("export", "model", "digest"),
    sqlite_with_rowid=False,
)
"""Texts a run is embedding now, so that no other run embeds them too; ``model`` is the model's slug."""

history = Table(
    "indexport_history",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("export", String, nullable=False),
    Column("file_id", String, nullable=False),
    Column("at", Float, nullable=False),
    Column("event", String, nullable=False),
    Column("run_id", String),
    Column("details", Text, nullable=False, default="{}"),
    Index("indexport_history_by_file", "export", "file_id", "id"),
    Index("indexport_history_by_event", "export", "event", "at"),
)
"""Append-only, but for the reasons of failures of an erased file: who did what to a file, when, from which payload, with which
model, in which run."""


def is_made(engine: Engine) -> bool:
    """Whether the database has every table and, also on the tables of an earlier version, every index."""
    there = inspect(engine).get_multi_indexes(filter_names=list(metadata.tables))
    names = {index["name"] for of_table in there.values() for index in of_table}
    return len(there) == len(metadata.tables) and names >= {index.name for index in _indexes()}


def make(connection: Connection) -> None:
    """Make what is missing."""
    metadata.create_all(connection)
    for index in _indexes():
        index.create(connection, checkfirst=True)


def _indexes() -> list[Index]:
    return [index for table in metadata.sorted_tables for index in table.indexes]
