"""Counting tokens the way the embedding model does.

What belongs here: the ``TokenCounter`` protocol and its implementations. The chunker sizes chunks with one; embedders
own one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

from tokenizers import Tokenizer

_WORD = re.compile(r"[^ \t\r\n]+")
_LONGEST_KNOWN_WORD = 48
_MOST_KNOWN_WORDS = 1 << 18


class TokenCounter(Protocol):
    """Counts tokens of texts, the model's special tokens included, without truncation."""

    @property
    def fingerprint(self) -> str:
        """Names the tokenizer by its content, whatever library reads it; equal ones count alike."""
        ...

    @property
    def default_max_tokens(self) -> int:
        """Of a chunk where nothing is set: a paragraph or two, short enough that a vector still means one thing."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """One count a text, in order."""
        ...


class HuggingFaceTokens:
    """A ``tokenizers`` tokenizer with truncation and padding switched off, so that a count is never capped.

    A tokenizer that never joins characters across white space (BERT's WordPiece family) is asked once a word instead of
    once an occurrence: the counts are the same, several times faster. Safe to share between threads.
    """

    default_max_tokens = 256

    def __init__(self, tokenizer: Tokenizer, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._special_tokens = len(self.tokenizer.encode(""))
        self._wordwise = _is_wordwise(self.tokenizer)
        self._known: dict[str, int] = {}

    def count(self, texts: Sequence[str]) -> list[int]:
        if not self._wordwise:
            return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        if len(self._known) > _MOST_KNOWN_WORDS:
            self._known = {}
        known, words = self._known, [_words(text) for text in texts]
        try:
            return [self._special_tokens + sum(map(known.__getitem__, of_text)) for of_text in words]
        except KeyError:
            unknown = [word for word in set(chain.from_iterable(words)) if word not in known]
        # All at once: the call costs more than the words it is about.
        encodings = self.tokenizer.encode_batch_fast(unknown, add_special_tokens=False)
        learned = {word: len(encoding) for word, encoding in zip(unknown, encodings, strict=True)}
        known.update((word, size) for word, size in learned.items() if len(word) <= _LONGEST_KNOWN_WORD)
        sizes = ((learned[word] if word in learned else known[word] for word in of_text) for of_text in words)
        return [self._special_tokens + sum(of_text) for of_text in sizes]


class EstimatedTokens:
    """An upper bound for endpoints that do not publish their tokenizer: the UTF-8 bytes of the text.

    A token of a byte-level BPE (every OpenAI embedding model) stands for at least one byte, so nothing counted this way
    can be cut by the endpoint. English text has about four bytes a token: a chunk at the limit then has about a quarter as
    many tokens, so the default limit is four times that of other counters.
    """

    fingerprint = "bytes"
    default_max_tokens = 1_024
    _SPECIAL_TOKENS = 4
    """Room for the start, end and prefix tokens some servers add."""

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text.encode("utf-8", "surrogatepass")) + self._SPECIAL_TOKENS for text in texts]


def _words(text: str) -> list[str]:
    """The runs of ``_WORD`` in order, and empty strings, which have no tokens: several times faster than a search for them."""
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")


def _is_wordwise(tokenizer: Tokenizer) -> bool:
    """Whether a text has as many tokens as its white-space separated words have together, special tokens aside."""
    config = json.loads(tokenizer.to_str())
    normalizer = (config["normalizer"] or {"type": None})["type"]
    pre_tokenizer = (config["pre_tokenizer"] or {"type": None})["type"]
    return (
        normalizer in (None, "BertNormalizer", "Lowercase")
        and pre_tokenizer in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        and all(_WORD.fullmatch(token["content"]) for token in config["added_tokens"])
    )
