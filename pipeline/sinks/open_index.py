# mypy: disable-error-code="import-not-found", allow-subclassing-any
# LlamaIndex has an environment of its own, which the type checker does not see.
"""Any sink as a LlamaIndex index.

What belongs here: ``open_index``. It needs the extra ``llama-index``; LlamaIndex's packages ask for older majors of some
SDKs than the sinks do, so it is installed into an environment of its own.
"""

from __future__ import annotations

from typing import Final

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage

from pipeline.embedding.base import Embedder
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.sinks.base import Exporter
from pipeline.sinks.llama_index_bridge import EmbedderEmbedding, EventLoopThread
from pipeline.sinks.llama_index_loaded import LoadedVectorStore
from pipeline.sinks.llama_index_natives import native_store
from pipeline.sinks.llama_index_reader import SinkVectorStore
from pipeline.sinks.storage_context import StorageContextExporter

_READS: Final = 5


def open_index(sink: Exporter, *, export_config_id: str, embedder: Embedder) -> VectorStoreIndex:
    """The records of one config as an index to retrieve from, over LlamaIndex's own store of the sink's database.

    Turbopuffer, a local Qdrant directory and sinks of your own that can be searched, for which LlamaIndex has no store, are
    read through the sink itself, as is every query that is more than a plain vector query. A storage_context is loaded as it
    stands, into memory. The index opens connections of its own, as the sink is set; ``index.vector_store.close()`` ends them.

    Raises ConfigError for an embedder of another model, for a sink that offers no search, for a variable that is not set, or when
    LlamaIndex's package for the store is missing; SinkUnavailable before the first sync, and SinkConflict for a collection that
    is not ours: some of LlamaIndex's stores would make one where there is none, which the sink then takes for another's.
    """
    if embedder.identity != sink.context.model:
        raise ConfigError(
            f"the sink holds vectors of {sink.context.model.name!r}, which {embedder.identity.name!r} cannot search"
        )
    if not sink.search_modes:
        raise ConfigError(f"{type(sink).__name__} offers no search, so it makes no index; open that of another sink")
    if isinstance(sink, StorageContextExporter):
        return _load(sink, export_config_id, embedder)
    own = type(sink)(sink.settings, sink.context)
    thread = EventLoopThread()
    try:
        thread.run(own.check_provisioned())
        native = native_store(own, export_config_id)
    except BaseException as error:
        thread.run(own.close())
        thread.close()
        if isinstance(error, ModuleNotFoundError):
            raise ConfigError(f"LlamaIndex needs {error.name!r} for this sink; pip install 'indexport[llama-index]'") from error
        raise
    store = SinkVectorStore(own, export_config_id, thread, native)
    return VectorStoreIndex.from_vector_store(store, embed_model=EmbedderEmbedding(embedder, thread))


def _load(sink: StorageContextExporter, export_config_id: str, embedder: Embedder) -> VectorStoreIndex:
    context = _storage_context(sink, export_config_id)
    thread = EventLoopThread()
    context.vector_store.belongs_to(export_config_id, sink.context.metadata_fields, thread)
    return load_index_from_storage(context, embed_model=EmbedderEmbedding(embedder, thread))


def _storage_context(sink: StorageContextExporter, export_config_id: str) -> StorageContext:
    """Read the generation that counts; again where it was replaced and removed meanwhile."""
    for _ in range(_READS):
        found = sink.persist_dir(export_config_id)
        if found is None:
            raise SinkUnavailable(
                f"nothing of export {export_config_id!r} has been written to this storage_context yet; sync first"
            )
        filesystem, path = found
        try:
            stores = LoadedVectorStore.from_namespaced_persist_dir(path, fs=filesystem)
            return StorageContext.from_defaults(persist_dir=path, fs=filesystem, vector_stores=stores)
        except (FileNotFoundError, ValueError):  # what LlamaIndex makes of files that are gone
            if sink.persist_dir(export_config_id) == found:
                raise
    raise SinkUnavailable(
        f"export {export_config_id!r} was written {_READS} times while its index was read; read again, or raise keep_generations"
    )
