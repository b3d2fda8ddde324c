from __future__ import annotations

import numpy as np
import pytest

from pipeline.documents.tokens import EstimatedTokens
from pipeline.embedding import constant, offline_model
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.embedding.loading import load_embedder
from pipeline.embedding.settings import EmbeddingSettings


async def test_vectors_are_unit_length_repeatable_and_different() -> None:
    embedder = load_embedder(EmbeddingSettings(provider="constant", constant_dimension=48))
    vectors = await embedder.embed(["a", "b", "a"], [3, 3, 3])
    assert (vectors.dtype, vectors.shape) == (np.dtype(np.float32), (3, 48))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(await embedder.embed_query("b"), vectors[1])


async def test_nothing_gives_no_rows() -> None:
    assert (await ConstantEmbedder().embed([], [])).shape == (0, 384)


async def test_a_text_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="text 0 has 513"):
        await ConstantEmbedder().embed(["a"], [513])


def test_another_dimension_is_another_model() -> None:
    assert ConstantEmbedder(8).identity.slug != ConstantEmbedder(9).identity.slug


def test_it_counts_as_the_real_model_does_where_the_wheel_is_installed() -> None:
    assert ConstantEmbedder().tokens.count(["hello world"]) == [4]


def test_the_tokenizer_is_named_without_parsing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant, "HuggingFaceTokens", lambda *_: pytest.fail("parsed"))
    assert ConstantEmbedder().tokens.fingerprint == offline_model.SOURCE_SHA256["tokenizer.json"]


def test_it_counts_an_upper_bound_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant, "find_wheel_model", lambda: None)
    assert isinstance(ConstantEmbedder().tokens, EstimatedTokens)
