"""Where a paragraph that is too long for one chunk is cut."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Chunk, ChunkingSettings, Page
from pipeline.documents.splitting import TextSizer, split_long
from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens
from pipeline_tests.documents import corpus
from pipeline_tests.documents.strategies import bodies

Chunk_ = Callable[[str], list[Chunk]]


@pytest.fixture(params=["minilm", "bytes"])
def chunk(request: pytest.FixtureRequest, minilm: HuggingFaceTokens) -> Chunk_:
    def chunk_text(text: str) -> list[Chunk]:
        counter = minilm if request.param == "minilm" else EstimatedTokens()
        return chunk_document(build_document([Page(1, text)]), ChunkingSettings(), counter, 8191)

    return chunk_text


@pytest.mark.parametrize(
    "word",
    [
        "the Supplier's",
        'a "Party"',
        "**notice**",
        "`close()`",
        "[Annex 2](#annex-2)",
        r"\* note",
        "R&amp;D",
        "<b>not</b>",
        "e.g. oil",
    ],
)
def test_a_long_paragraph_is_cut_between_sentences_whatever_marks_they_hold(chunk: Chunk_, word: str) -> None:
    rng = random.Random(7)
    sentences = [f"{corpus.words(rng, 9).capitalize()} {word} {corpus.words(rng, 6)}." for _ in range(120)]
    chunks = chunk(" ".join(sentences))
    assert len(chunks) > 10
    assert {sentence for c in chunks for sentence in c.content.replace(". ", ".\n").replace("e.g.\n", "e.g. ").split("\n")} == {
        *sentences
    }


@pytest.mark.parametrize("title", ["I", "In", "Ins"])
def test_a_heading_stays_with_text_that_fills_the_chunk_to_the_last_byte(chunk: Chunk_, title: str) -> None:
    opening, *rest = chunk(f"## {title}\n\n{'ab ' * 400}")
    assert opening.content.startswith(f"## {title}\n\nab ab")
    assert {c.context for c in rest} == {f"{title}\n\n"}


def test_prose_that_was_wrapped_is_cut_between_sentences_and_not_where_lines_end(chunk: Chunk_) -> None:
    rng = random.Random(8)
    words = " ".join(corpus.sentence(rng) for _ in range(150)).split()
    lines = [" ".join(words[first : first + 12]) for first in range(0, len(words), 12)]
    chunks = chunk("\n".join(lines))
    assert len(chunks) > 5
    inside = [c.content for c in chunks if not c.content.endswith(".") and not c.content[0].isupper()]
    assert inside == []


def test_a_long_list_is_cut_between_its_items(chunk: Chunk_) -> None:
    rng = random.Random(9)
    items = [f"- {corpus.sentence(rng)} {corpus.words(rng, 8).capitalize()}\n  {corpus.sentence(rng)}" for _ in range(60)]
    chunks = chunk("\n".join(items))
    assert len(chunks) > 5
    assert all(c.content.startswith("- ") for c in chunks)


def test_lines_that_are_no_prose_stay_whole(chunk: Chunk_) -> None:
    lines = [f"sensor {number}: level={number * 7}, flow={number * 3}" for number in range(300)]
    chunks = chunk("\n".join(lines))
    assert len(chunks) > 5
    assert [line for c in chunks for line in c.content.split("\n")] == lines


@settings(max_examples=100, deadline=None)
@given(text=bodies.filter(len), room=st.integers(1, 60), markdown=st.booleans())
def test_pieces_are_the_whole_in_order_and_none_is_empty(minilm: HuggingFaceTokens, text: str, room: int, markdown: bool) -> None:
    sizer = TextSizer(minilm)
    ranges = split_long(text, 0, len(text), sizer.sizes([text])[0], room, sizer, markdown=markdown)
    assert "".join(text[start:end] for start, end in ranges) == text
    assert all(start < end for start, end in ranges)
