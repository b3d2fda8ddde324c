"""The storage_context sink: LlamaIndex's own files in a folder, local or in an object store, no database at all.

What belongs here: what each promise of a sink becomes there. ``{uri}/{prefix}-{model.slug}/{config}/CURRENT`` names the
folder to give to ``StorageContext.from_defaults(persist_dir=...)``; ``load_index_from_storage`` then answers the index.

A replace is durable, and visible to every reader, when it returns: it has then written a new generation, complete and in
a folder of its own, and moved CURRENT to it. Readers of the old one go on reading it, until as many generations as are
kept have followed. So every call costs a rewrite of the whole index, which is why it has a size limit, and why callers
should give it many files at once: a run hands over all it carries, up to 32,768 chunks, so with
``detection.files_per_run`` set higher a first load of many small files rewrites less often. A crash leaves CURRENT where
it was. Writers of one config take turns by a lease.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.exact_search import ExactIndex
from pipeline.sinks.filters import fields_of_file, parse_filters
from pipeline.sinks.records import FileRecords, canonical_json, record_schema
from pipeline.sinks.refusals import check_vectors, sift
from pipeline.sinks.storage_context_files import FolderStore
from pipeline.sinks.storage_context_generation import altered
from pipeline.sinks.storage_context_index import ConfigIndex, Limits
from pipeline.sinks.storage_context_lease import Lease, held_lease
from pipeline.urls import one_spelling

T = TypeVar("T")

FORMAT: Final = "1"
MARKER: Final = "indexport.json"
_LEASE_SECONDS: Final = 60.0
_INDEX_NAME: Final = re.compile(r"[A-Za-z0-9_-]{0,64}-[0-9a-f]{16}")
"""What ``_index`` calls a config's folder; the marker, and what others leave beside these, is called otherwise."""


class StorageContextSettings(SinkSettings):
    """Where the folder lies, and how large an index in it may become."""

    uri: str = Field(description="Folder of the indexes: a local path, s3:// or any other fsspec URL.", min_length=1)
    prefix: str = Field(
        default="indexport", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="How the names of its folders begin."
    )
    max_records: int = Field(default=200_000, ge=1, description="Records of the largest index that is written.")
    max_bytes: int = Field(default=2 * 10**9, ge=1, description="Bytes of its records in memory, vectors included.")
    keep_generations: int = Field(default=3, ge=1, description="Versions kept for readers, the current one included.")
    lease_wait_seconds: float = Field(default=300.0, gt=0, description="How long to wait for another writer to end.")

    def place(self) -> tuple[object, ...]:
        return one_spelling(self.uri), self.prefix


class StorageContextExporter(Exporter):
    """One folder a model, ``{prefix}-{model.slug}``, and in it one a config, each a LlamaIndex index of its own."""

    settings_type = StorageContextSettings
    atomic_replace = True
    chunks_at_once = 32_768
    """About 160 MB of text and 384-dimensional vectors, 500 MB where they have 3,072. Each group rewrites the whole index."""
    settings: StorageContextSettings

    def __init__(self, settings: StorageContextSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self._store = FolderStore(settings.uri)
        self._root = f"{settings.prefix}-{context.model.slug}"
        self._limits = Limits(settings.max_records, settings.max_bytes)
        self._checks = (partial(fields_of_file, declared=context.metadata_fields), check_vectors)
        self._provisioned = False
        self._loaded: dict[str, tuple[str, ExactIndex]] = {}

    async def provision(self) -> None:
        """Mark the folder as ours and as this model's. There is nothing to be made for metadata fields."""
        await asyncio.to_thread(self._store.create, f"{self._root}/{MARKER}", self._marker())
        await asyncio.to_thread(self._check_marker)

    def _marker(self) -> bytes:
        model = self.context.model
        return canonical_json({"format": FORMAT, "model": model.fingerprint, "dimension": model.dimension}).encode()

    def _check_marker(self) -> None:
        """Raises SinkUnavailable for a folder that was never provisioned, SinkConflict for one that is not ours."""
        if self._provisioned:
            return
        found = self._store.read(f"{self._root}/{MARKER}")
        where = f"storage_context folder {self._root!r} at {self._store.shown}"
        if found is None:
            raise SinkUnavailable(f"{where} is not there; provision the sink first (a sync does)")
        if found != self._marker():
            raise SinkConflict(
                f"{where} is marked {found.decode(errors='replace')}, not {self._marker().decode()}; "
                "choose another prefix, or remove the folder if nothing needs it"
            )
        self._provisioned = True

    def _index(self, export_config_id: str) -> ConfigIndex:
        """The config's folder: a name people recognise, and a digest that tells tenants and odd names apart."""
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", export_config_id)[:64]
        digest = hashlib.sha256(canonical_json([self.context.tenant_id, export_config_id]).encode()).hexdigest()[:16]
        return self._index_at(f"{readable}-{digest}")

    def _index_at(self, name: str) -> ConfigIndex:
        return ConfigIndex(self._store, f"{self._root}/{name}", record_schema(self.context.model.dimension))

    def persist_dir(self, export_config_id: str) -> tuple[Any, str] | None:
        """The fsspec file system and folder of the config's current generation, for LlamaIndex; ``None`` before the first.

        Blocks. The folder stays until as many generations as are kept have followed.
        """
        self._check_marker()
        index = self._index(export_config_id)
        generation = index.current()
        return None if generation is None else (self._store.filesystem, index.location(generation))

    async def _read(self, work: Callable[[], T]) -> T:
        await asyncio.to_thread(self._check_marker)
        return await asyncio.to_thread(work)

    async def _change(self, index: ConfigIndex, work: Callable[[Lease], T]) -> T:
        """Work with the config's lease, which is not given back before the thread has ended, even when cancelled."""
        await asyncio.to_thread(self._check_marker)
        waiting = self.settings.lease_wait_seconds
        async with held_lease(self._store, index.lease_folder, seconds=_LEASE_SECONDS, wait=waiting) as lease:
            return await _to_the_end(partial(work, lease))

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """One new generation a config, whatever the number of files."""
        self.check_files(files)
        accepted, refused = await asyncio.to_thread(sift, files, self._checks)
        configs: dict[str, list[FileRecords]] = {}
        for file in accepted:
            configs.setdefault(file.provenance.export_config_id, []).append(file)
        total = ReplaceReport(0, 0, tuple(refused))
        for export_config_id, group in configs.items():
            index = self._index(export_config_id)
            total += await self._change(index, partial(index.replace, group, self._limits, self.settings.keep_generations))
        return total

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        index = self._index(export_config_id)
        state = await self._read(index.state)
        if state is not None and any(file_id in state.manifest.held for file_id in parsed_directory_file_ids):
            await self._change(index, partial(index.remove, parsed_directory_file_ids, self.settings.keep_generations))

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """Two small reads and a listing. Where somebody else has changed the files, no snapshot matches anything."""
        state = await self._read(self._index(export_config_id).state)
        if state is None:
            return []
        wanted = None if parsed_directory_file_ids is None else set(parsed_directory_file_ids)
        found = [item.snapshot for file_id, item in state.manifest.held.items() if wanted is None or file_id in wanted]
        return found if state.intact else [altered(snapshot) for snapshot in found]

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Tables of about 16 MB (more only for a file that alone is larger), all of one generation."""
        await asyncio.to_thread(self._check_marker)
        wanted = None if parsed_directory_file_ids is None else pa.array(parsed_directory_file_ids, pa.string())
        tables = self._index(export_config_id).tables()
        try:
            while (table := await _to_the_end(lambda: next(tables, None))) is not None:
                if wanted is not None:
                    table = table.filter(pc.is_in(table["parsed_directory_file_id"], value_set=wanted))
                if table.num_rows:
                    yield table
        finally:
            await asyncio.to_thread(tables.close)

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Exact; the config's index is loaded into memory once a generation."""
        self.check_search(request)
        conditions = parse_filters(request.filters, self.context.metadata_fields)
        vector = cast("npt.NDArray[np.float32]", request.vector)
        index = await self._read(partial(self._load, request.export_config_id))
        return [] if index is None else await asyncio.to_thread(index.nearest, vector, request.k, conditions)

    def _load(self, export_config_id: str) -> ExactIndex | None:
        index = self._index(export_config_id)
        loaded = self._loaded.get(export_config_id)
        if loaded is not None and loaded[0] == index.current():
            return loaded[1]
        held = index.table()
        if held is None:
            return None
        generation, records = held
        self._loaded = {export_config_id: (generation, ExactIndex(records, self.context.metadata_fields))}
        return self._loaded[export_config_id][1]

    async def purge_history(self) -> None:
        """Remove all generations but the current one, of every config in the folder."""
        for index in await self._read(self._all_indexes):
            await self._change(index, index.purge)

    async def list_scopes(self) -> frozenset[tuple[str, str]]:
        """A listing, and three requests a config: there are as many as exports ever wrote here."""
        indexes = await self._read(self._all_indexes)
        states = [await asyncio.to_thread(index.state) for index in indexes]
        return frozenset(state.manifest.scope for state in states if state is not None and state.manifest.held)

    def _all_indexes(self) -> list[ConfigIndex]:
        names = filter(_INDEX_NAME.fullmatch, sorted(self._store.sizes(self._root)))
        return [self._index_at(name) for name in names]

    async def drop_collection(self) -> None:
        """Remove the model's folder with all indexes in it."""
        await self._read(partial(self._store.remove, self._root))
        self._provisioned = False
        self._loaded = {}

    async def close(self) -> None:
        self._loaded = {}


async def _to_the_end(work: Callable[[], T]) -> T:
    """Work in a thread, which has ended when this has, even when cancelled."""
    running = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
