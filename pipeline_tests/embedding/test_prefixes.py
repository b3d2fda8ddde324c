"""Prefixes of passages and questions: what the model sees, what room is left, and which vectors may stand beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.embedding.constant import MAX_TOKENS, ConstantEmbedder
from pipeline.embedding.fastembed_embedder import load_fastembed
from pipeline.embedding.loading import load_embedder
from pipeline.embedding.settings import EmbeddingSettings
from pipeline.errors import ConfigError

PLAIN = ConstantEmbedder()


def settings(**prefixes: Any) -> EmbeddingSettings:
    return EmbeddingSettings(provider="constant", **prefixes)


async def test_passages_and_questions_are_embedded_with_their_prefixes() -> None:
    made = load_embedder(settings(passage_prefix="passage: ", query_prefix="query: "))
    texts = ["a duck", "a goose"]
    assert np.array_equal(
        await made.embed(texts, made.tokens.count(texts)), await PLAIN.embed([f"passage: {text}" for text in texts], [9, 9])
    )
    assert np.array_equal(await made.embed_query("a duck"), await PLAIN.embed_query("query: a duck"))


async def test_a_prefix_takes_its_room_from_the_passage() -> None:
    made = load_embedder(settings(passage_prefix="passage: "))
    assert made.max_tokens == MAX_TOKENS - PLAIN.tokens.count(["passage: "])[0]
    await made.embed(["text"], [made.max_tokens])
    with pytest.raises(ValueError, match="text 0"):
        await made.embed(["text"], [made.max_tokens + 1])


def test_vectors_with_another_passage_prefix_are_another_models_and_a_question_prefix_changes_no_vector() -> None:
    passages = [load_embedder(settings(passage_prefix=prefix)).identity for prefix in ("passage: ", "document: ")]
    assert len({PLAIN.identity.slug, *(identity.slug for identity in passages)}) == 3
    assert load_embedder(settings(query_prefix="query: ")).identity == PLAIN.identity
    assert load_embedder(settings(query_prefix="", passage_prefix="")).identity == PLAIN.identity


@pytest.mark.parametrize(
    "model", ["intfloat/multilingual-e5-large", "nomic-ai/nomic-embed-text-v1.5", "Qwen/Qwen3-Embedding-0.6B"]
)
def test_a_model_that_asks_for_prefixes_is_refused_without(model: str) -> None:
    for given in ({}, {"query_prefix": "query: "}):
        with pytest.raises(ConfigError, match=r"embedding\.passage_prefix and embedding\.query_prefix"):
            load_fastembed(EmbeddingSettings.model_validate({"model": model, **given}))
