"""Replacing files in stores that cannot write several records at once: one generation of ids beside the other.

What belongs here: the order of requests, and what the heads found in a store mean. How a store spells a request, how often
it tries again and how it waits for what it has written to become readable is that store's own module.

A record's id carries the digest of its record set, so two versions of a file never overwrite each other. Chunk 0 of a
version is its *head*. A replace is five rounds, each finished before the next one starts:

1. write the new head, marked ``pending``: the marker names every generation that may have records, the new one first;
2. write the new generation, with its marked head in every request, so that no record is ever without one, not even when
   a request thought lost arrives late;
3. count the new records;
4. delete the other generations by their computed ids (a head knows its chunk count), never by a search that may lag, with
   their heads in every request; then sweep up what no head has told of;
5. clear the marker; where a head is gone by now, another run has deleted the version, and all begins anew.

A reader sees the old version, both, or the new one; never less than the old one. A file with a marked head or with two heads
never looks finished, so whatever a crash left behind is found and made good by the next replace: it writes everything,
and deletes everything else that any head or marker names. Emptying a file marks its heads and deletes them last.

Two runs must not write one file at once, and leases see to that. Where they do all the same, or where a request takes effect
after it was given up, the file looks unfinished or absent and the next replace makes it good, as long as no generation is
too large for one delete request; beyond that, records without a head can stay, for the next sweep.

Another program may have altered a head or a marker. Such a file never looks finished; what of it can still be read names
generations as ever, and the sweep takes the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from pipeline.errors import RecordRefused, SinkUnavailable
from pipeline.sinks.backoff import apart
from pipeline.sinks.base import ReplaceReport, Snapshot
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.reading import ALTERED_INSTANT, instant, whole
from pipeline.sinks.slicing import each, slices

T = TypeVar("T")

PENDING_PREFIX: Final = "pending:"
"""What the ``record_set_hash`` of a half-finished file's snapshot begins with."""

ALTERED: Final = "altered"
"""Begins the marker of a head that another program has altered; an entry that names no generation."""

_ATTEMPTS: Final = 8


EMPTYING: Final = str(Generation("empty", 0))
"""The marker of a file that is being emptied: what it is going to be has no records."""


@dataclass(frozen=True, slots=True)
class Head:
    """Chunk 0 of one generation as a store holds it. ``pending`` is its marker, ``None`` when it has none."""

    key: FileKey
    snapshot: Snapshot
    pending: str | None

    @property
    def generation(self) -> Generation:
        return Generation(self.snapshot.record_set_hash, self.snapshot.chunk_count)

    @property
    def id(self) -> str:
        return self.key.ids(Generation(self.snapshot.record_set_hash, 1))[0]

    def named(self) -> list[Generation]:
        """Every generation this head says may have records: its own and those of its marker."""
        named = [self.generation, *(_parse_marker(self.pending) if self.pending else [])]
        return [generation for generation in named if generation.has_ids]


def read_head(values: Mapping[str, Any], marker: object, key_type: type[FileKey] = FileKey) -> Head | None:
    """A head from its store's fields of a Snapshot and ``tenant_id``; ``None`` where it does not say which file it is of.

    Any other field may be missing or of another type: then its marker begins with ALTERED, and its generation has no records
    unless both digest and count can be read.
    """
    tenant_id, config, file_id = (values.get(name) for name in ("tenant_id", "export_config_id", "parsed_directory_file_id"))
    if not (isinstance(tenant_id, str) and isinstance(config, str) and isinstance(file_id, str)):
        return None
    names = ("content_fingerprint_hash", "embedding_model", "record_set_hash")
    texts = {name: values[name] for name in names if isinstance(values.get(name), str)}
    count = max(0, whole(values.get("chunk_count")) or 0) if "record_set_hash" in texts else 0
    modified = instant(values.get("source_modified_at"))
    entries = [marker if isinstance(marker, str) else ALTERED] if marker else []
    if len(texts) < len(names) or not count or modified is ALTERED_INSTANT:
        entries.insert(0, ALTERED)
    snapshot = Snapshot(
        parsed_directory_file_id=file_id,
        export_config_id=config,
        source_modified_at=modified,
        chunk_count=count,
        **{**dict.fromkeys(names, ""), **texts},
    )
    return Head(key_type(tenant_id, config, file_id), snapshot, ",".join(entries) or None)


def is_altered(snapshot: Snapshot) -> bool:
    """Whether it is of a file whose first record another program has altered."""
    return snapshot.record_set_hash.startswith(PENDING_PREFIX + ALTERED)


class Write(Protocol):
    """One record, ready to be sent."""

    @property
    def id(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes it takes in a request."""
        ...

    def marked(self, marker: str) -> Self:
        """The same record with ``pending`` set."""
        ...


W = TypeVar("W", bound=Write)


@dataclass(frozen=True, slots=True)
class FileWrites(Generic[W]):
    """What a file shall consist of, encoded for the store: one write a record, in chunk order; none empties the file.

    The records' ids are ``key.ids(generation)``.
    """

    key: FileKey
    record_set_hash: str
    writes: Sequence[W]

    @property
    def generation(self) -> Generation:
        return Generation(self.record_set_hash, len(self.writes))

    @property
    def ids(self) -> list[str]:
        return [write.id for write in self.writes]


def written(files: Iterable[FileWrites[W]], refused: Iterable[RecordRefused] = ()) -> ReplaceReport:
    """The report of a replace that has written all of these files and refused others."""
    sizes = [write.size for file in files for write in file.writes]
    return ReplaceReport(len(sizes), sum(sizes), tuple(refused))


class FirstFound:
    """Which generations of files had heads when they were first looked up, before anything was written."""

    def __init__(self) -> None:
        self._generations: dict[FileKey, set[Generation]] = {}

    def note(self, keys: Iterable[FileKey], heads: Iterable[Head]) -> None:
        found: dict[FileKey, set[Generation]] = {key: set() for key in keys}
        for head in heads:
            found[head.key].add(head.generation)
        self._generations = found | self._generations

    def was_all(self, file: FileWrites[W]) -> bool:
        """Whether this very version of the file was all there was: a reader has nothing else."""
        return self._generations[file.key] == {file.generation}


class GenerationStore(Protocol[W]):
    """The requests a replace consists of.

    A method returns when the store has made the change durable, and raises when it cannot know that. ``read_heads`` sees
    every change that has returned. A request may take effect in part, or after it was given up.
    """

    @property
    def max_records(self) -> int:
        """Records in one upsert; at least 2."""
        ...

    @property
    def max_bytes(self) -> int:
        """Bytes in one upsert; exceeded only by a head and one record that together have more."""
        ...

    @property
    def max_ids(self) -> int:
        """Ids in one ``mark``, ``clear_pending`` or ``delete``; at least 2."""
        ...

    @property
    def concurrency(self) -> int:
        """Requests of one round that may be on their way at once."""
        ...

    async def read_heads(self, keys: Sequence[FileKey]) -> Sequence[Head]:
        """Chunk 0 of every generation of these files, in a number of requests that depends on what is found."""
        ...

    async def upsert(self, writes: Sequence[W]) -> None: ...

    async def mark(self, ids: Sequence[str], marker: str) -> None:
        """Set ``pending`` on those of these records that exist."""
        ...

    async def count_present(self, ids: Sequence[str]) -> int:
        """How many of these records exist. It protects from runs that overlap against all leases, and from a store that
        acknowledges what it does not keep; where it would cost as much as the write, a store may answer ``len(ids)``.
        """
        ...

    async def clear_pending(self, heads: Sequence[W]) -> int:
        """Remove ``pending`` from these records, written before without it, where they exist; how many do."""
        ...

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete those of these records that exist."""
        ...

    async def sweep(self, files: Sequence[FileWrites[W]]) -> None:
        """Delete every record of these files that is of another record set than theirs, or does not say of which: those of
        a version whose head was lost or altered. What has been deleted before may still be found.
        """
        ...


async def replace_generations(store: GenerationStore[W], files: Sequence[FileWrites[W]], *, first_wait: float = 0.1) -> None:
    """Make the store hold exactly these records of these files. The number of requests grows with bytes, not with files.

    May be cancelled or fail between any two requests; running again, with whatever content, makes it good. When another run
    is found at work on the same files, it waits (``first_wait`` seconds, then longer) and starts again, eight times in all,
    then raises SinkUnavailable.
    """
    for attempt in range(_ATTEMPTS):
        if attempt:
            await asyncio.sleep(apart(attempt, first=first_wait))
        if await _replace(store, files):
            return
    raise SinkUnavailable("another run keeps writing the same files to this sink; run again when it has ended")


async def _replace(store: GenerationStore[W], files: Sequence[FileWrites[W]]) -> bool:
    """One attempt; False when records just written are gone again, with every old version still in place unless it is heads.

    Of runs that delete each other's versions, the one that deletes last finds its own head gone when it looks after that.
    """
    if not files:
        return True
    held = _by_file(await store.read_heads([file.key for file in files]))
    await _empty(store, [head for file in files if not file.writes for head in held.get(file.key, [])])
    plans = [_plan(file, held.get(file.key, [])) for file in files if file.writes]
    heads = [plan.head for plan in plans]
    requests = slices(heads, count=store.max_records, size=store.max_bytes, size_of=attrgetter("size"))
    await each(requests, store.upsert, concurrency=store.concurrency)
    bodies = [(plan.head, plan.writes[1:]) for plan in plans if len(plan.writes) > 1]
    requests = _headed(bodies, store.max_records, store.max_bytes, attrgetter("size"))
    await each(requests, store.upsert, concurrency=store.concurrency)
    if not await _all_there(store, [write.id for plan in plans for write in plan.writes], store.count_present):
        return False
    stale = [plan.key.ids(generation) for plan in plans for generation in plan.stale]
    await _delete_headed(store, stale)
    await store.sweep(files)
    return await _all_there(store, [plan.writes[0] for plan in plans], store.clear_pending)


async def remove_generations(store: GenerationStore[W], keys: Sequence[FileKey]) -> None:
    """Delete every record that any head of these files names."""
    if keys:
        await _empty(store, await store.read_heads(keys))


def to_snapshots(heads: Iterable[Head]) -> list[Snapshot]:
    """One snapshot a file; its ``record_set_hash`` begins with ``pending:`` unless one unmarked head is all there is."""
    return [_snapshot(of_file) for of_file in _by_file(heads).values()]


def _snapshot(heads: Sequence[Head]) -> Snapshot:
    first = min(heads, key=lambda head: (head.pending is None, head.generation))
    if len(heads) == 1 and first.pending is None:
        return first.snapshot
    marker = first.pending or _marker(sorted(head.generation for head in heads))
    return replace(first.snapshot, record_set_hash=PENDING_PREFIX + marker)


def _by_file(heads: Iterable[Head]) -> dict[FileKey, list[Head]]:
    files: dict[FileKey, list[Head]] = {}
    for head in heads:
        files.setdefault(head.key, []).append(head)
    return files


@dataclass(frozen=True, slots=True)
class _Plan(Generic[W]):
    """``head`` is the first of ``writes``, marked; ``stale`` are the generations that have to go."""

    key: FileKey
    writes: Sequence[W]
    head: W
    stale: Sequence[Generation]


def _plan(file: FileWrites[W], heads: Sequence[Head]) -> _Plan[W]:
    """A record set has one count: where a head gives another of the very set that is written, it was altered."""
    found = {generation for head in heads for generation in head.named()}
    stale = sorted(generation for generation in found if generation.record_set_hash != file.record_set_hash)
    head = file.writes[0].marked(_marker([file.generation, *stale]))
    return _Plan(file.key, file.writes, head, stale)


async def _all_there(store: GenerationStore[W], items: Sequence[T], count: Callable[[list[T]], Awaitable[int]]) -> bool:
    """Whether ``count`` finds all of these records; only another run on the same files can have deleted one."""
    found: list[int] = []

    async def note(some: list[T]) -> None:
        found.append(await count(some))

    await each(slices(items, count=store.max_ids), note, concurrency=store.concurrency)
    return sum(found) >= len(items)


async def _empty(store: GenerationStore[W], heads: Sequence[Head]) -> None:
    """Mark the heads, delete what they name, and them last: until nothing is left, something says that it is not whole."""
    head_ids = {head.id: head for head in heads if head.generation.has_ids}
    unmarked = [found for found, head in head_ids.items() if head.pending is None]
    await each(slices(unmarked, count=store.max_ids), lambda ids: store.mark(ids, EMPTYING), concurrency=store.concurrency)
    named = sorted({(head.key, generation) for head in heads for generation in head.named()})
    groups = [key.ids(generation) for key, generation in named]
    rest = [found for ids in groups for found in ids if found not in head_ids]
    await each(slices(rest, count=store.max_ids), store.delete, concurrency=store.concurrency)
    await _delete_headed(store, groups)


async def _delete_headed(store: GenerationStore[W], groups: Iterable[Sequence[str]]) -> None:
    """Delete the records of each group, its head in the request of the others if one can hold them."""
    requests = _headed([(ids[0], ids[1:]) for ids in groups], store.max_ids, 0, lambda _: 0)
    await each(requests, store.delete, concurrency=store.concurrency)


def _marker(generations: Iterable[Generation]) -> str:
    return ",".join(map(str, generations))


def _parse_marker(marker: str) -> list[Generation]:
    """What its entries name; one that another program has altered names nothing."""
    parts = (entry.rpartition(":") for entry in marker.split(","))
    return [Generation(digest, int(count)) for digest, _, count in parts if digest and count.isdecimal()]


def _headed(groups: Iterable[tuple[T, Sequence[T]]], count: int, size: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Requests of at most ``count`` items and ``size``; each group behind its head, in one request if one can hold it."""
    request: list[T] = []
    held = 0
    for head, items in groups:
        for part in list(slices(items, count=count - 1, size=size - size_of(head), size_of=size_of)) or [[]]:
            piece = [head, *part]
            grown = sum(map(size_of, piece))
            if request and (len(request) + len(piece) > count or held + grown > size):
                yield request
                request, held = [], 0
            request += piece
            held += grown
    if request:
        yield request
