"""Searching a sink the way its readers would, and reading back what it holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from pipeline.embedding.base import Embedder, Vectors, unusable
from pipeline.errors import EmbedderUnavailable
from pipeline.sinks.base import Filters, SearchHit, SearchMode, SearchRequest
from pipeline.sinks.records import ChunkRecord, to_records
from pipeline.sinks.word_forms import in_every_form
from pipeline.stages.export import Export
from pipeline.stages.work import opened_sink, read_whole_or_closed


async def search(
    export: Export, sink: str, text: str, *, mode: SearchMode = "vector", k: int = 10, filters: Filters | None = None
) -> list[SearchHit]:
    """The best ``k`` records of a sink for a question, best first. Its words are found in whichever form of Unicode they lie.

    Raises ConfigError for an unknown sink and for a model whose settings are at fault, SinkUnavailable, EmbedderUnavailable where
    the question is embedded, SourceUnavailable where the index was never looked at, and ValueError for a mode or filter the sink
    does not have, for a question that is empty or longer than the model reads, and for half a surrogate pair, which neither a
    model nor a store takes: so Python has a byte of an argument that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the search text {text!a} is not UTF-8; type it as your locale has it") from None
    if not text.strip():
        raise ValueError("the search text is empty; type a question")
    tenant_id, config = await export.scope()
    vector = None if mode == "text" else await _vector_of(export.embedder, text)
    async with opened_sink(export, sink, tenant_id) as exporter:
        words = None if mode == "vector" else in_every_form(text)
        return await exporter.search(SearchRequest(config, mode, vector, words, k, filters or {}))


def not_loaded(export: Export, sink: str) -> int:
    """How many files a search of the sink cannot find yet: they are not in its present place under the present model."""
    held = export.held_in(sink)
    loaded = {} if export.ledger.register.moved([held]) else export.ledger.sink_hashes(slug=held.slug).get(sink, {})
    return sum(not row.is_leaving and file_id not in loaded for file_id, row in export.ledger.files().items())


async def _vector_of(embedder: Embedder, text: str) -> Vectors:
    """Raises EmbedderUnavailable for a vector that no store can search by: it would answer with nothing."""
    vector = await embedder.embed_query(text)
    if unusable(vector[None]):
        raise EmbedderUnavailable(
            f"the model {embedder.identity.name} answered the question with a vector that is not finite or all zero"
        )
    return vector


async def records(export: Export, sink: str, file_ids: Sequence[str] | None = None) -> AsyncGenerator[ChunkRecord, None]:
    """Every record a sink holds of this export, or of some of its files. Who stops before the end closes it (``aclosing``)."""
    tenant_id, config = await export.scope()
    async with opened_sink(export, sink, tenant_id) as exporter:
        held = exporter.fetch_records(export_config_id=config, parsed_directory_file_ids=file_ids)
        async with read_whole_or_closed(held) as tables:
            async for table in tables:
                for record in to_records(table):
                    yield record
