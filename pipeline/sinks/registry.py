"""Which sinks there are. A new store is one module and one line here."""

from __future__ import annotations

import importlib
from contextlib import suppress

from pipeline.errors import ConfigError
from pipeline.sinks.base import Exporter, SinkSettings

SINKS: dict[str, str] = {
    "azure_ai_search": "pipeline.sinks.azure_ai_search:AzureAISearchExporter",
    "lancedb": "pipeline.sinks.lancedb:LanceDBExporter",
    "llama_docstore": "pipeline.sinks.llama_docstore:LlamaDocstoreExporter",
    "llama_index": "pipeline.sinks.llama_index:LlamaIndexExporter",
    "mongodb": "pipeline.sinks.mongodb:MongoDBExporter",
    "pgvector": "pipeline.sinks.pgvector:PgVectorExporter",
    "pinecone": "pipeline.sinks.pinecone:PineconeExporter",
    "qdrant": "pipeline.sinks.qdrant:QdrantExporter",
    "storage_context": "pipeline.sinks.storage_context:StorageContextExporter",
    "turbopuffer": "pipeline.sinks.turbopuffer:TurbopufferExporter",
}
"""Name -> ``module:Class``. Modules are imported on first use: most of them need an extra."""

LOCAL_SINKS = ("lancedb", "storage_context")
"""Sinks that live in a folder or bucket: without a ``uri`` of their own they live under the home."""

_EXTRAS: dict[str, str] = {"azure_ai_search": "azure", "llama_docstore": "llama-index", "llama_index": "llama-index"}
"""The extras that are not called as their sink."""

_SLOW_SDKS = frozenset({"lancedb"})
"""SDKs, called as their sink, that take long to import, so that the sink's module does so at its first request alone."""


def exporter_class(name: str) -> type[Exporter]:
    """The exporter of a sink by its registered name.

    Raises ConfigError for an unknown name, or when the store's SDK is not installed (names the extra).
    """
    check_known(name)
    module, _, attribute = SINKS[name].partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(name, name)
        raise ConfigError(f"sink {name!r} needs {error.name!r}; install it with: pip install 'indexport[{extra}]'") from error
    found: type[Exporter] = getattr(loaded, attribute)
    return found


def import_sdk(name: str) -> None:
    """Import what a sink of this registered name needs before its first request; blocks for up to a second. Nothing is raised of
    what cannot be imported: whoever uses the sink is told."""
    with suppress(ConfigError, ImportError):
        exporter_class(name)
        if name in _SLOW_SDKS:
            importlib.import_module(name)


def settings_type(name: str) -> type[SinkSettings] | None:
    """What the settings of a sink must be, by its registered name; ``None`` where its SDK cannot be imported, of which
    ``exporter_class`` tells. Raises ConfigError for an unknown name."""
    check_known(name)
    try:
        return exporter_class(name).settings_type
    except Exception:  # noqa: BLE001 - the SDK is foreign code
        return None


def check_known(name: str) -> None:
    """Raise ConfigError for a name that is no registered sink's."""
    if name not in SINKS:
        known = ", ".join(sorted(SINKS))
        raise ConfigError(f"unknown sink {name!r}; known: {known}; a class of your own is `type: your.module:Class`")
