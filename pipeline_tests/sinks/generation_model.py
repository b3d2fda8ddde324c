"""A store in memory for the replace protocol, that fails as told and can be watched between any two changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from pipeline.sinks.base import Snapshot
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.generations import FileWrites, Head, replace_generations, to_snapshots

Fault = Literal["refused", "lost ack", "even", "odd", "late"]
"""What becomes of a request that fails: nothing; all of it; every other record (from the first, second); all, but later."""

T = TypeVar("T")

KEYS = [FileKey("prj", "cfg", f"dfl-{n}") for n in range(2)]


class Crash(Exception):
    """The run ends here."""


@dataclass(frozen=True)
class Write:
    """One record."""

    id: str
    key: FileKey
    generation: Generation
    index: int
    pending: str | None = None

    @property
    def size(self) -> int:
        return 10

    def marked(self, marker: str) -> Write:
        assert self.index == 0
        return replace(self, pending=marker)


def content(key: FileKey, version: str, count: int) -> FileWrites[Write]:
    """A version of a file; the same arguments are the same content."""
    digest = f"{version}{count}"
    generation = Generation(digest, count)
    writes = [Write(found, key, generation, index) for index, found in enumerate(key.ids(generation))]
    return FileWrites(key, digest, writes)


async def _go_on() -> None:
    """Nobody else has a turn."""


@dataclass
class ModelStore:
    """``fail_at``: number of the change that fails, counted from 0; ``turn`` is awaited before every request."""

    records: dict[str, Write] = field(default_factory=dict)
    fail_at: int | None = None
    fault: Fault = "refused"
    changes: int = 0
    reads: int = 0
    late: list[Callable[[], None]] = field(default_factory=list)
    watch: Callable[[], None] = lambda: None
    turn: Callable[[], Awaitable[None]] = _go_on
    max_records: int = 3
    max_bytes: int = 40
    max_ids: int = 3
    concurrency: int = 1
    largest: int = 0

    async def read_heads(self, keys: Sequence[FileKey]) -> Sequence[Head]:
        await self.turn()
        self.reads += 1
        return self.heads(set(keys))

    def heads(self, keys: set[FileKey] | None = None) -> list[Head]:
        return [
            Head(write.key, _snapshot(write), write.pending)
            for write in self.records.values()
            if write.index == 0 and (keys is None or write.key in keys)
        ]

    def snapshots(self) -> dict[str, Snapshot]:
        return {found.parsed_directory_file_id: found for found in to_snapshots(self.heads())}

    async def upsert(self, writes: Sequence[Write]) -> None:
        assert len(writes) <= self.max_records
        assert sum(write.size for write in writes) <= self.max_bytes
        assert len({write.id for write in writes}) == len(writes), "a record twice in one request"
        await self._change(writes, lambda some: self.records.update({write.id: write for write in some}))

    async def count_present(self, ids: Sequence[str]) -> int:
        await self.turn()
        return len(self.records.keys() & self._ids(ids))

    async def mark(self, ids: Sequence[str], marker: str) -> None:
        await self._change(self._ids(ids), lambda some: self._set_pending(some, marker))

    async def clear_pending(self, heads: Sequence[Write]) -> int:
        assert all(write.pending is None for write in heads)
        ids = self._ids([write.id for write in heads])
        await self._change(ids, lambda some: self._set_pending(some, None))
        return len(self.records.keys() & ids)

    async def delete(self, ids: Sequence[str]) -> None:
        await self._change(self._ids(ids), self._drop)

    async def sweep(self, files: Sequence[FileWrites[Write]]) -> None:
        """Finds what is there when its turn has come."""
        await self.turn()
        kept = {file.key: file.generation for file in files}
        self._changed(
            [found for found, write in self.records.items() if kept.get(write.key, write.generation) != write.generation],
            self._drop,
        )

    def _drop(self, ids: Sequence[str]) -> None:
        for found in ids:
            self.records.pop(found, None)

    def _ids(self, ids: Sequence[str]) -> Sequence[str]:
        assert 0 < len(ids) <= self.max_ids
        return ids

    def _set_pending(self, ids: Sequence[str], marker: str | None) -> None:
        for found in ids:
            if found in self.records:
                self.records[found] = replace(self.records[found], pending=marker)

    async def _change(self, items: Sequence[T], apply: Callable[[Sequence[T]], None]) -> None:
        await self.turn()
        self._changed(items, apply)

    def _changed(self, items: Sequence[T], apply: Callable[[Sequence[T]], None]) -> None:
        number = self.changes
        self.changes += 1
        self.largest = max(self.largest, len(items))
        if number != self.fail_at:
            apply(items)
            self.watch()
            return
        applied = {  # what takes effect now
            "refused": items[:0],
            "lost ack": items,
            "even": items[::2],
            "odd": items[1::2],
            "late": items[:0],
        }[self.fault]
        apply(applied)
        if self.fault == "late":
            self.late.append(lambda: apply(items))
        self.watch()
        raise Crash

    def arrive(self) -> None:
        """What was sent late takes effect."""
        for apply in self.late:
            apply()
        self.late.clear()

    def held(self) -> set[Write]:
        return set(self.records.values())

    def complete(self, key: FileKey) -> bool:
        """Whether some version of the file is there in full."""
        present = {write.id for write in self.records.values()}
        return any(present.issuperset(key.ids(write.generation)) for write in self.records.values() if write.key == key)

    def assert_truthful(self) -> None:
        """A file that looks finished has exactly the records of its one version; a file without a snapshot has none."""
        snapshots = self.snapshots()
        for key in KEYS:
            present = {write.id for write in self.records.values() if write.key == key}
            found = snapshots.get(key.file_id)
            if found is None:
                assert not present
            elif not found.record_set_hash.startswith("pending:"):
                assert present == set(key.ids(Generation(found.record_set_hash, found.chunk_count)))

    def assert_holds(self, *files: FileWrites[Write]) -> None:
        """Exactly these files, and no marker."""
        assert self.held() == {write for file in files for write in file.writes}
        assert {name: found.record_set_hash for name, found in self.snapshots().items()} == {
            file.key.file_id: file.record_set_hash for file in files if file.writes
        }


async def run(store: ModelStore, *files: FileWrites[Write], fail_at: int | None = None, fault: Fault = "refused") -> bool:
    """One run; whether it got through. ``fail_at`` counts its own changes."""
    store.changes, store.fail_at, store.fault = 0, fail_at, fault
    try:
        await replace_generations(store, files)
    except Crash:
        return False
    finally:
        store.fail_at = None
    return True


async def settle() -> None:
    """Let every task run as far as it can on its own."""
    for _ in range(20):
        await asyncio.sleep(0)


def _snapshot(write: Write) -> Snapshot:
    return Snapshot(
        parsed_directory_file_id=write.key.file_id,
        export_config_id=write.key.export_config_id,
        content_fingerprint_hash="",
        source_modified_at=None,
        chunk_count=write.generation.chunk_count,
        embedding_model="model",
        record_set_hash=write.generation.record_set_hash,
    )
