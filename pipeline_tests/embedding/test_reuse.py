from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.embedding.base import PartlyEmbedded, TextsRefused, Vectors
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.embedding.reuse import embed_missing, embedding_digest
from pipeline.errors import EmbedderUnavailable


class Recording(ConstantEmbedder):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(dimension=8)
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        self.asked.extend(texts)
        return await super().embed(texts, token_counts)


texts = st.lists(st.text(max_size=3), max_size=30)


def test_the_digest_is_half_of_the_sha256_of_the_text() -> None:
    assert embedding_digest("é") == hashlib.sha256("é".encode()).digest()[:16]
    assert embedding_digest("\ud800") != embedding_digest("\ud801")


@settings(deadline=None)
@given(texts, st.lists(st.text(max_size=3), max_size=10))
async def test_only_unknown_texts_are_embedded_and_each_once(given_texts: list[str], known_texts: list[str]) -> None:
    embedder = Recording()
    plain = ConstantEmbedder(dimension=8)
    rows = await plain.embed(known_texts, [1] * len(known_texts))
    known = {embedding_digest(text): row for text, row in zip(known_texts, rows, strict=True)}
    counts = [len(text) + 2 for text in given_texts]

    vectors, stats = await embed_missing(embedder, given_texts, counts, known)

    missing = list(dict.fromkeys(text for text in given_texts if text not in known_texts))
    assert embedder.asked == missing
    np.testing.assert_array_equal(vectors, await plain.embed(given_texts, counts))
    assert (vectors.dtype, vectors.shape) == (np.dtype(np.float32), (len(given_texts), 8))
    assert stats.computed == len(missing)
    assert stats.reused == sum(text in known_texts for text in given_texts)
    assert stats.computed + stats.reused + stats.duplicates == len(given_texts)
    assert stats.tokens_computed == sum(len(text) + 2 for text in missing)
    assert stats.seconds >= 0


class Stopping(ConstantEmbedder):
    """Answers the first two texts and then no more."""

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        vectors = await super().embed(texts, token_counts)
        vectors[2:] = np.nan
        raise PartlyEmbedded(EmbedderUnavailable("gone"), vectors)


async def test_what_a_model_answered_before_it_stopped_stands_beside_what_was_known() -> None:
    plain = await ConstantEmbedder(dimension=8).embed(["a", "b", "c", "d"], [3] * 4)
    with pytest.raises(PartlyEmbedded, match="gone") as caught:
        await embed_missing(Stopping(dimension=8), ["a", "b", "c", "d", "b"], [3] * 5, {embedding_digest("a"): plain[0]})
    np.testing.assert_array_equal(caught.value.vectors[[0, 1, 2, 4]], plain[[0, 1, 2, 1]])
    assert np.isnan(caught.value.vectors[3]).all()


class Refusing(ConstantEmbedder):
    """Answers all texts but the second and the third."""

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        vectors = await super().embed(texts, token_counts)
        vectors[1:3] = np.nan
        raise TextsRefused({1: f"no {texts[1]}", 2: f"no {texts[2]}"}, vectors)


async def test_the_reason_of_a_refused_text_stands_at_each_of_its_places() -> None:
    plain = await ConstantEmbedder(dimension=8).embed(["a", "b", "c", "d"], [3] * 4)
    given_texts = ["a", "b", "c", "d", "c"]
    vectors, stats = await embed_missing(Refusing(dimension=8), given_texts, [3] * 5, {embedding_digest("a"): plain[0]})
    assert stats.refused == {2: "no c", 3: "no d", 4: "no c"}
    assert (stats.computed, stats.reused, stats.duplicates) == (3, 1, 1)
    np.testing.assert_array_equal(vectors[:2], plain[:2])
    assert np.isnan(vectors[2:]).all()


async def test_a_known_vector_of_another_model_is_refused() -> None:
    known = {embedding_digest("a"): np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match=r"\(7,\)"):
        await embed_missing(ConstantEmbedder(dimension=8), ["a"], [3], known)


async def test_a_missing_token_count_is_refused() -> None:
    with pytest.raises(ValueError, match="2 texts came with 1"):
        await embed_missing(ConstantEmbedder(dimension=8), ["a", "b"], [3], {})
