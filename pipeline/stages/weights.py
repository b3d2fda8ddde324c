"""Whether the model that answers under an endpoint's name still has the weights that made the export's vectors.

What belongs here: the comparison. A model on this machine is known by the digest of its weights; an endpoint only says a name,
and whoever runs it may put other weights behind it. Their vectors would stand beside the old ones without a word.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.documents.arrow import embedding_texts
from pipeline.embedding.base import TextsRefused
from pipeline.errors import ConfigError
from pipeline.sinks.records import matrix
from pipeline.stages.export import Export
from pipeline.stages.stamps import is_of_present_model

_SAME = 0.99
"""Cosine of two answers to one text. Other batches, other hardware and half precision move it far less than this."""


async def check_weights(export: Export) -> None:
    """Ask the endpoint for a text it has embedded before, and compare. Raises ConfigError when it answers otherwise, and what
    ``Embedder.embed`` raises when it does not answer. A text that it refuses now says nothing of its weights."""
    if not export.settings.embedding.is_known_by_name:
        return
    known = await asyncio.to_thread(_known_row, export)
    if known is None:
        return
    try:
        [answer] = await export.embedder.embed(embedding_texts(known), known["chunk_token_count"].to_pylist())
    except TextsRefused:
        return
    [stored] = matrix(known["embedding"])
    cosine = float(answer @ stored / (np.linalg.norm(answer) * np.linalg.norm(stored)))
    if cosine < _SAME:
        raise ConfigError(
            f"the endpoint answers a text otherwise than when {export.embedder.identity.name!r} embedded it before (cosine "
            f"{cosine:.2f}): other weights have taken the name, and their vectors cannot stand beside the old "
            "ones. Serve the former weights, or give these a name in embedding.openai.revision: all is then embedded anew, and "
            "the old records answer until that is done"
        )


def _known_row(export: Export) -> pa.Table | None:
    """The shortest text of some file that has vectors of the present model, if there is any."""
    partition = export.ledger.vectors.any_partition(export.embedder.identity.slug)
    columns = ["context", "content", "chunk_token_count", "embedding"]
    table = export.lake.read("embeddings", partition, columns) if partition else None
    if table is None or not table.num_rows or not is_of_present_model(export, table):
        return None
    return table.take(pc.array_sort_indices(table["chunk_token_count"])[:1])
