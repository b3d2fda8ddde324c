"""What holds for every document, settings and counter."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Attachment, Chunk, ChunkingSettings, Document, Page
from pipeline.documents.pages import MARKS_ALONE
from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens, TokenCounter
from pipeline_tests.documents import corpus
from pipeline_tests.documents.strategies import file_attachments, page_lists

_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

_SETTINGS = st.builds(
    ChunkingSettings,
    max_tokens=st.sampled_from([32, 40, 64, 256]),
    overlap=st.sampled_from([0, 0, 5, 15]),
    strategy=st.sampled_from(["markdown", "text"]),
    include_headers_footers=st.booleans(),
)


class _GrowingTokens:
    """A counter whose counts do not add up: a text has more tokens than its parts together."""

    fingerprint = "growing"
    default_max_tokens = 256

    def count(self, texts: Sequence[str]) -> list[int]:
        return [2 + len(text) // 3 + len(text) ** 2 // 4000 for text in texts]


def byte_level_tokens() -> HuggingFaceTokens:
    """A byte-level BPE with a few merges, white space among them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "l"), ("al", "p"), ("Ġ", "b"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("x", "x"), ("xx", "xx")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return HuggingFaceTokens(tokenizer, "byte-level")


@pytest.fixture(scope="session", params=["minilm", "byte-level", "estimated", "growing"])
def counter(request: pytest.FixtureRequest, minilm: HuggingFaceTokens) -> TokenCounter:
    counters: dict[str, Callable[[], TokenCounter]] = {
        "minilm": lambda: minilm,
        "byte-level": byte_level_tokens,
        "estimated": EstimatedTokens,
        "growing": _GrowingTokens,
    }
    return counters[request.param]()


def touched_pages(document: Document, chunk: Chunk) -> list[int]:
    """From the first to the last page of which the chunk says something; all of its pages where it says nothing."""
    parts = [
        (span.page_number, document.text[max(span.start, chunk.chunk_start_char) : min(span.end, chunk.chunk_end_char)])
        for span in document.page_spans
    ]
    parts = [(number, part) for number, part in parts if part.strip()]
    saying = [index for index, (_, part) in enumerate(parts) if not MARKS_ALONE.fullmatch(part)]
    return [number for number, _ in (parts[saying[0] : saying[-1] + 1] if saying else parts)]


def expected_attachments(document: Document, pages: list[int]) -> set[Attachment]:
    return {attachment for number, attachment in document.attachments if number is None or number in pages}


@settings(_QUICK, max_examples=40)
@given(pages=page_lists(), whole_file=file_attachments, chosen=_SETTINGS)
def test_chunks_are_exact_complete_ordered_bounded_and_traceable(
    counter: TokenCounter, pages: list[Page], whole_file: tuple[Attachment, ...], chosen: ChunkingSettings
) -> None:
    document = build_document(pages, whole_file, include_headers_footers=chosen.include_headers_footers)
    chunks = chunk_document(document, chosen, counter, 256)

    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert counter.count([chunk.embedding_text for chunk in chunks]) == [chunk.chunk_token_count for chunk in chunks]
    covered: set[int] = set()
    for chunk in chunks:
        assert chunk.content == document.text[chunk.chunk_start_char : chunk.chunk_end_char]
        assert chunk.content.strip()
        assert chunk.chunk_token_count <= (chosen.max_tokens or 256)
        assert chunk.content_hash == hashlib.sha256(chunk.content.encode()).hexdigest()
        touched = touched_pages(document, chunk)
        assert (chunk.page_range_start, chunk.page_range_end) == (touched[0], touched[-1])
        assert set(chunk.attachments) == expected_attachments(document, touched)
        assert len(set(chunk.attachments)) == len(chunk.attachments)
        covered.update(range(chunk.chunk_start_char, chunk.chunk_end_char))
    assert not [char for index, char in enumerate(document.text) if index not in covered and not char.isspace()]
    starts = [chunk.chunk_start_char for chunk in chunks]
    ends = [chunk.chunk_end_char for chunk in chunks]
    assert starts == sorted(set(starts))
    assert ends == sorted(set(ends))
    if not chosen.overlap:
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert chunk_document(document, chosen, counter, 256) == chunks


@pytest.mark.parametrize("counter", ["byte-level", "estimated"], indirect=True)
@pytest.mark.parametrize("kind", ["pipes", "html"])
def test_a_table_that_just_fits_or_just_does_not_never_loses_its_header(counter: TokenCounter, kind: str) -> None:
    table = corpus.table(4) if kind == "pipes" else corpus.html_table(2, "\n  ")
    chosen = ChunkingSettings(max_tokens=counter.count([table])[0] + 60)
    for blanks in ("\n\n", "\n \n\n\n"):
        for length in range(130):
            blocks = [
                "# Handbook",
                "About it. " * 60,
                "## Stock",
                "x" * length + " follows.",
                table,
                "## Next",
                "y" * 90,
                "z" * 90,
            ]
            document = build_document([Page(1, blanks.join(blocks))])
            chunks = chunk_document(document, chosen, counter, 8191)
            rows = [chunk for chunk in chunks if "ships from" in chunk.content]
            assert rows
            assert not [chunk for chunk in rows if "Remark" not in chunk.embedding_text]


@_QUICK
@given(
    seed=st.integers(0, 10**6),
    script=st.sampled_from(sorted(corpus.SCRIPTS)),
    sentences=st.integers(1, 60),
    limit=st.sampled_from([40, 64]),
)
def test_no_word_is_cut_in_two_where_there_is_white_space(
    counter: TokenCounter, seed: int, script: str, sentences: int, limit: int
) -> None:
    text = corpus.one_line(random.Random(seed), script, sentences)
    chunks = chunk_document(build_document([Page(1, text)]), ChunkingSettings(max_tokens=limit), counter, 256)
    borders = {chunk.chunk_start_char for chunk in chunks[1:]}
    assert not [text[border - 9 : border + 9] for border in borders if text[border - 1 : border + 1].isalpha()]


@_QUICK
@given(text=st.text(st.sampled_from(" \t\r\n\x0c\u00a0\u3000\u2028"), max_size=50), chosen=_SETTINGS)
def test_a_blank_document_has_no_chunks(minilm: HuggingFaceTokens, text: str, chosen: ChunkingSettings) -> None:
    assert chunk_document(build_document([Page(1, text), Page(2, "")]), chosen, minilm, 256) == []


def test_a_document_without_pages_has_no_page_range(minilm: HuggingFaceTokens) -> None:
    whole_file = Attachment("report.pdf", "src", "original")
    document = Document("Some text.", (), ((None, whole_file), (3, Attachment("p3.png", "src", "screenshot"))))
    [chunk] = chunk_document(document, ChunkingSettings(), minilm, 256)
    assert (chunk.page_range_start, chunk.page_range_end, chunk.attachments) == (None, None, (whole_file,))


def test_no_pages_at_all_have_no_chunks(minilm: HuggingFaceTokens) -> None:
    assert chunk_document(build_document([]), ChunkingSettings(), minilm, 256) == []


@pytest.mark.parametrize(
    "text",
    [
        "A" * 100_000,
        "word " * 20_000,
        "a" + "\u0301" * 20_000,
        "👩‍👩‍👧‍👦" * 3_000,
        "漢" * 10_000,
        "x" + " " * 100_000 + "y",
        "# " + "title " * 2_000 + "\n\nBody.",
        "# " + " " * 50_000 + "x\n|-" + " " * 50_000 + "x",
        "| h |\n|---|\n" + "| " + "cell " * 3_000 + "|\n",
        "| " + "header " * 500 + "|\n|---|\n" + "| row |\n" * 300,
        "<table><tr>" * 10_000,
        "<table><tr><th>h</th></tr><tr><td>" + "cell " * 3_000 + "</table>",
    ],
    ids=[
        "no spaces",
        "one line",
        "combining",
        "emoji",
        "han",
        "blanks",
        "heading",
        "blank runs",
        "row",
        "table header",
        "unclosed",
        "html row",
    ],
)
def test_giant_pieces_are_cut_within_the_limit(minilm: HuggingFaceTokens, text: str) -> None:
    chunks = chunk_document(build_document([Page(1, text)]), ChunkingSettings(), minilm, 256)
    assert "".join("".join(chunk.content.split()) for chunk in chunks) == "".join(text.split())
    assert all(chunk.chunk_token_count <= 256 for chunk in chunks)
    assert all(len(chunk.content) <= 256 * 16 for chunk in chunks)
