"""Shared by the tests of embedding: the offline model, converted once a session and machine."""

from __future__ import annotations

import pytest

from pipeline.embedding.fastembed_embedder import FastEmbedEmbedder, load_fastembed
from pipeline.embedding.settings import EmbeddingSettings


@pytest.fixture(scope="session")
def minilm() -> FastEmbedEmbedder:
    return load_fastembed(EmbeddingSettings(threads=2))
