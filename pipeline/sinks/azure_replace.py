"""The requests a replace in Azure AI Search consists of; their order is ``pipeline.sinks.generations``'.

What belongs here: writing, and waiting until what was written can be found. The vendor documents that a change is durable when
it is answered and searchable some seconds later, and nothing about when a lookup by key shows it. So searches alone tell what
a reader sees, and after every round they are asked, for the ids that were written, until they tell it. Whether a document
is there at all, visible or not, is known where changes are made: a merge into one that is not there fails with 404
(documented by the vendor). That tells a search that lags from another run that undoes what this one does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

from pipeline.errors import IndexportError, RecordRefused, SinkUnavailable
from pipeline.sinks.azure_documents import HEAD_FIELDS, Document, to_head
from pipeline.sinks.azure_layout import PENDING
from pipeline.sinks.azure_query import one_of, scope, without_file
from pipeline.sinks.azure_store import MAX_PAGE, Action, AzureStore, Failure
from pipeline.sinks.backoff import backoff
from pipeline.sinks.file_keys import FileKey, by_config
from pipeline.sinks.generations import FileWrites, FirstFound, Head, remove_generations, replace_generations
from pipeline.sinks.records import json_string
from pipeline.sinks.slicing import each, slices

FILES_PER_REQUEST: Final = 500

_REQUEST_BYTES: Final = 12_000_000
_CONCURRENCY: Final = 4
_FIRST_POLL: Final = 0.1
_LONGEST_POLL: Final = 2.0
_PROBES: Final = frozenset({3, 6, 12})
"""Polls after which documents are asked for where changes are made; then after every 24th."""

_PROBED: Final = 20
_ATTEMPTS: Final = 5
_VERSION_FIELDS: Final = ("id", "chunk_index", *HEAD_FIELDS)
_UNFIT: Final = 400
_NOT_THERE: Final = 404

Wanted = Literal["present", "absent", "unmarked"]


class _DocumentsRefused(IndexportError):
    """Documents the service will not hold, by id, with its own words."""

    def __init__(self, failures: Mapping[str, Failure]) -> None:
        super().__init__(f"Azure AI Search refuses {len(failures)} documents")
        self.failures = failures


class AzureWriter:
    """Writes to one index for one tenant; also what ``replace_generations`` needs of it (a GenerationStore)."""

    max_records: Final = MAX_PAGE
    max_bytes: Final = _REQUEST_BYTES
    max_ids: Final = MAX_PAGE
    concurrency: Final = _CONCURRENCY

    def __init__(self, store: AzureStore, tenant_id: str, visibility_seconds: float) -> None:
        self._store = store
        self._tenant_id = tenant_id
        self._visibility_seconds = visibility_seconds
        self._unseen: dict[str, Wanted] = {}
        """What was written and not yet found as it was written: the last word on every document."""
        self._first_found = FirstFound()

    async def replace(self, files: Sequence[FileWrites[Document]]) -> list[RecordRefused]:
        """Make the index hold exactly these records of these files, and wait until searches say so.

        A file the service will not hold keeps its old version; the others are written. Versions that show only now, because
        a run that ended half way had just written them, are replaced too.
        """
        refused: list[RecordRefused] = []
        self._first_found = FirstFound()
        for attempt in range(1, _ATTEMPTS + 1):
            accepted = await self._write(files, refused)
            await self.settle()
            files = await self._sweep(accepted)
            if not files:
                return refused
            await asyncio.sleep(poll_wait(attempt))
        raise SinkUnavailable("another run keeps writing the same files to this sink; run again when it has ended")

    async def _write(self, files: Sequence[FileWrites[Document]], refused: list[RecordRefused]) -> Sequence[FileWrites[Document]]:
        """Replace these files but for those that go to ``refused``; the ones that were replaced."""
        while files:
            try:
                await replace_generations(self, files)
                return files
            except _DocumentsRefused as error:
                bad = [file for file in files if not error.failures.keys().isdisjoint(file.ids)]
                refused += [_refusal(file, error.failures) for file in bad]
                await self._withdraw(bad)
                files = [file for file in files if file not in bad]
        return files

    async def _withdraw(self, files: Sequence[FileWrites[Document]]) -> None:
        """Delete what has been written of these files' new versions, unless it is all there was before."""
        written = [found for file in files if not self._first_found.was_all(file) for found in file.ids]
        await each(slices(written, count=self.max_ids), self.delete, concurrency=_CONCURRENCY)
        await self.settle()

    async def sweep(self, files: Sequence[FileWrites[Document]]) -> None:
        """Nothing yet: ``replace`` does it when searches show what was written and deleted."""

    async def _sweep(self, files: Sequence[FileWrites[Document]]) -> list[FileWrites[Document]]:
        """The files of which searches find other versions; records of versions without a legible head are deleted."""
        hashes = sorted({file.record_set_hash for file in files})
        disturbed: set[tuple[str, str]] = set()
        for (_, config), file_ids in by_config(file.key for file in files).items():
            others = f"{scope(self._tenant_id, config, file_ids)} and not ({one_of('record_set_hash', hashes)})"
            pages = self._store.pages("look for other versions", others, _VERSION_FIELDS)
            found = [row async for rows in pages for row in rows]
            heads = [(row["id"], head) for row in found if row["chunk_index"] == 0 and (head := to_head(row))]
            headed = {
                head.generation.record_set_hash for found_id, head in heads if head.generation.has_ids and head.id == found_id
            }
            disturbed |= {(config, row["parsed_directory_file_id"]) for row in found if row["record_set_hash"] in headed}
            await self._delete_all([row["id"] for row in found if row["record_set_hash"] not in headed])
        return [file for file in files if (file.key.export_config_id, file.key.file_id) in disturbed]

    async def remove(self, keys: Sequence[FileKey]) -> None:
        """Delete every record of these files, by computed ids, then whatever else searches find; wait until they find none."""
        for some in slices(keys, count=FILES_PER_REQUEST):
            await remove_generations(self, some)
            await self.settle()
            for (_, config), file_ids in by_config(some).items():
                await self._delete_found(scope(self._tenant_id, config, file_ids))

    async def remove_nameless(self, export_config_id: str) -> None:
        """Delete the records of a config that say of no file."""
        await self._delete_found(without_file(self._tenant_id, export_config_id))

    async def _delete_found(self, where: str) -> None:
        pages = self._store.pages("find what is left", where, ["id"])
        await self._delete_all([row["id"] async for rows in pages for row in rows])

    async def _delete_all(self, ids: Sequence[str]) -> None:
        await each(slices(ids, count=self.max_ids), self.delete, concurrency=_CONCURRENCY)
        await self.settle()

    async def read_heads(self, keys: Sequence[FileKey]) -> list[Head]:
        await self.settle()
        heads: list[Head] = []
        for some in slices(keys, count=FILES_PER_REQUEST):
            for (_, config), file_ids in by_config(some).items():
                where = f"{scope(self._tenant_id, config, file_ids)} and chunk_index eq 0"
                pages = self._store.pages("look up files", where, HEAD_FIELDS)
                heads += [head async for rows in pages for row in rows if (head := to_head(row))]
        self._first_found.note(keys, heads)
        return heads

    async def upsert(self, writes: Sequence[Document]) -> None:
        lines = [Action(write.id, b'{"@search.action":"upload",' + write.members + b"}") for write in writes]
        failures = await self._store.change("write records", lines)
        for failure in failures.values():
            if failure.status != _UNFIT:
                raise _impossible("write records", failure)
        if failures:
            raise _DocumentsRefused(failures)
        self._expect("present", [write.id for write in writes])

    async def mark(self, ids: Sequence[str], marker: str) -> None:
        await self._merge("mark records", ids, f'"{PENDING}":{json_string(marker)}')

    async def clear_pending(self, heads: Sequence[Document]) -> int:
        ids = [head.id for head in heads]
        gone = await self._merge("unmark records", ids, f'"{PENDING}":null')
        self._expect("unmarked", ids)
        return len(ids) - len(gone)

    async def _merge(self, action: str, ids: Sequence[str], members: str) -> set[str]:
        """Set fields of those of these documents that exist; which do not."""
        lines = [Action(found, f'{{"@search.action":"merge","id":"{found}",{members}}}'.encode()) for found in ids]
        failures = await self._store.change(action, lines)
        for failure in failures.values():
            if failure.status != _NOT_THERE:
                raise _impossible(action, failure)
        return set(failures)

    async def delete(self, ids: Sequence[str]) -> None:
        lines = [Action(found, f'{{"@search.action":"delete","id":"{found}"}}'.encode()) for found in ids]
        failures = await self._store.change("delete records", lines)
        for failure in failures.values():
            raise _impossible("delete records", failure)
        self._expect("absent", ids)

    async def count_present(self, ids: Sequence[str]) -> int:
        """How many of these records searches find, once they find all that were written."""
        missing = await self._await("present", ids)
        return len(ids) - len(missing)

    def _expect(self, wanted: Wanted, ids: Iterable[str]) -> None:
        for found in ids:
            self._unseen.pop(found, None)
            self._unseen[found] = wanted

    async def settle(self) -> None:
        """Wait until searches find everything as it was written. Raises SinkUnavailable when that takes too long."""
        due: dict[Wanted, list[str]] = {}
        for found, wanted in self._unseen.items():
            due.setdefault(wanted, []).append(found)
        waits = [(wanted, some) for wanted, ids in due.items() for some in slices(ids, count=MAX_PAGE)]

        async def wait_for(one: tuple[Wanted, list[str]]) -> None:
            await self._await(*one)

        await each(waits, wait_for, concurrency=_CONCURRENCY)

    async def _await(self, wanted: Wanted, ids: Sequence[str]) -> Collection[str]:
        """Poll until these documents are as wanted; those that another run has made otherwise."""
        deadline = time.monotonic() + self._visibility_seconds
        poll = 0
        due: Collection[str] = list(ids)
        overruled: Collection[str] = ()
        while due := await self._unlike(wanted, due):
            poll += 1
            if (poll in _PROBES or poll % 24 == 0) and await self._is_overruled(wanted, due):
                overruled = due
                break
            if time.monotonic() > deadline:
                self._forget(wanted, ids)
                raise SinkUnavailable(
                    f"Azure AI Search index {self._store.index!r} does not show {len(due)} changes it has answered within "
                    f"{self._visibility_seconds:g} s; run again, or raise visibility_timeout_seconds"
                )
            await asyncio.sleep(poll_wait(poll))
        self._forget(wanted, ids)
        return overruled

    def _forget(self, wanted: Wanted, ids: Iterable[str]) -> None:
        for found in ids:
            if self._unseen.get(found) == wanted:
                del self._unseen[found]

    async def _unlike(self, wanted: Wanted, ids: Collection[str]) -> list[str]:
        """Those of these documents that searches do not find as wanted."""
        where = one_of("id", list(ids))
        if wanted == "unmarked":
            where = f"{where} and {PENDING} ne null"
        found = {row["id"] for row in await self._store.rows("see what is written", where, ["id"])}
        return [one for one in ids if (one in found) != (wanted == "present")]

    async def _is_overruled(self, wanted: Wanted, ids: Sequence[str]) -> bool:
        """Whether documents are not there that should be found, or are there that should not."""
        if wanted == "unmarked":
            return False
        some = ids[:_PROBED]
        gone = await self._merge("look for records", some, f'"tenant_id":{json_string(self._tenant_id)}')
        return bool(gone) if wanted == "present" else len(gone) < len(some)


def poll_wait(poll: int) -> float:
    """Seconds after this poll, counted from 1, until searches are asked again whether they show a change."""
    return backoff(poll, first=_FIRST_POLL, longest=_LONGEST_POLL)


def _impossible(action: str, failure: Failure) -> SinkUnavailable:
    return SinkUnavailable(f"Azure AI Search cannot {action}: {failure.status}, {failure.message}")


def _refusal(file: FileWrites[Document], failures: Mapping[str, Failure]) -> RecordRefused:
    index, told = next((index, failures[found]) for index, found in enumerate(file.ids) if found in failures)
    return RecordRefused(file.key.file_id, f"Azure AI Search refuses chunk {index}: {told.status}, {told.message}")
