"""The llama_index sink: any vector store and docstore LlamaIndex has, given by import path and arguments.

What belongs here: what each promise of a sink becomes on stores of which nothing is known but LlamaIndex's interface.

Of vector stores LlamaIndex asks for ``add``, ``delete`` of a document and ``query``, and no more. So everything a sink must
be able to read back lies in the docstore: record sets, vectors included, and what is known of every file. The vector store
finds; the docstore answers, with exact scores and filters. Where a vector store can delete nodes by id, a new version is
written before the old one is removed, and readers may briefly see both; where it cannot, readers may briefly see neither.

Verification therefore proves the docstore. A deep one also asks the vector store for each file's first record, by its vector
and, where a search does not show it, by its id: a vector store that has lost its data, or files of it, is found and repaired, not
one that lacks other records alone. ``rebuild sink`` writes every file again whatever the docstore says; a file may briefly not
be found meanwhile.

Deletes ask the vector store too for files the docstore knows nothing of: it may have lost its data. Whether anything is left
there is proved by ``get_nodes`` where a store has that (Chroma, Milvus and others); of others an erasure says that it cannot be
proved. What a docstore that lost its data knew as a file's old version stays in the vector store until that file is deleted:
searches of the sink pass it over, LlamaIndex's own find it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import RecordRefused
from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.exact_search import ExactIndex
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.filters import Condition, fields_of_file, parse_filters
from pipeline.sinks.llama_index_objects import Builder, ObjectSettings
from pipeline.sinks.records import FileRecords, canonical_json
from pipeline.sinks.refusals import check_vectors, encode_all, sift
from pipeline.sinks.slicing import file_slices

if TYPE_CHECKING:
    from pipeline.sinks.llama_index_stores import EncodedFile, Stores

T = TypeVar("T")

_FILES_AT_ONCE: Final = 200
_BYTES_AT_ONCE: Final = 16 * 2**20


class LlamaIndexSettings(SinkSettings):
    """The two stores. The docstore's class or factory must take ``namespace``, as LlamaIndex's key-value docstores do."""

    vector_store: ObjectSettings = Field(
        description="LlamaIndex's store: `class`, an import path, and `args`, which may be such objects themselves; ${NAME} is "
        "an environment variable, {collection} the model's own name for its collection, {dimension} the number."
    )
    docstore: ObjectSettings = Field(description="The docstore beside it, said in the same way; it must take `namespace`.")
    prefix: str = Field(
        default="indexport",
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$",
        description="How the names of its collections and namespaces begin.",
    )
    in_memory: bool = Field(
        default=False,
        description="The vector store lives in memory (FAISS): make it from the docstore when it is searched after a change.",
    )
    max_file_bytes: int = Field(
        default=12_000_000, ge=1, description="Largest record set of a file, as it lies in the docstore; MongoDB takes 16 MB."
    )
    max_depth: int = Field(default=16_384, ge=1, description="Most results the vector store is asked for at once.")
    errors: tuple[str, ...] = Field(
        default=(), description="Import paths (module:Class) of errors that mean that a store cannot be used."
    )

    def place(self) -> tuple[object, ...]:
        return self.vector_store, self.docstore, self.prefix


class LlamaIndexExporter(Exporter):
    """One collection and one set of namespaces a model, shared by all tenants and configs."""

    settings_type = LlamaIndexSettings
    ids_by_version = True
    settings: LlamaIndexSettings
    _opened: ClassVar[dict[str, Stores]] = {}
    _users: ClassVar[dict[str, int]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: LlamaIndexSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self.collection = f"{settings.prefix}_{context.model.slug.replace('-', '_')}"
        self._builder = Builder(self.collection, context.model.dimension, settings.errors)
        self._held: tuple[str, Stores] | None = None
        self._provisioned = False
        self._checks = (partial(fields_of_file, declared=context.metadata_fields), check_vectors)

    async def provision(self) -> None:
        """Open the stores, which make themselves, and mark the docstore as this model's."""
        await self._run("provision", lambda stores: stores.mark(self._marker()), checked=False)

    def _marker(self) -> str:
        from pipeline.sinks.llama_index_stores import marker_of

        return marker_of(self.context.model.fingerprint, self.context.model.dimension)

    async def _run(self, action: str, work: Callable[[Stores], T], *, checked: bool = True) -> T:
        return await asyncio.to_thread(self._blocking, action, work, checked)

    def _blocking(self, action: str, work: Callable[[Stores], T], checked: bool) -> T:
        with self._builder.errors(action):
            stores = self._stores()
            if checked and not self._provisioned:
                stores.check(self._marker())
                self._provisioned = True
            return work(stores)

    def _stores(self) -> Stores:
        """Opened once in a process for all exporters that mean the same: several clients of one local store would clash."""
        if self._held is not None:
            return self._held[1]
        settings = canonical_json(self.settings.model_dump(mode="json", by_alias=True))
        with self._opening:
            self._builder.resolve(self.settings.vector_store, self.settings.docstore)
            resolved = canonical_json([settings, self.collection, self.context.model.dimension, self._builder.secrets])
            name = hashlib.sha256(resolved.encode()).hexdigest()
            if name not in self._opened:
                self._opened[name] = self._open()
            self._users[name] = self._users.get(name, 0) + 1
            self._held = (name, self._opened[name])
            return self._held[1]

    def _open(self) -> Stores:
        namespaces = (f"{self.collection}{suffix}" for suffix in ("", "_records", "_states"))
        docstores = [self._builder.build(self.settings.docstore, namespace=namespace) for namespace in namespaces]
        from pipeline.sinks.llama_index_stores import Stores  # when it is known that there is a LlamaIndex

        make_vectors = partial(self._builder.build, self.settings.vector_store)
        return Stores(make_vectors, *docstores, in_memory=self.settings.in_memory)

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """Batches of up to 200 files or about 16 MB: see the module."""
        self.check_files(files)
        accepted, refused = await asyncio.to_thread(sift, files, self._checks)
        filled = [file for file in accepted if file.table.num_rows]
        records, size = 0, 0
        for batch in file_slices(filled, count=_FILES_AT_ONCE, size=_BYTES_AT_ONCE):
            encoded, too_large = await asyncio.to_thread(encode_all, batch, self._encode)
            refused += too_large
            await self._run("replace files", partial(_replace, files=encoded))
            records += sum(item.file.table.num_rows for item in encoded)
            size += sum(len(item.encoded) for item in encoded)
        # Last: some vector stores delete nothing before something was added.
        empty = [self._key(file.provenance.export_config_id, file.file_id) for file in accepted if not file.table.num_rows]
        await self._run("remove files", lambda stores: stores.remove(empty))
        return ReplaceReport(records, size, tuple(refused))

    def _encode(self, file: FileRecords) -> EncodedFile:
        """Raises RecordRefused for a record set larger than a document may be."""
        from pipeline.sinks.llama_index_documents import encode_records
        from pipeline.sinks.llama_index_stores import EncodedFile

        text = encode_records(file)
        if len(text) > self.settings.max_file_bytes:
            raise self._too_large(file, len(text))
        return EncodedFile(file, text)

    def _too_large(self, file: FileRecords, size: int) -> RecordRefused:
        limit = self.settings.max_file_bytes
        return RecordRefused(
            file.file_id,
            f"its record set makes a document of {size:,} bytes, the docstore is given {limit:,} at most (max_file_bytes); "
            "split the file, or raise the limit if the docstore takes more",
        )

    def _key(self, export_config_id: str, file_id: str) -> FileKey:
        return FileKey(self.context.tenant_id, export_config_id, file_id)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        keys = [self._key(export_config_id, file_id) for file_id in parsed_directory_file_ids]
        await self._run("delete files", lambda stores: stores.remove(keys))

    async def count_unread(self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str]) -> int | None:
        """Nodes of the vector store, one request a file; ``None`` for one that LlamaIndex cannot ask for nodes by a filter."""
        keys = [self._key(export_config_id, file_id) for file_id in parsed_directory_file_ids]
        return await self._run("look for what is left", lambda stores: stores.left(keys))

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One read of all snapshots in the docstore, other configs' included, or one each of up to 1,000 files that are named."""
        named = parsed_directory_file_ids
        keys = None if named is None else [self._key(export_config_id, file_id) for file_id in named]
        states = await self._run("list snapshots", lambda stores: stores.states(keys))
        return [state.to_snapshot() for state in states if state.key == self._key(export_config_id, state.key.file_id)]

    async def list_scopes(self) -> frozenset[tuple[str, str]]:
        states = await self._run("list scopes", lambda stores: stores.states())
        return frozenset((state.key.tenant_id, state.key.export_config_id) for state in states)

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """What the docstore holds, in tables of about 16 MB (more only for a file that alone is larger)."""
        snapshots = await self.list_snapshots(
            export_config_id=export_config_id, parsed_directory_file_ids=parsed_directory_file_ids
        )
        waiting: list[pa.Table] = []
        size = 0
        for snapshot in snapshots:
            key = self._key(export_config_id, snapshot.parsed_directory_file_id)
            table = await self._run("read records", partial(_current_records, key=key))
            if table is not None:
                waiting.append(table)
                size += table.nbytes
            if size >= _BYTES_AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting, size = [], 0
        if waiting:
            yield pa.concat_tables(waiting)

    async def unfound_files(self, records: pa.Table) -> frozenset[str]:
        """By each file's first vector: see ``llama_index_proof``. A vector store in memory is made of what the docstore holds."""
        from pipeline.sinks.llama_index_proof import unfound

        if self.settings.in_memory:
            return frozenset()
        return await self._run("search", lambda stores: unfound(stores, records, self.settings.max_depth))

    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """Asks the vector store for more and more until enough of what it finds meets the filters; scores are exact.

        Past ``max_depth`` results of others, or of files the filters exclude, it answers with what it has found.
        """
        self.check_search(request)
        conditions = parse_filters(request.filters, self.context.metadata_fields)
        return await self._run("search", partial(self._search, request=request, conditions=conditions))

    def _search(self, stores: Stores, request: SearchRequest, conditions: Sequence[Condition]) -> list[SearchHit]:
        vector = cast("npt.NDArray[np.float32]", request.vector)
        loaded: dict[tuple[FileKey, str], pa.Table | None] = {}
        depth = min(2 * request.k, self.settings.max_depth)
        while True:
            found = stores.nearest(vector.tolist(), depth).addresses
            rows = []
            for address in found:
                if address is None or address.key != self._key(request.export_config_id, address.key.file_id):
                    continue
                version = (address.key, address.record_set_hash)
                if version not in loaded:
                    loaded[version] = stores.records(address.key, Generation(address.record_set_hash, 0))
                table = loaded[version]
                if table is not None:
                    rows.append(table.slice(address.chunk_index, 1))
            hits = (
                ExactIndex(pa.concat_tables(rows), self.context.metadata_fields).nearest(vector, request.k, conditions)
                if rows
                else []
            )
            if len(hits) == request.k or len(found) < depth or depth == self.settings.max_depth:
                return hits
            depth = min(4 * depth, self.settings.max_depth)

    async def renew(self, *, export_config_id: str) -> None:
        """All files of the config are written again: what the docstore says proves nothing of the vector store."""
        await self._run("renew", lambda stores: stores.distrust(self.context.tenant_id, export_config_id))

    async def close(self) -> None:
        """The last exporter of a process to let go of the stores lets them go."""
        if self._held is None:
            return
        name, self._held, self._provisioned = self._held[0], None, False
        with self._opening:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name], self._opened[name]


def _replace(stores: Stores, files: Sequence[EncodedFile]) -> None:
    if files:
        stores.replace(files)


def _current_records(stores: Stores, key: FileKey) -> pa.Table | None:
    """Of the version that was complete last, or of the one that is being written where that is gone."""
    state = stores.state(key)
    if state is None:
        return None
    current = Generation(state.snapshot.record_set_hash, state.snapshot.chunk_count)
    tables = (stores.records(key, generation) for generation in (current, *state.generations))
    return next((table for table in tables if table is not None), None)
