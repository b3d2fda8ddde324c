"""The llama_docstore sink: LlamaIndex's docstore and index store beside a vector sink, as in "Pinecone and MongoDB".

What belongs here: what each promise of a sink becomes on a key-value store of which nothing is known but LlamaIndex's interface.

The vector sink holds vectors and texts; this one holds the same nodes under the same ids, every document's ``ref_doc_info`` and
hash, and the index to load. With both, ``load_index_from_storage``, ``delete_ref_doc`` and an ingestion pipeline's upserts work
on exported files as on those LlamaIndex has ingested itself. MongoDB is the default; any key-value store LlamaIndex has will do.

Every tenant and config has a namespace of its own, so that LlamaIndex finds one index in it and nobody else's documents. It
holds no vectors and is not searched. The two sinks are written one after the other: until a run ends, one may be ahead.

Of the vector sinks only Pinecone's keeps every tenant and config in a namespace of its own, too. The others share a table or
collection, and an index that is loaded beside LlamaIndex's own store of one (``PGVectorStore``, ...) may answer with everybody's
records, whatever its docstore holds: load it beside ``open_index(...).vector_store``, which asks for those of its tenant and
config alone. That takes ``list_nodes: false``, and no ``store_nodes_override``.

LlamaIndex deletes from the docstore of a vector store that keeps texts, as all of these do, only when the index was loaded with
``store_nodes_override=True`` and lists its nodes (``list_nodes``, up to date after every run and removal); otherwise tell the
docstore itself. An index keeps the list it was loaded with, and writes all of it whenever it deletes, so load it anew after a
run: a list that was written back makes ``delete_ref_doc`` fail half way, until the next run or repair writes it again. What
LlamaIndex deletes or changes here comes back with the next repair, as in every sink: do it at its source. A deep verification
compares that list, every document and a document's hash too, and ``rebuild sink`` brings back whichever is gone. (Hashes of
nodes are written with them and not compared.)

A document's hash is that of the ``Document`` kept under its id, by LlamaIndex's definition: of its text and its metadata. So
an ingestion pipeline (strategy ``UPSERTS``) that is given that document again skips it. The same file loaded by another reader
has another text, or other metadata, hence another hash, and replaces ours. ``UPSERTS_AND_DELETE`` deletes what it was not given:
never run it on these namespaces.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.errors import RecordRefused
from pipeline.quoting import quoted
from pipeline.sinks.base import Exporter, ReplaceReport, SearchHit, SearchRequest, SinkContext, SinkSettings, Snapshot
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.filters import fields_of_file
from pipeline.sinks.llama_index_objects import Builder, ObjectSettings
from pipeline.sinks.records import FileRecords, canonical_json, chunk_ids
from pipeline.sinks.refusals import encode_all, sift
from pipeline.sinks.registry import check_known, exporter_class
from pipeline.sinks.slicing import file_slices, slices

if TYPE_CHECKING:
    from pipeline.sinks.llama_docstore_entries import FileEntries, HeldFile
    from pipeline.sinks.llama_docstore_store import DocstoreNamespace, StaleIndexes

T = TypeVar("T")

_FILES_AT_ONCE: Final = 200
_BYTES_AT_ONCE: Final = 16 * 2**20
_NODES_AT_ONCE: Final = 2_000
_INTEGERS: Final = range(-(2**63), 2**63)


def _mongodb() -> ObjectSettings:
    path = "llama_index.storage.kvstore.mongodb:MongoDBKVStore.from_uri"
    return ObjectSettings.model_validate({"class": path, "args": {"uri": "${MONGODB_URI}", "db_name": "llama_index"}})


class LlamaDocstoreSettings(SinkSettings):
    """Which sink it stands beside, and where."""

    vector_sink: str = Field(description="Type of the sink it stands beside (pinecone, pgvector, ...): nodes have its ids.")
    kvstore: ObjectSettings = Field(
        default_factory=_mongodb,
        description="LlamaIndex's key-value store: `class`, an import path, and `args`; ${NAME} is an environment variable.",
    )
    prefix: str = Field(
        default="indexport", pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$", description="How the names of its namespaces begin."
    )
    list_nodes: bool = Field(
        default=True,
        description="List every node in the index: what `store_nodes_override` needs, with which `delete_ref_doc` reaches the "
        "docstore. LlamaIndex then names them all in every query, which Qdrant's store and Indexport's own reader cannot use.",
    )
    max_entry_bytes: int = Field(
        default=12_000_000,
        ge=1,
        description="Largest node or document, as it lies in the store; MongoDB takes 16 MB. An index of more lists none.",
    )
    errors: tuple[str, ...] = Field(
        default=(), description="Import paths (module:Class) of errors that mean that the store cannot be used."
    )

    @field_validator("vector_sink")
    @classmethod
    def _is_known(cls, name: str) -> str:
        check_known(name)
        return name

    def place(self) -> tuple[object, ...]:
        return self.vector_sink, self.kvstore, self.prefix


class LlamaDocstoreExporter(Exporter):
    """One namespace a model, tenant and config: see ``namespace``."""

    settings_type = LlamaDocstoreSettings
    search_modes = frozenset()
    holds_vectors = False
    settings: LlamaDocstoreSettings

    def __init__(self, settings: LlamaDocstoreSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self.collection = f"{settings.prefix}-{context.model.slug}"
        self.ids_by_version = exporter_class(settings.vector_sink).ids_by_version
        self._builder = Builder(self.collection, context.model.dimension, settings.errors)
        self._kvstore: Any = None
        self._opening = threading.Lock()
        self._provisioned = False
        self._configs: set[str] = set()
        self._checks = (partial(fields_of_file, declared=context.metadata_fields), _check_metadata)

    def namespace(self, export_config_id: str) -> str:
        """LlamaIndex's docstore takes the namespace ``{this}/docstore``, its index store ``{this}/index_store``."""
        scope = canonical_json([self.context.tenant_id, export_config_id])
        return f"{self.collection}-{hashlib.sha256(scope.encode()).hexdigest()[:32]}"

    def storage_context(self, export_config_id: str, vector_store: Any) -> Any:
        """For ``load_index_from_storage``: a config's docstore and index store, beside LlamaIndex's store of the vector sink."""
        from llama_index.core import StorageContext
        from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
        from llama_index.core.storage.index_store.keyval_index_store import KVIndexStore

        from pipeline.sinks.llama_docstore_store import namespaces

        with self._builder.errors("be opened"):
            kvstore = self._opened()
        docstore, index_store = namespaces(self.namespace(export_config_id))
        return StorageContext.from_defaults(
            docstore=KVDocumentStore(kvstore, namespace=docstore),
            index_store=KVIndexStore(kvstore, namespace=index_store),
            vector_store=vector_store,
        )

    def ids(self, key: FileKey, version: Generation) -> Sequence[str]:
        """Those the vector sink gives the records of a version."""
        if self.ids_by_version:
            return key.ids(version)
        return chunk_ids(key.tenant_id, key.export_config_id, key.file_id, range(version.chunk_count))

    def _opened(self) -> Any:
        with self._opening:
            if self._kvstore is None:
                self._kvstore = self._builder.build(self.settings.kvstore)
            return self._kvstore

    def _marker(self) -> dict[str, Any]:
        model = self.context.model
        ids = "version" if self.ids_by_version else "file"
        return {"dimension": model.dimension, "format": "1", "ids_by": ids, "model": model.fingerprint}

    async def provision(self) -> None:
        """Mark the store as holding this model's namespaces, with this kind of ids."""
        await asyncio.to_thread(self._provision)

    def _provision(self) -> None:
        with self._builder.errors("provision"):
            kvstore = self._opened()
            from pipeline.sinks.llama_docstore_store import mark

            mark(kvstore, self.collection, self._marker())

    async def _run(self, action: str, export_config_id: str, work: Callable[[DocstoreNamespace], T]) -> T:
        self._configs.add(export_config_id)
        return await asyncio.to_thread(self._blocking, action, lambda kvstore: work(self._namespace(kvstore, export_config_id)))

    async def _noted(self, work: Callable[[StaleIndexes], T]) -> T:
        return await asyncio.to_thread(self._blocking, "note what an index lacks", lambda kvstore: work(self._stale(kvstore)))

    def _blocking(self, action: str, work: Callable[[Any], T]) -> T:
        with self._builder.errors(action):
            kvstore = self._opened()
            from pipeline.sinks.llama_docstore_store import check

            if not self._provisioned:
                check(kvstore, self.collection, self._marker())
                self._provisioned = True
            return work(kvstore)

    def _namespace(self, kvstore: Any, export_config_id: str) -> DocstoreNamespace:
        from pipeline.sinks.llama_docstore_store import DocstoreNamespace

        return DocstoreNamespace(kvstore, self.namespace(export_config_id), self.ids)

    def _stale(self, kvstore: Any) -> StaleIndexes:
        from pipeline.sinks.llama_docstore_store import StaleIndexes

        return StaleIndexes(kvstore, self.collection, self.context.tenant_id)

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """Batches of up to 200 files or about 16 MB: see ``DocstoreNamespace.replace``."""
        self.check_files(files)
        accepted, refused = await asyncio.to_thread(sift, files, self._checks)
        report = ReplaceReport(0, 0, tuple(refused))
        for config in dict.fromkeys(file.provenance.export_config_id for file in accepted):
            report += await self._replace(config, [file for file in accepted if file.provenance.export_config_id == config])
        return report

    async def _replace(self, config: str, files: Sequence[FileRecords]) -> ReplaceReport:
        await self._mark(config)
        empty = [file.file_id for file in files if not file.table.num_rows]
        await self._remove(config, await self._files(config, empty))
        filled = [file for file in files if file.table.num_rows]
        batches = file_slices(filled, count=_FILES_AT_ONCE, size=_BYTES_AT_ONCE)
        report = sum([await self._write(config, batch) for batch in batches], ReplaceReport(0, 0))
        if not await self._has_index(config):
            await self._write_index(config)
        return report

    async def _has_index(self, config: str) -> bool:
        return await self._run("look up the index", config, lambda namespace: namespace.has_index(config))

    async def _write(self, config: str, files: Sequence[FileRecords]) -> ReplaceReport:
        encoded, too_large = await asyncio.to_thread(encode_all, files, self._encode)
        await self._run("replace files", config, lambda namespace: namespace.replace(encoded))
        return ReplaceReport(sum(len(file.ids) for file in encoded), sum(file.bytes for file in encoded), tuple(too_large))

    async def _mark(self, config: str) -> str | None:
        """Before anything is changed: should this process die, the next one knows that the index lags behind."""
        if not self.settings.list_nodes:
            return None
        return await self._noted(lambda stale: stale.mark(config))

    async def _write_index(self, config: str) -> None:
        limit = self._most_listed()
        await self._run("write the index", config, lambda namespace: namespace.write_index(config, limit))

    def _most_listed(self) -> int:
        """Bytes."""
        return self.settings.max_entry_bytes if self.settings.list_nodes else 0

    async def optimize(self) -> None:
        """Make the index list the nodes the docstore has, in every config this exporter was asked of or a run that died has
        changed; until then LlamaIndex cannot delete those that are missing from its docstore. Where nothing was written as well:
        LlamaIndex writes the list it was loaded with whenever it deletes."""
        marks = await self._noted(lambda stale: stale.marks())
        for config in sorted(self._configs.union(marks)):
            await self._list_nodes(config, marks.get(config))

    async def _list_nodes(self, config: str, mark: str | None) -> None:
        await self._write_index(config)
        if mark is not None:
            await self._noted(lambda stale: stale.clear(config, mark))

    async def check_beside(self, *, export_config_id: str) -> list[str]:
        limit = self._most_listed()
        told = await self._run(
            "compare the index", export_config_id, lambda namespace: namespace.compare_index(export_config_id, limit)
        )
        return [told] if told else []

    def _encode(self, file: FileRecords) -> FileEntries:
        """Raises RecordRefused for a node or document larger than an entry may be."""
        from pipeline.sinks.llama_docstore_entries import encode_file

        key = self._key(file.provenance.export_config_id, file.file_id)
        encoded = encode_file(file, self.ids(key, Generation.of(file)))
        if encoded.largest > self.settings.max_entry_bytes:
            raise _too_large(file.file_id, encoded.largest, self.settings.max_entry_bytes)
        return encoded

    def _key(self, export_config_id: str, file_id: str) -> FileKey:
        return FileKey(self.context.tenant_id, export_config_id, file_id)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """The index is brought up to date at once, also where LlamaIndex has deleted the files before: a removal need not be
        followed by a run."""
        held = await self._files(export_config_id, parsed_directory_file_ids)
        mark = await self._mark(export_config_id) if held else None
        await self._remove(export_config_id, held)
        if held or await self._has_index(export_config_id):
            await self._list_nodes(export_config_id, mark)

    async def _remove(self, config: str, held: Sequence[HeldFile]) -> None:
        if held:
            await self._run("delete files", config, lambda namespace: namespace.remove(held))

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One read of every document's ``ref_doc_info`` of the config, or one each of up to 1,000 that are named. Of files that
        are named, one whose document or its hash is gone looks unfinished."""
        held = await self._files(export_config_id, parsed_directory_file_ids)
        named = [] if parsed_directory_file_ids is None else held
        torn = await self._run("look up documents", export_config_id, lambda namespace: namespace.without_document(named))
        return [(found.as_pending() if found.state.key in torn else found).to_snapshot() for found in held]

    async def _files(self, export_config_id: str, file_ids: Sequence[str] | None) -> list[HeldFile]:
        keys = None if file_ids is None else [self._key(export_config_id, file_id) for file_id in file_ids]
        return await self._run("list files", export_config_id, lambda namespace: namespace.files(keys))

    async def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """The nodes LlamaIndex sees, one request each, in tables of about 2,000 (more only for a file that has more), and two
        requests a file for its document and the hash of that."""
        held = await self._files(export_config_id, parsed_directory_file_ids)
        for some in slices(held, count=_NODES_AT_ONCE, size=_NODES_AT_ONCE, size_of=lambda found: len(found.node_ids)):
            table = await self._read(export_config_id, some)
            if table.num_rows:
                yield table

    async def _read(self, config: str, held: Sequence[HeldFile]) -> pa.Table:
        return await self._run("read nodes", config, lambda namespace: namespace.records(held))

    async def search(self, request: SearchRequest) -> list[SearchHit]:  # noqa: ARG002 - the protocol's
        raise ValueError(f"llama_docstore holds no vectors; search the sink {self.settings.vector_sink!r} beside it")

    async def close(self) -> None:
        """Let go of the store; LlamaIndex's have nothing to close."""
        self._kvstore, self._provisioned = None, False


def _check_metadata(file: FileRecords) -> None:
    """Raises RecordRefused for metadata that not every key-value store could hold as it is."""
    for name, value in file.provenance.metadata.items():
        if "\0" in name:
            raise RecordRefused(file.file_id, f"the name of metadata field {quoted(name)!r} has a NUL character; rename it")
        if isinstance(value, int) and value not in _INTEGERS:
            raise RecordRefused(
                file.file_id, f"metadata field {quoted(name)!r} is an integer of more than the 64 bits a store holds"
            )


def _too_large(file_id: str, size: int, limit: int) -> RecordRefused:
    return RecordRefused(
        file_id,
        f"its document or one of its nodes takes {size:,} bytes, the store is given {limit:,} at most (max_entry_bytes); "
        "split the file, or raise the limit if the store takes more",
    )
