"""From settings to a loaded embedder.

What belongs here: the choice of the implementation. Each is imported only when it is chosen.
"""

from __future__ import annotations

from pipeline.embedding.base import Embedder
from pipeline.embedding.prefixes import PrefixedEmbedder
from pipeline.embedding.settings import EmbeddingSettings


def load_embedder(settings: EmbeddingSettings) -> Embedder:
    """The embedder of ``settings``, ready to use. Blocks while a model loads.

    Raises ConfigError for wrong settings and EmbedderUnavailable when the model cannot be fetched.
    """
    passage, query = settings.passage_prefix or "", settings.query_prefix or ""
    model = _load_model(settings)
    return PrefixedEmbedder(model, passage=passage, query=query) if passage or query else model


def _load_model(settings: EmbeddingSettings) -> Embedder:
    match settings.provider:
        case "fastembed":
            from pipeline.embedding.fastembed_embedder import load_fastembed

            return load_fastembed(settings)
        case "openai":
            from pipeline.embedding.openai_embedder import OpenAIEmbedder

            return OpenAIEmbedder(settings.model, settings.openai)
        case "constant":
            from pipeline.embedding.constant import ConstantEmbedder

            return ConstantEmbedder(settings.constant_dimension)
