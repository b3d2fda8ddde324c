"""Which partitions of the lake hold the vector of a text, and who is about to make one that none holds.

What belongs here: the vector index of an export and the claims of its runs on texts, as digests under a model. All calls block.

A run claims what it embeds a group of files at a time: a file whose new texts nobody else is embedding is claimed whole, any
other one is left for later. So a run never holds a claim while it waits for another's, and runs cannot wait in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from pipeline.ledger import schema
from pipeline.ledger.sql import delete_of_files, insert_columns, rows_of, writing


@dataclass(frozen=True, slots=True)
class Claim:
    """What a run may embed now."""

    located: dict[bytes, str]
    """One partition of the lake for every text that has a vector already."""
    waiting: set[str]
    """Files with a text that another run is embedding."""


class VectorIndex:
    """The vector index of one export, on the ledger's own engine. ``slug`` is the model's."""

    def __init__(self, engine: sa.Engine, export: str, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._export = export
        self._clock = clock

    def locate(self, slug: str, digests: Collection[bytes]) -> dict[bytes, str]:
        """For each digest that has a vector in the lake, one partition that holds it."""
        with self._engine.connect() as connection:
            return self._locate(connection, slug, digests)

    def any_partition(self, slug: str) -> str | None:
        """Some partition of the lake that holds a vector."""
        c = schema.vectors.c
        mine = sa.and_(c.export == self._export, c.model == slug)
        with self._engine.connect() as connection:
            return connection.execute(sa.select(c.file_id).where(mine).order_by(c.digest).limit(1)).scalar()

    def count(self, file_ids: Sequence[str]) -> int:
        """Entries that point to these files' partitions."""
        c = schema.vectors.c
        query = sa.select(sa.func.count()).select_from(schema.vectors).where(c.export == self._export)
        with self._engine.connect() as connection:
            return sum(int(row[0]) for row in rows_of(connection, query, c.file_id, file_ids))

    def claim(
        self, slug: str, wanted: Mapping[str, Collection[bytes]], run_id: str, *, seconds: float, is_live: Callable[[str], bool]
    ) -> Claim:
        """Claim the texts of these files that have no vector, for a run; they stay claimed until ``replace`` or ``release``.

        Claims of runs that have ended (``is_live`` answers) or that were not renewed for ``seconds`` count for nothing.
        """
        now = self._clock()
        c = schema.vector_claims.c
        mine = sa.and_(c.export == self._export, c.model == slug)
        ended = self._ended(is_live)
        with writing(self._engine, self._export) as connection:
            over = sa.or_(c.run_id == run_id, c.run_id.in_(ended), c.claimed_until < now)
            connection.execute(sa.delete(schema.vector_claims).where(mine, over))
            others = set(connection.execute(sa.select(c.digest).where(mine)).scalars())
            located = self._locate(connection, slug, set().union(*wanted.values()))
            waiting = {file_id for file_id, digests in wanted.items() if others.intersection(digests) - located.keys()}
            new = {digest for file_id, digests in wanted.items() if file_id not in waiting for digest in digests} - located.keys()
            fixed = {"export": self._export, "model": slug, "run_id": run_id, "claimed_until": now + seconds}
            insert_columns(connection, schema.vector_claims, fixed, {"digest": sorted(new)})
        return Claim(located, waiting)

    def replace(self, slug: str, digests: Mapping[str, Iterable[bytes]], run_id: str | None = None) -> None:
        """Note the vectors each partition holds now, and only those; what the run has claimed is free again."""
        held = [(digest, file_id) for file_id, of_file in digests.items() for digest in set(of_file)]
        with writing(self._engine, self._export) as connection:
            delete_of_files(connection, schema.vectors, self._export, list(digests))
            insert_columns(
                connection,
                schema.vectors,
                {"export": self._export, "model": slug},
                {"digest": [digest for digest, _ in held], "file_id": [file_id for _, file_id in held]},
            )
            if run_id is not None:
                self._release(connection, run_id)

    def release(self, run_id: str) -> None:
        """Give back what a run has claimed."""
        with writing(self._engine, self._export) as connection:
            self._release(connection, run_id)

    def drop_ended(self, is_live: Callable[[str], bool]) -> None:
        """Forget what runs that have ended had claimed."""
        c = schema.vector_claims.c
        ended = self._ended(is_live)
        with writing(self._engine, self._export) as connection:
            connection.execute(sa.delete(schema.vector_claims).where(c.export == self._export, c.run_id.in_(ended)))

    def _ended(self, is_live: Callable[[str], bool]) -> list[str]:
        c = schema.vector_claims.c
        with self._engine.connect() as connection:
            holders = connection.execute(sa.select(c.run_id).distinct().where(c.export == self._export)).scalars()
            return [holder for holder in holders if not is_live(holder)]

    def _release(self, connection: sa.Connection, run_id: str) -> None:
        c = schema.vector_claims.c
        connection.execute(sa.delete(schema.vector_claims).where(c.export == self._export, c.run_id == run_id))

    def _locate(self, connection: sa.Connection, slug: str, digests: Collection[bytes]) -> dict[bytes, str]:
        c = schema.vectors.c
        mine = sa.and_(c.export == self._export, c.model == slug)
        query = sa.select(c.digest, sa.func.min(c.file_id)).where(mine).group_by(c.digest)  # many files may share a text
        return {bytes(digest): file_id for digest, file_id in rows_of(connection, query, c.digest, sorted(digests))}
