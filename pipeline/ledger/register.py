"""The ledger's memory beyond single loads: where an export has ever written, what a sink refused, and what must never be written
again.

What belongs here: the collections of every sink and model, refusals, the scopes of all exports, and tombstones. All calls block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from pipeline.ledger import schema
from pipeline.ledger.models import SinkCollection, Tombstone
from pipeline.ledger.sql import batches, by_sink, delete_of_files, rows_of, upsert, writing

_COLLECTION_COLUMNS = [schema.collections.c[name] for name in SinkCollection.__dataclass_fields__]


class Register:
    """The register of one export, on the ledger's own engine."""

    def __init__(self, engine: sa.Engine, export: str, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._export = export
        self._clock = clock

    def is_known(self) -> bool:
        """Whether this ledger has ever looked at the export's index, and has not forgotten it since."""
        with self._engine.connect() as connection:
            query = sa.select(schema.exports.c.export).where(schema.exports.c.export == self._export)
            return connection.execute(query).first() is not None

    def forget_export(self) -> None:
        """The export has ended: everything known of it goes but its tombstones, in case its name is used again."""
        with writing(self._engine, self._export) as connection:
            for table in schema.metadata.sorted_tables:
                if table is not schema.tombstones:
                    connection.execute(sa.delete(table).where(table.c.export == self._export))

    def known_scopes(self) -> set[tuple[str, str]]:
        """(tenant_id, export_config_id) of every export this ledger knows of."""
        c = schema.exports.c
        query = sa.select(c.tenant_id, c.export_config_id).where(c.tenant_id.is_not(None), c.export_config_id.is_not(None))
        with self._engine.connect() as connection:
            return {(tenant_id, config) for tenant_id, config in connection.execute(query)}

    def leave_scope(self, tenant_id: str, export_config_id: str) -> None:
        """The index has been made anew, under other ids than these."""
        row = {"export": self._export, "tenant_id": tenant_id, "export_config_id": export_config_id}
        with writing(self._engine, self._export) as connection:
            known = sa.select(schema.former_scopes).filter_by(**row)
            if connection.execute(known).one_or_none() is None:
                connection.execute(sa.insert(schema.former_scopes), row)

    def former_scopes(self) -> list[tuple[str, str]]:
        """(tenant_id, export_config_id) of every index this export has left."""
        c = schema.former_scopes.c
        query = sa.select(c.tenant_id, c.export_config_id).where(c.export == self._export)
        with self._engine.connect() as connection:
            return [(tenant_id, config) for tenant_id, config in connection.execute(query.order_by(*c))]

    def last_change(self) -> float | None:
        """When a file of any sink was last loaded; ``None`` before the first one. A time to come, which was written by a clock
        that was ahead and would hide all later loads, counts while there is no other."""
        c = schema.file_sinks.c
        last = sa.func.max(sa.case((c.updated_at <= self._clock(), c.updated_at)))
        query = sa.select(sa.func.coalesce(last, sa.func.max(c.updated_at))).where(c.export == self._export)
        with self._engine.connect() as connection:
            found: float | None = connection.execute(query).scalar()
        return found

    def record_collection(self, held: SinkCollection) -> bool:
        """Note that a sink holds records of a model, and with which settings it is reached. Where those are others than before,
        nothing that was recorded of the sink is taken for granted any more. Answers whether any file is recorded of it."""
        settings = _kept(held)
        row = {name: getattr(held, name) for name in SinkCollection.__dataclass_fields__ if name != "settings"}
        files = schema.file_sinks.c
        with writing(self._engine, self._export) as connection:
            if _last_settings(connection, self._export, held) not in (None, settings):
                self._forget_files(connection, held.sink)
            upsert(connection, schema.collections, [{"export": self._export, **row, "settings": json.dumps(settings)}])
            mine = sa.and_(files.export == self._export, files.sink == held.sink, files.model == held.slug)
            return connection.execute(sa.select(files.file_id).where(mine).limit(1)).first() is not None

    def keep_only_of(self, present: Iterable[SinkCollection]) -> None:
        """What is recorded of the files of any other collection than these is not taken for granted any more."""
        c = schema.file_sinks.c
        those = [sa.and_(c.sink == held.sink, c.model == held.slug) for held in present]
        with writing(self._engine, self._export) as connection:
            connection.execute(sa.delete(schema.file_sinks).where(c.export == self._export, sa.not_(sa.or_(sa.false(), *those))))

    def moved(self, present: Iterable[SinkCollection]) -> set[str]:
        """Those of these sinks whose settings are others than when they were last written to: they may point elsewhere."""
        last = {(held.sink, held.slug): held.settings for held in self.collections()}
        return {held.sink for held in present if last.get((held.sink, held.slug), _kept(held)) != _kept(held)}

    def collections(self) -> list[SinkCollection]:
        """Every collection ever written and not retired, by sink and model."""
        c = schema.collections.c
        query = sa.select(*_COLLECTION_COLUMNS).where(c.export == self._export).order_by(c.sink, c.slug)
        with self._engine.connect() as connection:
            return [_collection(row) for row in connection.execute(query).mappings()]

    def collections_of_others(self, scope: tuple[str, str]) -> list[tuple[str, SinkCollection]]:
        """``collections`` of every other export that has this scope now, each with the export's name."""
        c, of = schema.collections.c, schema.exports.c
        same = sa.and_(of.export == c.export, of.tenant_id == scope[0], of.export_config_id == scope[1])
        query = sa.select(c.export, *_COLLECTION_COLUMNS).join(schema.exports, same).where(c.export != self._export)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(c.export, c.sink, c.slug)).mappings()
            return [(row["export"], _collection(row)) for row in rows]

    def forget_collection(self, sink: str, slug: str) -> None:
        """A collection has been retired: what was recorded of its files goes too."""
        with writing(self._engine, self._export) as connection:
            c, held = schema.collections.c, schema.file_sinks.c
            connection.execute(sa.delete(schema.collections).where(c.export == self._export, c.sink == sink, c.slug == slug))
            connection.execute(
                sa.delete(schema.file_sinks).where(held.export == self._export, held.sink == sink, held.model == slug)
            )

    def reset_sink(self, sink: str) -> None:
        """Nothing is taken for granted of a sink any more: every file is compared with it again."""
        with writing(self._engine, self._export) as connection:
            self._forget_files(connection, sink)
            c = schema.sinks.c
            connection.execute(sa.delete(schema.sinks).where(c.export == self._export, c.sink == sink))

    def _forget_files(self, connection: sa.Connection, sink: str) -> None:
        """What a sink holds and has refused."""
        for table in (schema.file_sinks, schema.refusals):
            connection.execute(sa.delete(table).where(table.c.export == self._export, table.c.sink == sink))

    def record_refusals(self, sink: str, hashes: Mapping[str, str]) -> None:
        """Note which record set of each file a sink has refused."""
        rows = [{"export": self._export, "file_id": f, "sink": sink, "record_set_hash": h} for f, h in hashes.items()]
        if rows:
            with writing(self._engine, self._export) as connection:
                upsert(connection, schema.refusals, rows)

    def refusals(self) -> dict[str, dict[str, str]]:
        """``{sink: {file id: record_set_hash}}`` of what was refused last, also of files that fail no more."""
        c = schema.refusals.c
        query = sa.select(c.sink, c.file_id, c.record_set_hash).where(c.export == self._export)
        with self._engine.connect() as connection:
            return by_sink(connection.execute(query))

    def end_waits(self) -> None:
        """What is down is tried again now; how often it has failed is remembered."""
        c = schema.sinks.c
        with writing(self._engine, self._export) as connection:
            connection.execute(sa.update(schema.sinks).where(c.export == self._export).values(down_until=None))

    def let_go(self, sink: str, file_ids: Sequence[str]) -> None:
        """A sink is about to lose these files. From now on it lacks them, however far the deletion comes."""
        c = schema.file_sinks.c
        with writing(self._engine, self._export) as connection:
            for batch in batches(file_ids):
                mine = sa.and_(c.export == self._export, c.sink == sink, c.file_id.in_(batch))
                connection.execute(sa.delete(schema.file_sinks).where(mine))

    def adopt_orphans(self, found: Mapping[str, tuple[str, int]]) -> None:
        """Files a sink holds and no listing shows, by id with name and number of records: missing from now on, so that they
        go the way of every removed file, with its grace period and its fuse. What has been listed meanwhile stays as it is."""
        orphan = {"export": self._export, "change_token": "", "listing_id": 0, "status": "done", "missing_since": self._clock()}
        rows = [{**orphan, "file_id": f, "display_name": name, "chunk_count": count} for f, (name, count) in found.items()]
        c = schema.files.c
        query = sa.select(c.file_id).where(c.export == self._export, c.status != "removed")
        with writing(self._engine, self._export) as connection:
            there = {row[0] for row in rows_of(connection, query, c.file_id, list(found))}
            upsert(connection, schema.files, [row for row in rows if row["file_id"] not in there])

    def entomb(self, file_ids: Sequence[str], *, erased_at: float | None = None) -> None:
        """Files that no listing may bring back. Names are not kept."""
        at = self._clock() if erased_at is None else erased_at
        with writing(self._engine, self._export) as connection:
            upsert(
                connection, schema.tombstones, [{"export": self._export, "file_id": f, "erased_at": at} for f in sorted(file_ids)]
            )

    def record_proof(self, file_ids: Sequence[str]) -> None:
        """Nothing of these erased files was found anywhere."""
        c = schema.tombstones.c
        with writing(self._engine, self._export) as connection:
            for batch in batches(file_ids):
                mine = sa.and_(c.export == self._export, c.file_id.in_(batch))
                connection.execute(sa.update(schema.tombstones).where(mine).values(proved_at=self._clock()))

    def tombstones(self) -> dict[str, Tombstone]:
        """Erased files by id."""
        c = schema.tombstones.c
        query = sa.select(c.file_id, c.erased_at, c.proved_at).where(c.export == self._export).order_by(c.file_id)
        with self._engine.connect() as connection:
            return {row[0]: Tombstone(*row) for row in connection.execute(query)}

    def lift(self, file_ids: Collection[str]) -> None:
        """Let erased files return at the next complete listing."""
        with writing(self._engine, self._export) as connection:
            delete_of_files(connection, schema.tombstones, self._export, sorted(file_ids))


def _collection(row: sa.RowMapping) -> SinkCollection:
    values = {name: row[name] for name in SinkCollection.__dataclass_fields__}
    return SinkCollection(**{**values, "settings": json.loads(row["settings"])})


def _kept(held: SinkCollection) -> dict[str, Any]:
    """What is kept of a sink's settings, as it is read back. A plug-in's are left out: what it is given may be a secret."""
    kind = str(held.settings["type"])
    kept: dict[str, Any] = {"type": kind} if ":" in kind else json.loads(json.dumps(held.settings))
    return kept


def is_in_use(connection: sa.Connection, export: str, held: SinkCollection) -> bool:
    """Whether it is with these settings that the sink was last taken into use for this model, and not retired since."""
    return _last_settings(connection, export, held) == _kept(held)


def _last_settings(connection: sa.Connection, export: str, held: SinkCollection) -> dict[str, Any] | None:
    """What is kept of the settings a sink was last taken into use with for this model; ``None`` if it never was or is retired."""
    c = schema.collections.c
    this = sa.and_(c.export == export, c.sink == held.sink, c.slug == held.slug)
    last = connection.execute(sa.select(c.settings).where(this)).scalar_one_or_none()
    return None if last is None else dict(json.loads(last))


def entombed(connection: sa.Connection, export: str, file_ids: Sequence[str]) -> set[str]:
    """Those of these files that have a tombstone."""
    c = schema.tombstones.c
    query = sa.select(c.file_id).where(c.export == export)
    return {row[0] for row in rows_of(connection, query, c.file_id, file_ids)}
