"""The index of one config in the store: its generations, which of them counts, and the step from one to the next.

What belongs here: everything that happens under one config's folder. All of it blocks; callers run it in threads. Changes
need the folder's lease.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RecordRefused, SinkDamaged, SinkUnavailable
from pipeline.sinks.base import ReplaceReport, Snapshot
from pipeline.sinks.records import FileRecords
from pipeline.sinks.storage_context_files import FolderStore
from pipeline.sinks.storage_context_generation import (
    MANIFEST,
    RECORDS,
    HeldFile,
    Manifest,
    Scope,
    row_groups,
    without_files,
    write_generation,
)
from pipeline.sinks.storage_context_lease import Lease

T = TypeVar("T")

CURRENT: Final = "CURRENT"
_GENERATIONS: Final = "generations"
_READS: Final = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest index a generation is written of: records, and bytes of records in memory."""

    records: int
    size: int


@dataclass(frozen=True, slots=True)
class State:
    """The generation that counts. ``intact`` unless somebody else has changed one of its files."""

    generation: str
    manifest: Manifest
    intact: bool


class ConfigIndex:
    """The folder of one config, relative to the store; ``schema`` is that of its records."""

    def __init__(self, store: FolderStore, folder: str, schema: pa.Schema) -> None:
        self.lease_folder = f"{folder}/leases"
        self._store = store
        self._folder = folder
        self._schema = schema

    def current(self) -> str | None:
        """The path of the generation that counts, below the folder; ``None`` before the first one."""
        named = self._store.read(f"{self._folder}/{CURRENT}")
        return named.decode().strip() if named else None

    def location(self, generation: str) -> str:
        """Where a generation lies, as the file system knows it: LlamaIndex's ``persist_dir``."""
        return self._store.path(f"{self._folder}/{generation}")

    def state(self) -> State | None:
        """``None`` before the first generation."""
        return self._of_current(self._state)

    def _state(self, generation: str) -> State:
        data = self._store.read(f"{self._folder}/{generation}/{MANIFEST}")
        if data is None:
            raise FileNotFoundError(generation)
        try:
            manifest = Manifest.decode(data)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(generation, f"{MANIFEST}: {error}") from None
        found = self._store.sizes(f"{self._folder}/{generation}")
        return State(generation, manifest, all(found.get(name) == size for name, size in manifest.sizes.items()))

    def table(self) -> tuple[str, pa.Table] | None:
        """The generation that counts and all its records."""

        def read(generation: str) -> tuple[str, pa.Table]:
            with self._records(generation) as file:
                return generation, file.read()

        return self._of_current(read)

    def tables(self) -> Generator[pa.Table, None, None]:
        """The records of one generation, even if others follow meanwhile, as long as it is kept."""
        generation = self.current()
        if generation is None:
            return
        try:
            with self._records(generation) as file:
                yield from row_groups(file)
        except FileNotFoundError:
            raise SinkUnavailable(
                f"storage_context at {self._store.shown}: {generation} was removed while it was read; "
                "read again, or raise keep_generations"
            ) from None

    def _of_current(self, read: Callable[[str], T]) -> T | None:
        """Read the generation that counts; again where it was replaced and removed in between."""
        for _ in range(_READS):
            generation = self.current()
            if generation is None:
                return None
            try:
                return read(generation)
            except FileNotFoundError:
                continue
        raise self._unusable(f"{self._folder}/{CURRENT} names a generation that is not there")

    @contextmanager
    def _records(self, generation: str) -> Iterator[pq.ParquetFile]:
        """Raises FileNotFoundError when it was removed since it counted, SinkUnavailable when it cannot be read."""
        try:
            with self._store.parquet(f"{self._folder}/{generation}/{RECORDS}") as file:
                yield file
        except pa.ArrowInvalid as error:
            raise self._damaged(generation, f"{RECORDS}: {error}") from None
        except FileNotFoundError:
            if self.current() == generation:
                raise self._damaged(generation, f"{RECORDS} is missing") from None
            raise

    def _damaged(self, generation: str, reason: str) -> SinkDamaged:
        return self._unusable(f"{self._folder}/{generation} is damaged ({reason})")

    def _unusable(self, problem: str) -> SinkDamaged:
        return SinkDamaged(
            f"storage_context at {self._store.shown}: {problem}; remove the folder {self._folder} and repair the sink, "
            f"or have {CURRENT} in it name another generation"
        )

    def replace(self, files: Sequence[FileRecords], limits: Limits, keep: int, lease: Lease) -> ReplaceReport:
        """Write the next generation with these files, at least one, in place of what it had of them, and have it count.

        The bytes reported are the generation's; none is written where nothing would be other than before."""
        state = self.state()
        held = state.manifest.held if state else {}
        accepted, refused = _admit(files, held, limits)
        replaced = {file.file_id for file in accepted}
        new = [file for file in accepted if file.table.num_rows]
        if not new and replaced.isdisjoint(held):
            return ReplaceReport(0, 0, tuple(refused))
        scope = (files[0].provenance.tenant_id, files[0].provenance.export_config_id)
        size = self._advance(state, scope, replaced, new, keep, lease)
        return ReplaceReport(sum(file.table.num_rows for file in new), size, tuple(refused))

    def remove(self, file_ids: Sequence[str], keep: int, lease: Lease) -> None:
        """The same for files of which nothing shall be left."""
        state = self.state()
        if state is not None and not state.manifest.held.keys().isdisjoint(file_ids):
            self._advance(state, state.manifest.scope, set(file_ids), [], keep, lease)

    def purge(self, lease: Lease) -> None:
        """Remove every generation but the one that counts, and what crashed writers left."""
        lease.check()
        self._tidy(1, lease)

    def _advance(
        self, state: State | None, scope: Scope, replaced: Set[str], new: Sequence[FileRecords], keep: int, lease: Lease
    ) -> int:
        """Have the generation count in which ``new`` is all there is of the ``replaced`` files; answers its size in bytes."""
        before = state.manifest.held if state else {}
        kept = {file_id: item for file_id, item in before.items() if file_id not in replaced}
        held = kept | {file.file_id: HeldFile(Snapshot.of(file), file.table.nbytes) for file in new}
        self._tidy(keep, lease)  # what never counted must not count as kept once a later generation does
        generation = _generation(_name(lease))
        base = self._records(state.generation) if state and kept else nullcontext()
        with self._store.filling(f"{self._folder}/{generation}") as folder, base as file:
            tables = chain(without_files(row_groups(file), replaced) if file else (), (item.table for item in new))
            size = write_generation(folder, scope, self._schema, tables, held)
        lease.check()
        self._point_to(generation)
        self._confirm(lease)
        self._tidy(keep, lease)
        return size

    def _point_to(self, generation: str) -> None:
        self._store.put(f"{self._folder}/{CURRENT}", f"{generation}\n".encode())

    def _confirm(self, lease: Lease) -> None:
        """A writer that was stopped after its last look at the lease may have moved CURRENT back behind its successors': have
        the latest generation that is complete count again. Raises SinkUnavailable."""
        try:
            lease.check()
        except SinkUnavailable:
            latest = next(filter(self._is_complete, map(_generation, reversed(self._generations()))), None)
            if latest is not None:
                self._point_to(latest)
            raise

    def _is_complete(self, generation: str) -> bool:
        """Raises SinkUnavailable where the store cannot be asked: an older one in its stead would undo what has counted."""
        try:
            return self._state(generation).intact
        except (FileNotFoundError, SinkDamaged):
            return False

    def _generations(self) -> list[str]:
        """The names of all there are, in their order, those of writers at work and of crashed ones included."""
        return sorted(self._store.sizes(f"{self._folder}/{_GENERATIONS}"))

    def _tidy(self, keep: int, lease: Lease) -> None:
        """Remove what crashed writers left, and all but the latest generations; none of a writer that has taken over since."""
        counting = (self.current() or "").rpartition("/")[2]
        names = [name for name in self._generations() if name <= _name(lease)]
        kept = [name for name in names if name <= counting][-keep:]
        for name in names:
            if name not in kept:
                self._store.remove(f"{self._folder}/{_generation(name)}")


def _name(lease: Lease) -> str:
    """What the holder's generation is called: names grow as leases do."""
    return f"{lease.number:012}"


def _generation(name: str) -> str:
    """Its path below the config's folder."""
    return f"{_GENERATIONS}/{name}"


def _admit(
    files: Sequence[FileRecords], held: dict[str, HeldFile], limits: Limits
) -> tuple[list[FileRecords], list[RecordRefused]]:
    """Part the files that fit, in their order, from those that do not; a refused file keeps what is held of it."""
    records = sum(item.snapshot.chunk_count for item in held.values())
    size = sum(item.size for item in held.values())
    accepted, refused = [], []
    for file in sorted(files, key=partial(_grows, held)):  # files that shrink make room, so they come first
        before = held.get(file.file_id)
        grown_records = records + file.table.num_rows - (before.snapshot.chunk_count if before else 0)
        grown_size = size + file.table.nbytes - (before.size if before else 0)
        grows = grown_records > records or grown_size > size
        if grows and (grown_records > limits.records or grown_size > limits.size):
            refused.append(_too_large(file, grown_records, grown_size, limits))
            continue
        records, size = grown_records, grown_size
        accepted.append(file)
    return accepted, refused


def _grows(held: dict[str, HeldFile], file: FileRecords) -> bool:
    before = held.get(file.file_id)
    size: int = file.table.nbytes
    return size > (before.size if before else 0)


def _too_large(file: FileRecords, records: int, size: int, limits: Limits) -> RecordRefused:
    return RecordRefused(
        file.file_id,
        f"the index would have {records:,} records of {size:,} bytes; a storage_context sink holds up to {limits.records:,} "
        f"records and {limits.size:,} bytes (max_records, max_bytes): every write rewrites the index, and LlamaIndex loads "
        "all of it into memory. Use a database sink for more",
    )
