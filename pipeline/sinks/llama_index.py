# mypy: disable-error-code="import-not-found"
# LlamaIndex has an environment of its own, which the type checker does not see.
"""Any sink as a LlamaIndex index.

What belongs here: ``open_index``. It needs the extra ``llama-index``; LlamaIndex's packages ask for older majors of some
SDKs than the sinks do, so it is installed into an environment of its own.
"""

from __future__ import annotations

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage

from pipeline.embedding.base import Embedder
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.sinks.base import Exporter
from pipeline.sinks.llama_index_bridge import EmbedderEmbedding, EventLoopThread
from pipeline.sinks.llama_index_natives import native_store
from pipeline.sinks.llama_index_reader import SinkVectorStore
from pipeline.sinks.storage_context import StorageContextExporter


def open_index(sink: Exporter, *, export_config_id: str, embedder: Embedder) -> VectorStoreIndex:
    """The records of one config as an index to retrieve from, over LlamaIndex's own store of the sink's database.

    Turbopuffer, a local Qdrant directory and plug-ins, for which LlamaIndex has no store, are read through the sink itself,
    as is every query that is more than a plain vector query. A storage_context is loaded as it stands, into memory.
    The index opens connections of its own, as the sink is set; ``index.vector_store.close()`` ends them.

    Raises ConfigError for an embedder of another model, or when LlamaIndex's package for the store is missing, and
    SinkUnavailable for a storage_context without a generation.
    """
    if embedder.identity != sink.context.model:
        raise ConfigError(
            f"the sink holds vectors of {sink.context.model.name!r}, which {embedder.identity.name!r} cannot search"
        )
    thread = EventLoopThread()
    embedding = EmbedderEmbedding(embedder, thread)
    if isinstance(sink, StorageContextExporter):
        return _load(sink, export_config_id, embedding)
    own = type(sink)(sink.settings, sink.context)
    try:
        native = native_store(own, export_config_id)
    except ModuleNotFoundError as error:
        raise ConfigError(f"LlamaIndex needs {error.name!r} for this sink; pip install 'indexport[llama-index]'") from error
    store = SinkVectorStore(own, export_config_id, thread, native)
    return VectorStoreIndex.from_vector_store(store, embed_model=embedding)


def _load(sink: StorageContextExporter, export_config_id: str, embedding: EmbedderEmbedding) -> VectorStoreIndex:
    found = sink.persist_dir(export_config_id)
    if found is None:
        raise SinkUnavailable(f"nothing of export {export_config_id!r} has been written to this storage_context yet")
    filesystem, path = found
    return load_index_from_storage(StorageContext.from_defaults(persist_dir=path, fs=filesystem), embed_model=embedding)
