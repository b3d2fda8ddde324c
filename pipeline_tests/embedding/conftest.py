"""Shared by the tests of embedding: the offline model, converted once a session and machine, and an HTTP endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.embedding.fastembed_embedder import FastEmbedEmbedder, load_fastembed
from pipeline.embedding.settings import EmbeddingSettings
from pipeline_tests.embedding.openai_endpoint import KEY, Endpoint, serving


@pytest.fixture(scope="session")
def minilm() -> FastEmbedEmbedder:
    return load_fastembed(EmbeddingSettings(threads=2))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as state:
        yield state
