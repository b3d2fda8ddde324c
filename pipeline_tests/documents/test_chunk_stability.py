"""How little an edit changes of the chunks around it."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest

from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Chunk, ChunkingSettings, Page
from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens
from pipeline_tests.documents import corpus
from pipeline_tests.documents.conftest import Chunk_


def _new_chunks_per_edit(chunk: Chunk_, make: Callable[[random.Random, int], list[str]], count: int) -> list[int]:
    rng = random.Random(11)
    changed = []
    for _ in range(15):
        blocks = make(rng, count)
        before = {c.embedding_text for c in chunk("\n\n".join(blocks))}
        assert 90 <= len(before) <= 130
        after = chunk("\n\n".join(corpus.edit_one(rng, blocks)))
        changed.append(sum(c.embedding_text not in before for c in after))
    return changed


def test_an_edit_in_a_hundred_chunks_with_headings_makes_few_new_ones(chunk: Chunk_) -> None:
    changed = _new_chunks_per_edit(chunk, corpus.headed_paragraphs, 270)
    assert statistics.median(changed) <= 2
    assert max(changed) <= 6


def test_an_edit_in_a_hundred_chunks_without_headings_makes_few_new_ones(chunk: Chunk_) -> None:
    changed = _new_chunks_per_edit(chunk, corpus.plain_paragraphs, 250)
    assert statistics.median(changed) <= 4
    assert max(changed) <= 12


def test_an_edit_in_one_endless_line_stays_in_its_neighbourhood(chunk: Chunk_) -> None:
    rng = random.Random(2)
    sentences = [corpus.sentence(rng) for _ in range(1200)]
    before = {c.embedding_text for c in chunk(" ".join(sentences))}
    changed = []
    for _ in range(9):
        edited = corpus.edit_one(rng, sentences)
        changed.append(sum(c.embedding_text not in before for c in chunk(" ".join(edited))))
    assert len(before) > 90
    assert statistics.median(changed) <= 6


@pytest.mark.parametrize("tokens", ["minilm", "bytes"])
@pytest.mark.parametrize("script", corpus.SCRIPTS)
def test_a_word_put_into_one_endless_line_makes_few_new_chunks_and_cuts_no_word(
    minilm: HuggingFaceTokens, script: str, tokens: str
) -> None:
    def chunk(text: str) -> list[Chunk]:
        counter = minilm if tokens == "minilm" else EstimatedTokens()
        return chunk_document(build_document([Page(1, text)]), ChunkingSettings(), counter, 8191)

    rng = random.Random(6)
    text = corpus.one_line(rng, script, 600)
    chunks = chunk(text)
    assert len(chunks) > 40
    assert not any(text[c.chunk_start_char - 1 : c.chunk_start_char + 1].isalpha() for c in chunks[1:])
    before = {c.embedding_text for c in chunks}
    changed = []
    for _ in range(9):
        position = text.index(" ", rng.randrange(len(text) - 500))
        changed.append(sum(c.embedding_text not in before for c in chunk(f"{text[:position]} {script}{text[position:]}")))
    assert statistics.median(changed) <= 4
    assert sorted(changed)[-2] <= 6


@pytest.mark.parametrize(
    "table", [corpus.table(1500), corpus.html_table(1500, "").replace("</tr>", "</tr>\n")], ids=["pipes", "html"]
)
def test_a_row_added_to_a_large_table_makes_few_new_chunks(chunk: Chunk_, table: str) -> None:
    rows = table.splitlines(keepends=True)
    before = {c.embedding_text for c in chunk("".join(rows))}
    after = chunk("".join([*rows[:40], rows[40].replace("part", "new part"), *rows[40:]]))
    assert len(before) > 90
    assert sum(c.embedding_text not in before for c in after) <= len(before) / 10
