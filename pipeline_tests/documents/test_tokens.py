"""Counts are the tokenizer's own, or an upper bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens
from pipeline_tests.documents.strategies import bodies
from pipeline_tests.documents.test_chunk_invariants import byte_level_tokens


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(max_size=60) | bodies, max_size=5))
def test_counting_by_word_gives_the_tokenizers_own_counts(
    minilm_tokenizer: Tokenizer, minilm: HuggingFaceTokens, texts: list[str]
) -> None:
    minilm_tokenizer.no_truncation()
    minilm_tokenizer.no_padding()
    assert minilm.count(texts) == [len(minilm_tokenizer.encode(text)) for text in texts]


def test_characters_that_python_and_the_tokenizer_see_differently_do_not_split_words(
    minilm_tokenizer: Tokenizer, minilm: HuggingFaceTokens
) -> None:
    minilm_tokenizer.no_truncation()
    minilm_tokenizer.no_padding()
    texts = [f"one{char}two [SEP]{char}" for char in "\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u200b"]
    assert minilm.count(texts) == [len(minilm_tokenizer.encode(text)) for text in texts]


def test_a_count_is_never_capped_by_the_tokenizers_own_truncation(minilm_tokenizer: Tokenizer) -> None:
    capped = Tokenizer.from_str(minilm_tokenizer.to_str())
    capped.enable_truncation(16)
    capped.enable_padding(length=64)
    assert HuggingFaceTokens(capped, "capped").count(["word " * 100, "word"]) == [102, 3]


def test_an_added_token_with_white_space_in_it_is_counted_as_one(minilm_tokenizer: Tokenizer) -> None:
    extended = Tokenizer.from_str(minilm_tokenizer.to_str())
    extended.add_tokens(["page break"])
    assert HuggingFaceTokens(extended, "extended").count(["a page break b"]) == [5]


@settings(max_examples=200, deadline=None)
@given(text=bodies)
def test_the_estimate_never_undercounts_a_byte_level_tokenizer(text: str) -> None:
    assert EstimatedTokens().count([text])[0] >= byte_level_tokens().count([text])[0]
