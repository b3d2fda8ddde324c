"""Reads and writes of the ledger for one export.

What belongs here: SQL, in bulk, one transaction a call. What to do with the rows is the business of ``stages.needs``.
All calls block; async callers use threads.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from pipeline.ledger import schema
from pipeline.ledger.asker import asked_by
from pipeline.ledger.engine import open_engine
from pipeline.ledger.failures import forget_reasons, own_failures
from pipeline.ledger.models import FAILING, LEAVING, ExportState, FileRow, HistoryEvent, SinkCollection, SinkState
from pipeline.ledger.register import Register, entombed, is_in_use
from pipeline.ledger.sql import batches, by_sink, delete_of_files, rows_of, upsert, writing
from pipeline.ledger.vectors import VectorIndex
from pipeline.llama_cloud.models import DirectoryFile

_FILE_COLUMNS = [schema.files.c[name] for name in FileRow.__dataclass_fields__]
_STATE_COLUMNS = [schema.exports.c[name] for name in ExportState.__dataclass_fields__]
_MADE = "fetched_token payload_digest text_digest provenance chunks_key vectors_key records_key record_set_hash"
_UNMADE: dict[str, None] = dict.fromkeys(_MADE.split())
"""The columns of a file of which nothing is made, or nothing is left."""


class Ledger:
    """The ledger of one export at a SQLAlchemy URL; creates its tables on first use.

    Safe for several processes: every write is one transaction, made in turn; SQLite runs in WAL mode with a busy timeout.
    """

    def __init__(self, url: str, export: str, *, clock: Callable[[], float] = time.time) -> None:
        self.export = export
        self._clock = clock
        self._engine = open_engine(url)
        # At the latest with the process: SQLite moves its log into the file when the last connection is closed.
        weakref.finalize(self, self._engine.dispose)
        if not schema.is_made(self._engine):
            with writing(self._engine, "tables") as connection:
                schema.make(connection)
        self.register = Register(self._engine, export, clock)
        self.vectors = VectorIndex(self._engine, export, clock)

    def close(self) -> None:
        self._engine.dispose()

    def state(self) -> ExportState:
        """The export's own row; defaults when there is none yet."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(*_STATE_COLUMNS).where(schema.exports.c.export == self.export)).one_or_none()
        return ExportState(*row) if row else ExportState()

    def update_state(self, **values: Any) -> None:
        """Set columns of the export's own row."""
        with writing(self._engine, self.export) as connection:
            upsert(connection, schema.exports, [{"export": self.export, **values}])

    def files(self, file_ids: Collection[str] | None = None, *, failing: bool = False) -> dict[str, FileRow]:
        """Rows by file id, all of them or those named (unknown ids are absent), in file id order. ``failing``: only those of
        the directory's whose last attempt has failed, also while they are tried again."""
        c = schema.files.c
        query = sa.select(*_FILE_COLUMNS).where(c.export == self.export).order_by(c.file_id)
        if failing:
            query = query.where(c.attempts > 0, c.missing_since.is_(None), c.status.not_in(LEAVING))
        named = None if file_ids is None else sorted(set(file_ids))
        with self._engine.connect() as connection:
            return {row[0]: FileRow(*row) for row in rows_of(connection, query, c.file_id, named)}

    def count_files(self) -> int:
        """How many files are known."""
        query = sa.select(sa.func.count()).select_from(schema.files).where(schema.files.c.export == self.export)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def missing_since(self) -> set[float]:
        """When files went missing that nobody is removing yet."""
        c = schema.files.c
        query = sa.select(c.missing_since).where(c.export == self.export, c.missing_since.is_not(None), c.status.not_in(LEAVING))
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def begin_listing(self) -> int:
        """The number of a new listing, above those of all others, also of those still under way."""
        with writing(self._engine, self.export) as connection:
            mine = schema.exports.c.export == self.export
            last = connection.execute(sa.select(schema.exports.c.listing_id).where(mine)).scalar_one_or_none() or 0
            upsert(connection, schema.exports, [{"export": self.export, "listing_id": last + 1}])
        return int(last) + 1

    def record_listing(self, listed: Iterable[DirectoryFile], listing_id: int) -> tuple[int, int]:
        """Take in a page of a listing; answers (new, changed). A changed file is no longer failed or parked; one whose metadata
        has moved alone is marked for another fetch, as its token does not say so; an erased one stays out. What a later listing
        has seen keeps that one's number: of two at once neither takes a file from the other."""
        now = self._clock()
        c = schema.files.c
        by_id = {file.id: file for file in listed}
        new: dict[str, dict[str, Any]] = {}
        changed: dict[str, dict[str, Any]] = {}
        seen: list[str] = []
        with writing(self._engine, self.export) as connection:
            for file_id in entombed(connection, self.export, list(by_id)):
                del by_id[file_id]
            known = self._known(connection, list(by_id))
            for file in by_id.values():
                token, status, seen_by, metadata = known.get(file.id, (None, None, listing_id, None))
                values = {
                    "export": self.export,
                    "file_id": file.id,
                    "display_name": file.display_name,
                    "storage_id": file.file_id,
                    "metadata": json.dumps(file.metadata, sort_keys=True),
                    "updated_at": file.updated_at.timestamp() if file.updated_at else None,
                    "change_token": file.change_token,
                    "listing_id": max(listing_id, seen_by),
                    "missing_since": None,
                }
                if token is None or status in LEAVING:
                    new[file.id] = {**values, **_UNMADE, "status": "new", "attempts": 0}
                elif token != file.change_token or metadata != values["metadata"]:
                    if token == file.change_token:
                        values["refetch"] = True
                    reset = {"status": "new", "attempts": 0, "next_retry_at": None} if status in FAILING else {}
                    changed[file.id] = {**values, "status": status, **reset}
                else:
                    seen.append(file.id)
            upsert(connection, schema.files, list(new.values()))
            upsert(connection, schema.files, list(changed.values()))
            for batch in batches(seen):
                connection.execute(
                    sa.update(schema.files)
                    .where(c.export == self.export, c.file_id.in_(batch))
                    .values(listing_id=sa.case((c.listing_id < listing_id, listing_id), else_=c.listing_id), missing_since=None)
                )
            self._log(connection, [(file_id, "listed", {}) for file_id in new], None, now)
            self._log(connection, [(file_id, "changed", {}) for file_id in changed], None, now)
        return len(new), len(changed)

    def complete_listing(self, listing_id: int) -> int:
        """A complete listing ended: what neither it nor a later one has shown is missing from now on. Answers how many are
        missing in all."""
        now = self._clock()
        mine, since = schema.files.c.export == self.export, schema.files.c.missing_since
        with writing(self._engine, self.export) as connection:
            connection.execute(
                sa.update(schema.files)
                .where(mine, schema.files.c.listing_id < listing_id, sa.or_(since.is_(None), since > now))  # or of a clock ahead
                .values(missing_since=now)
            )
            upsert(connection, schema.exports, [{"export": self.export, "complete_at": now}])
            missing = connection.execute(
                sa.select(sa.func.count()).select_from(schema.files).where(mine, schema.files.c.missing_since.is_not(None))
            )
            return int(missing.scalar_one())

    def update_files(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Set columns of known files; every row has ``file_id`` and the same columns as the others."""
        if not rows:
            return
        columns = [name for name in rows[0] if name != "file_id"]
        statement = (
            sa.update(schema.files)
            .where(schema.files.c.export == self.export, schema.files.c.file_id == sa.bindparam("_file_id"))
            .values({name: sa.bindparam(f"_{name}") for name in columns})
        )
        with writing(self._engine, self.export) as connection:
            connection.execute(statement, [{f"_{name}": value for name, value in row.items()} for row in rows])

    def request(self, file_ids: Sequence[str], wave: str, *, waiting: Collection[str] = ()) -> None:
        """Note that a wave has asked for these files; not of those that somebody is removing by now. Those of them that are
        ``waiting`` for another attempt go on doing so: the wave takes them to sinks that have not refused them."""
        staying = schema.files.c.status.not_in(LEAVING)
        self._set([f for f in file_ids if f not in waiting], staying, status="requested", wave=wave)
        self._set([f for f in file_ids if f in waiting], staying, wave=wave)

    def mark_removing(self, file_ids: Sequence[str]) -> None:
        """Mark those of these files that are missing still: no look has seen them again."""
        self._set(file_ids, schema.files.c.missing_since.is_not(None), status="removing")

    def _set(self, file_ids: Sequence[str], where: sa.ColumnElement[bool], **values: Any) -> None:
        """Set columns of those of these files that ``where`` holds for."""
        c = schema.files.c
        with writing(self._engine, self.export) as connection:
            for batch in batches(file_ids):
                these = sa.and_(c.export == self.export, c.file_id.in_(batch), where)
                connection.execute(sa.update(schema.files).where(these).values(**values))

    def release(self, file_ids: Sequence[str]) -> None:
        """Give those of these files that are failed or parked a fresh start."""
        self._set(file_ids, schema.files.c.status.in_(FAILING), status="new", attempts=0, next_retry_at=None)

    def claim(
        self, file_ids: Sequence[str], run_id: str, *, seconds: float, dead_runs: Collection[str] = (), leaving: bool = False
    ) -> list[str]:
        """Lease files to a run; answers those it holds now. Another run's lease is taken over only when it is over.

        ``dead_runs`` are holders the caller knows to have ended; ``holders`` lists whom to ask about. Files that are being
        removed, or are gone, are for those who remove files (``leaving``): a run that was asked for them before leaves them.
        """
        now = self._clock()
        c = schema.files.c
        free = sa.or_(c.run_id.is_(None), c.run_id == run_id, c.lease_until < now, c.run_id.in_(sorted(dead_runs)))
        wanted = sa.true() if leaving else c.status.not_in(LEAVING)
        held: list[str] = []
        with writing(self._engine, self.export) as connection:
            for batch in batches(file_ids):
                mine = sa.and_(c.export == self.export, c.file_id.in_(batch), wanted)
                connection.execute(sa.update(schema.files).where(mine, free).values(run_id=run_id, lease_until=now + seconds))
                held += [row[0] for row in connection.execute(sa.select(c.file_id).where(mine, c.run_id == run_id))]
        order = {file_id: position for position, file_id in enumerate(file_ids)}
        return sorted(held, key=order.__getitem__)

    def holders(self, file_ids: Sequence[str]) -> set[str]:
        """Runs that hold an unexpired lease on any of these files."""
        c = schema.files.c
        query = sa.select(c.run_id).distinct().where(c.export == self.export, c.lease_until > self._clock())
        with self._engine.connect() as connection:
            return {row[0] for row in rows_of(connection, query, c.file_id, file_ids) if row[0]}

    def renew(self, run_id: str, *, seconds: float) -> None:
        """Put off the end of what a run holds: leases on files and claims on texts."""
        until = self._clock() + seconds
        with writing(self._engine, self.export) as connection:
            for table, end in ((schema.files, "lease_until"), (schema.vector_claims, "claimed_until")):
                mine = sa.and_(table.c.export == self.export, table.c.run_id == run_id)
                connection.execute(sa.update(table).where(mine).values({end: until}))

    def drop_leases(self, run_id: str) -> None:
        """Give back what a run holds, for runs whose end nobody else records."""
        c = schema.files.c
        with writing(self._engine, self.export) as connection:
            connection.execute(
                sa.update(schema.files).where(c.export == self.export, c.run_id == run_id).values(run_id=None, lease_until=None)
            )

    def record_failures(
        self,
        failures: Mapping[str, str],
        *,
        run_id: str,
        max_attempts: int | None,
        backoff: Callable[[int], float],
        settings_digest: str,
    ) -> None:
        """Count a failed attempt for each file with its reason; park those that have had ``max_attempts``. Without it the attempt
        counts towards no parking, as the history tells: ``attempts`` are all that failed in a row, which the back-off follows."""
        if not failures:
            return
        now = self._clock()
        rows = self.files(list(failures))
        with self._engine.connect() as connection:
            before = own_failures(connection, self.export, [file_id for file_id, row in rows.items() if row.attempts])
        mark = {"parks": False} if max_attempts is None else {}
        updates, events = [], []
        for file_id, reason in failures.items():
            if file_id not in rows:
                continue
            attempts = rows[file_id].attempts + 1
            status = "failed" if max_attempts is None or before[file_id] + 1 < max_attempts else "parked"
            updates.append(
                {
                    "file_id": file_id,
                    "status": status,
                    "attempts": attempts,
                    "next_retry_at": now + backoff(attempts),
                    "last_error": reason,
                    "settings_digest": settings_digest,
                }
            )
            events.append((file_id, status, {"reason": reason, "attempt": attempts, **mark}))
        self.update_files(updates)
        self.log(events, run_id=run_id)

    def record_done(self, file_ids: Sequence[str], settings_digest: str) -> None:
        """Mark files whose records stand in every sink; not those that somebody is removing by now."""
        done: dict[str, Any] = {"status": "done", "attempts": 0, "next_retry_at": None, "last_error": None}
        self._set(file_ids, schema.files.c.status.not_in(LEAVING), **done, settings_digest=settings_digest)

    def refetched(self, metadata: Mapping[str, str]) -> None:
        """Files were fetched again with this metadata, by file id; one whose metadata has moved meanwhile is still to be."""
        c = schema.files.c
        mine = sa.and_(c.export == self.export, c.file_id == sa.bindparam("id"), c.metadata == sa.bindparam("seen"))
        if metadata:
            with writing(self._engine, self.export) as connection:
                statement = sa.update(schema.files).where(mine).values(refetch=False)
                connection.execute(statement, [{"id": file_id, "seen": seen} for file_id, seen in metadata.items()])

    def record_sink(self, held: SinkCollection, hashes: Mapping[str, str]) -> None:
        """Note which record set of each file a sink holds in a collection. Nothing if by now the sink was taken into use with
        other settings than these, or retired: it is another place that holds them."""
        common = {"export": self.export, "sink": held.sink, "model": held.slug, "updated_at": self._clock()}
        rows = [{**common, "file_id": file_id, "record_set_hash": digest} for file_id, digest in hashes.items()]
        with writing(self._engine, self.export) as connection:
            if is_in_use(connection, self.export, held):
                upsert(connection, schema.file_sinks, rows)

    def sink_hashes(self, file_ids: Collection[str] | None = None, *, slug: str | None = None) -> dict[str, dict[str, str]]:
        """``{sink: {file id: record_set_hash}}`` as last recorded, of all files or those named, of any model or of one."""
        c = schema.file_sinks.c
        query = sa.select(c.sink, c.file_id, c.record_set_hash).where(c.export == self.export)
        if slug is not None:
            query = query.where(c.model == slug)
        named = None if file_ids is None else list(file_ids)
        with self._engine.connect() as connection:
            return by_sink(rows_of(connection, query, c.file_id, named))

    def sink_states(self) -> dict[str, SinkState]:
        """Sinks that have ever been down, by name; ``MODEL`` among them."""
        c = schema.sinks.c
        query = sa.select(c.sink, c.attempts, c.down_until, c.last_error).where(c.export == self.export)
        with self._engine.connect() as connection:
            return {row[0]: SinkState(*row) for row in connection.execute(query)}

    def record_sink_state(self, sink: str, *, error: str | None, backoff: Callable[[int], float]) -> None:
        """A sink, or ``MODEL``, failed as a whole (``error``) or answered again (``None``)."""
        attempts = 0 if error is None else self.sink_states().get(sink, SinkState(sink)).attempts + 1
        down_until = None if error is None else self._clock() + backoff(attempts)
        row = {"export": self.export, "sink": sink, "attempts": attempts, "down_until": down_until, "last_error": error}
        with writing(self._engine, self.export) as connection:
            upsert(connection, schema.sinks, [row])

    def record_removed(self, file_ids: Sequence[str], *, run_id: str) -> None:
        """Nothing of these files is left in any sink or in the lake; one that was listed again meanwhile starts over."""
        c = schema.files.c
        with writing(self._engine, self.export) as connection:
            for table in (schema.file_sinks, schema.refusals, schema.vectors):
                delete_of_files(connection, table, self.export, file_ids)
            for batch in batches(file_ids):
                mine = sa.and_(c.export == self.export, c.file_id.in_(batch))
                connection.execute(sa.update(schema.files).where(mine).values(**_UNMADE))
                connection.execute(sa.update(schema.files).where(mine, c.status == "removing").values(status="removed"))
            self._log(connection, [(file_id, "removed", {}) for file_id in file_ids], run_id, self._clock())

    def forget(self, file_ids: Sequence[str], *, run_id: str | None) -> None:
        """Drop everything known of removed files but their history; one that was listed again meanwhile stays."""
        c = schema.files.c
        with writing(self._engine, self.export) as connection:
            query = sa.select(c.file_id).where(c.export == self.export, c.status == "removed")
            gone = [row[0] for row in rows_of(connection, query, c.file_id, file_ids)]
            # All but the row again: a run that slept for longer than its lease may have noted what it made of them since.
            for table in (schema.files, schema.file_sinks, schema.refusals, schema.vectors):
                delete_of_files(connection, table, self.export, gone)
            self._log(connection, [(file_id, "forgotten", {}) for file_id in gone], run_id, self._clock())

    def forget_content(self, file_ids: Sequence[str]) -> None:
        """Drop what is of these files' content: their metadata, and why they failed, which may quote them."""
        c = schema.files.c
        with writing(self._engine, self.export) as connection:
            for batch in batches(file_ids):
                mine = sa.and_(c.export == self.export, c.file_id.in_(batch))
                connection.execute(sa.update(schema.files).where(mine).values(metadata="{}", last_error=None))
            forget_reasons(connection, self.export, file_ids)

    def log(self, events: Sequence[tuple[str, str, Mapping[str, Any]]], *, run_id: str | None) -> None:
        """Append ``(file id, event, details)`` to the history."""
        with writing(self._engine, self.export) as connection:
            self._log(connection, events, run_id, self._clock())

    def history(self, file_id: str) -> list[HistoryEvent]:
        """A file's history, oldest first."""
        c = schema.history.c
        query = sa.select(c.file_id, c.at, c.event, c.run_id, c.details).where(c.export == self.export, c.file_id == file_id)
        with self._engine.connect() as connection:
            return [HistoryEvent(*row) for row in connection.execute(query.order_by(c.id))]

    def count_removed(self, since: float, until: float) -> int:
        """How many files were removed between two moments, but for those that a person has erased."""
        c, erased = schema.history.c, schema.tombstones.c
        removed = sa.and_(c.export == self.export, c.event == "removed", c.at.between(since, until))
        by_a_person = sa.select(erased.file_id).where(erased.export == self.export)
        query = sa.select(sa.func.count()).select_from(schema.history).where(removed, c.file_id.not_in(by_a_person))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def _known(self, connection: sa.Connection, file_ids: Sequence[str]) -> dict[str, tuple[str, str, int, str]]:
        """(change token, status, listing, metadata) by file id."""
        c = schema.files.c
        query = sa.select(c.file_id, c.change_token, c.status, c.listing_id, c.metadata).where(c.export == self.export)
        return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows_of(connection, query, c.file_id, file_ids)}

    def _log(
        self, connection: sa.Connection, events: Sequence[tuple[str, str, Mapping[str, Any]]], run_id: str | None, now: float
    ) -> None:
        common, by = {"export": self.export, "at": now, "run_id": run_id}, asked_by(run_id)
        rows = [{**common, "file_id": f, "event": event, "details": json.dumps({**told, **by})} for f, event, told in events]
        if rows:
            connection.execute(sa.insert(schema.history), rows)
