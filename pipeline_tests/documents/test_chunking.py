"""Where the chunker cuts, and what context it gives."""

from __future__ import annotations

import random
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from tokenizers import Tokenizer

from pipeline.documents.chunking import chunk_document, chunker_fingerprint, token_limit
from pipeline.documents.document import build_document
from pipeline.documents.models import Attachment, ChunkingSettings, Page
from pipeline.documents.tokens import EstimatedTokens, HuggingFaceTokens
from pipeline.errors import ConfigError
from pipeline_tests.documents import corpus
from pipeline_tests.documents.conftest import Chunk_


def prose(count: int, seed: int = 0) -> str:
    return corpus.words(random.Random(seed), count)


def test_a_short_document_is_one_chunk_without_context(chunk: Chunk_) -> None:
    [only] = chunk("# Title\n\n## Part\n\nText.\n\n## Other\n\nMore.\n")
    assert (only.context, only.content) == ("", "# Title\n\n## Part\n\nText.\n\n## Other\n\nMore.")


def test_context_is_the_heading_path_without_the_headings_in_the_content(chunk: Chunk_) -> None:
    text = f"# Guide\n\nIntro.\n\n## Install\n\n{prose(60)}\n\n{prose(60, 1)}\n\n{prose(60, 2)}\n\n## Use\n\n{prose(80, 3)}"
    contexts = [(c.context, c.content.split("\n")[0]) for c in chunk(text)]
    assert contexts[0] == ("", "# Guide")
    assert ("Guide\n\n", "## Install") in contexts
    assert ("Guide\n\n", "## Use") in contexts
    assert any(context == "Guide > Install\n\n" and not line.startswith("#") for context, line in contexts)


def test_a_heading_stays_with_its_text_when_that_is_too_long(chunk: Chunk_) -> None:
    chunks = chunk(f"# Guide\n\n## Install\n\n{prose(600)}")
    assert chunks[0].content.startswith("# Guide\n\n## Install\n\n")
    assert chunks[0].chunk_token_count > 128
    assert {c.context for c in chunks[1:]} == {"Guide > Install\n\n"}


def test_small_sections_are_merged_up_to_the_limit_under_their_common_parent(chunk: Chunk_) -> None:
    sections = [f"## Part {i}\n\n{prose(12, i)}" for i in range(40)]
    chunks = chunk("# Guide\n\n" + "\n\n".join(sections))
    assert statistics.mean(c.chunk_token_count for c in chunks) > 128
    assert {c.context for c in chunks[1:]} == {"Guide\n\n"}
    assert all(c.content.startswith("#") for c in chunks)


@pytest.mark.parametrize("after", ["", "\n\nText."])
def test_a_long_run_of_headings_is_packed_too(chunk: Chunk_, after: str) -> None:
    chunks = chunk("\n".join(f"{'#' * (1 + i % 3)} Entry {i}" for i in range(400)) + after)
    assert statistics.mean(c.chunk_token_count for c in chunks) > 128


def test_outer_titles_of_a_long_heading_path_go_first(chunk: Chunk_) -> None:
    chunks = chunk(f"# {prose(80)}\n\n## Near\n\n{prose(600, 1)}")
    assert {c.context for c in chunks[-2:]} == {"Near\n\n"}


def test_a_rule_is_no_chunk_of_its_own(chunk: Chunk_) -> None:
    table = "| Code | Meaning |\n|---|---|\n" + "".join(f"| E{n:02} | {prose(6, n)} |\n" for n in range(60))
    text = f"# Manual\n\n## Fault codes\n\n{table}\n---\n\n## Next page\n\n{prose(200)}\n\n***\n"
    chunks = chunk(text)
    assert all(any(char.isalnum() for char in c.content) for c in chunks)
    assert any(c.content.endswith("|\n\n---") for c in chunks)
    assert chunks[-1].content.endswith("***")
    assert all(c.content == text[c.chunk_start_char : c.chunk_end_char] for c in chunks)


@pytest.mark.parametrize(
    "text",
    [
        "TOTAL FOR MAY\n" + (" " * 132 + "\n") * 2_000 + "*" * 40,
        "\u200b\n\n" * 20_000,
        "| a | b |\n|---|---|\n" + "\u200b\u00ad\n" * 20_000,
    ],
    ids=["white space above a rule", "unseen paragraphs", "unseen rows"],
)
def test_what_the_tokenizer_does_not_see_makes_no_chunk_too_long_for_a_store(chunk: Chunk_, text: str) -> None:
    chunks = chunk(text)
    assert max(len(c.content) for c in chunks) <= 32 * 256
    assert "".join("".join(c.content for c in chunks).split()) == "".join(text.split())


def test_a_rule_at_the_start_goes_with_what_is_behind_it(chunk: Chunk_) -> None:
    chunks = chunk("***\n\n# Manual\n\n" + "\n\n".join(prose(70, seed) for seed in range(6)))
    assert chunks[0].content.startswith("***\n\n# Manual")
    assert all(c.chunk_token_count <= 256 for c in chunks)


@pytest.mark.parametrize(
    ("lead_in", "block"),
    [
        ("Table 3. Stock by hall", corpus.table(60)),
        ("Table 3. Stock by hall", corpus.html_table(60, "\n")),
        ("**All options** go to the constructor:", "```\n" + "".join(f"option_{n} = {n},\n" for n in range(90)) + "```"),
        ("Our pumps:", "\n".join(f"- {prose(9, n)}" for n in range(40))),
        ("我们的泵：", "\n".join(f"- {prose(9, n)}" for n in range(40))),
    ],
    ids=["table", "html", "code", "list", "Chinese"],
)
@pytest.mark.parametrize("before", ["", "## Stock\n\n", f"{prose(70)}\n\n"], ids=["alone", "heading", "text"])
def test_a_line_that_leads_in_stands_with_the_beginning_of_what_is_cut(
    chunk: Chunk_, before: str, lead_in: str, block: str
) -> None:
    text = f"# Manual\n\n{before}{lead_in}\n\n{block}\n\n{prose(50)}"
    chunks = chunk(text)
    [leading] = [c for c in chunks if lead_in in c.content]
    assert block[:60] in leading.content
    assert all(c.content == text[c.chunk_start_char : c.chunk_end_char] for c in chunks)


@pytest.mark.parametrize("before", ["A sentence.", "two\nlines:", "---", f"{prose(90)}:"])
def test_what_does_not_lead_in_stays_where_it_is(chunk: Chunk_, before: str) -> None:
    code = "```\n" + "".join(f"option_{n} = {n},\n" for n in range(90)) + "```"
    chunks = chunk(f"# Manual\n\n{prose(40)}\n\n{before}\n\n{code}")
    assert any(c.content.startswith("```") for c in chunks)


@pytest.mark.parametrize("unread", ["<!-- contributors -->", '<a id="next"></a>', "<br/>\n\n---", "</div>"])
@pytest.mark.parametrize("words", range(230, 250, 4))
def test_what_nobody_reads_is_no_chunk_of_its_own(chunk: Chunk_, unread: str, words: int) -> None:
    lines = prose(words).replace(" ka", ".\nKa")
    text = f"{unread}\n\n# Manual\n\nIntro.\n\n{lines}\n\n{unread}\n\n# Next\n\n{prose(100)}"
    chunks = chunk(text)
    assert all(c.content == text[c.chunk_start_char : c.chunk_end_char] for c in chunks)
    assert all(c.chunk_token_count <= 256 for c in chunks)
    assert all(re.search(r"\w{2}", re.sub("<[^<>]*>", "", c.content)) for c in chunks)
    assert "".join("".join(c.content.split()) for c in chunks) == "".join(text.split())


@pytest.mark.parametrize("last", ["", "====\n"])
@pytest.mark.parametrize("lines", range(42, 68))
def test_the_fence_that_closes_code_is_no_chunk_of_its_own(chunk: Chunk_, lines: int, last: str) -> None:
    chunks = chunk("```\n" + "".join(f"load({line});\n" for line in range(lines)) + f"{last}```")
    assert all("load" in c.content for c in chunks)


def test_a_page_of_which_a_chunk_has_a_rule_alone_is_not_cited(minilm: HuggingFaceTokens) -> None:
    shots = [Attachment(f"page_{number}.png", "s", "screenshot") for number in (1, 2, 3, 4)]
    document = build_document(
        [Page(1, "---"), Page(2, f"---\n\n{prose(60)}"), Page(3, "***"), Page(4, "<!-- PageBreak -->")], shots
    )
    [held] = chunk_document(document, ChunkingSettings(), minilm, 256)
    assert held.content == document.text
    assert (held.page_range_start, held.page_range_end, held.attachments) == (2, 2, (shots[1],))


def test_a_chunk_that_has_nothing_but_marks_cites_all_of_its_pages(minilm: HuggingFaceTokens) -> None:
    document = build_document([Page(1, "```\n\n```"), Page(2, "```\n\n```")], ())
    [chunk] = chunk_document(document, ChunkingSettings(), minilm, 256)
    assert (chunk.page_range_start, chunk.page_range_end) == (1, 2)


def test_a_document_of_rules_alone_is_kept(chunk: Chunk_) -> None:
    assert [c.content for c in chunk("---\n\n---\n")] == ["---\n\n---"]


def test_lines_inside_code_are_no_headings(chunk: Chunk_) -> None:
    code = "```\n" + "".join(f"# comment {i} {prose(6, i)}\n" for i in range(60)) + "```"
    chunks = chunk("# Guide\n\n" + code)
    assert len(chunks) > 1
    assert {c.context for c in chunks[1:]} == {"Guide\n\n"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("before", ["", "# Stock\n\n## Parts\n\n", "Intro.\n\n", "Table 1:\n"])
def test_every_chunk_with_rows_of_a_split_table_has_the_header_and_whole_rows(chunk: Chunk_, before: str, newline: str) -> None:
    table = corpus.table(200)
    header = table.splitlines()[:2]
    rows = set(table.splitlines()[2:])
    chunks = chunk((before + table + "\nAfter.").replace("\n", newline))
    holders = [c for c in chunks if "| part " in c.content]
    assert len(holders) > 5
    for c in holders:
        assert all(c.embedding_text.count(line) == 1 for line in header)
        assert all(line in rows for line in c.content.splitlines() if line.startswith("| part"))
    if "Stock" in before:
        assert holders[1].context.startswith("Stock > Parts\n\n| Item |")


def test_the_header_that_a_context_repeats_spends_no_tokens_on_a_wide_delimiter_row(chunk: Chunk_) -> None:
    header = f"| Item {'':40} | Remark {'':20} |\n| {'-' * 45} |:{'-' * 26}: |\n"
    chunks = chunk("# Stock\n\n" + header + "".join(f"| part {n} | {prose(12, n)} |\n" for n in range(60)))
    assert chunks[0].content.startswith("# Stock\n\n" + header)
    names = header.splitlines()[0]
    assert {c.context for c in chunks[1:]} == {f"Stock\n\n{names}\n| --- |:---: |\n"}


def test_a_context_names_headings_as_people_read_them(chunk: Chunk_) -> None:
    chunks = chunk(f'# [Pumps](https://example.org/pumps)\n\n## Care<a name="care"></a>\n\n{prose(600)}')
    assert {c.context for c in chunks[1:]} == {"Pumps > Care\n\n"}


@pytest.mark.parametrize("joiner", ["", "\n", "\n\n  "], ids=["one line", "lines", "blank lines"])
@pytest.mark.parametrize("before", ["", "# Stock\n\n## Parts\n\n", "Table 1:\n"])
def test_every_chunk_of_a_split_html_table_has_the_header_and_whole_rows(chunk: Chunk_, before: str, joiner: str) -> None:
    chunks = chunk(before + corpus.html_table(200, joiner) + "\n\nAfter.")
    holders = [c for c in chunks if "<td>part " in c.content]
    assert len(holders) > 5
    for c in holders:
        assert all(c.embedding_text.count(f"<th>{name}</th>") == 1 for name in ("Item", "Unit price", "In stock", "Remark"))
        assert c.content.count("<tr>") == c.content.count("</tr>")
        assert c.content.startswith("<tr>") or c is holders[0]
    if "Stock" in before:
        assert "".join(holders[1].context.split()).startswith("Stock>Parts<table><thead><tr><th>Item</th>")


def test_overlap_in_an_html_table_repeats_whole_rows(chunk: Chunk_) -> None:
    chunks = chunk(corpus.html_table(100, "\n"), overlap=80)
    assert any(after.chunk_start_char < before.chunk_end_char for before, after in pairwise(chunks))
    assert all(c.content.startswith("<tr>") for c in chunks[1:])


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("|   |  |\n|---|---|\n", "| part {} | ships from hall {} |\n"),
        ("<table class='wide'>\n<tbody>\n", "<tr><td>part {}</td><td>ships from hall {}</td></tr>\n"),
    ],
    ids=["pipes", "html"],
)
def test_a_header_that_names_nothing_is_not_repeated(chunk: Chunk_, header: str, row: str) -> None:
    rows = "".join(row.format(number, number) for number in range(90))
    chunks = chunk(f"# Stock\n\n{header}{rows}" + "</tbody></table>" * header.startswith("<"))
    assert len(chunks) > 3
    assert {c.context for c in chunks[1:]} == {"Stock\n\n"}


def test_a_row_over_the_limit_is_cut_but_keeps_its_header(chunk: Chunk_) -> None:
    table = f"| Name | Remark |\n|---|---|\n| a | short |\n| b | {prose(500)} |\n| c | short |\n"
    chunks = chunk(table)
    assert len(chunks) > 3
    assert all(c.embedding_text.count("| Name | Remark |") == 1 for c in chunks)


def test_a_table_header_that_leaves_no_room_for_rows_is_not_repeated(chunk: Chunk_) -> None:
    chunks = chunk(f"| {prose(150)} |\n|---|\n" + f"| {prose(20)} |\n" * 30)
    assert {c.context for c in chunks[1:]} == {""}


def test_addresses_of_links_at_the_end_are_not_said_to_be_of_the_last_section(chunk: Chunk_) -> None:
    links = "\n".join(f"[#{number}]: https://example.org/issues/{number}" for number in range(100, 160))
    notes = "\n".join(f"[^{number}]: {prose(12, number)}" for number in range(40))
    talk = "\n".join(f"[Ada]: {prose(12, number)}" for number in range(40))
    chunks = chunk(f"# Changes\n\n## 0.1\n\n{prose(200)}\n\n{links}\n\n# Notes\n\n{notes}\n\n{talk}")
    assert {c.context for c in chunks if c.content.startswith("[#")} == {""}
    assert {c.context for c in chunks if c.content.startswith(("[^", "[Ada"))} == {"Notes\n\n"}


def test_strategy_text_knows_no_headings_or_tables(chunk: Chunk_) -> None:
    chunks = chunk("# Title\n\n" + corpus.table(100) + "\n\n" + prose(500), strategy="text")
    assert len(chunks) > 4
    assert {c.context for c in chunks} == {""}


def test_overlap_repeats_whole_words_of_the_previous_chunk_within_the_section(chunk: Chunk_, minilm: HuggingFaceTokens) -> None:
    text = f"# One\n\n{prose(700)}\n\n# Two\n\n{prose(300, 1)}"
    chunks = chunk(text, overlap=20)
    overlapping = 0
    for previous, current in pairwise(chunks):
        assert current.chunk_token_count <= 256
        if current.content.startswith("# Two"):
            assert current.chunk_start_char >= previous.chunk_end_char
            continue
        repeated = text[current.chunk_start_char : previous.chunk_end_char]
        assert 0 < minilm.count([repeated])[0] - 2 <= 20
        assert text[current.chunk_start_char - 1].isspace()
        overlapping += 1
    assert overlapping > 3


def test_overlap_in_a_table_repeats_whole_rows(chunk: Chunk_) -> None:
    table = corpus.table(100)
    chunks = chunk(table, overlap=40)
    assert any(b.chunk_start_char < a.chunk_end_char for a, b in pairwise(chunks))
    assert all(line in table.splitlines() for c in chunks for line in c.content.splitlines())


def test_a_megabyte_is_cut_in_well_under_a_second_of_processor_time(chunk: Chunk_) -> None:
    text = "\n\n".join(corpus.headed_paragraphs(random.Random(3), 6000))
    started = time.process_time()
    chunks = chunk(text)
    assert len(text) / 1e6 / (time.process_time() - started) > 1
    assert len(chunks) > 1000


def test_threads_that_share_a_counter_get_the_same_chunks(minilm_tokenizer: Tokenizer) -> None:
    tokens = HuggingFaceTokens(minilm_tokenizer, "minilm")
    rng = random.Random(4)
    documents = [build_document([Page(1, "\n\n".join(corpus.headed_paragraphs(rng, 60)))]) for _ in range(20)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda document: chunk_document(document, ChunkingSettings(), tokens, 256), documents))
    alone = HuggingFaceTokens(minilm_tokenizer, "minilm")
    assert together == [chunk_document(document, ChunkingSettings(), alone, 256) for document in documents]


def test_a_limit_above_the_models_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"chunking\.max_tokens is 512"):
        token_limit(ChunkingSettings(max_tokens=512), EstimatedTokens(), 256)


def test_an_overlap_of_half_the_limit_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"chunking\.overlap is 32"):
        token_limit(ChunkingSettings(max_tokens=64, overlap=32), EstimatedTokens(), 256)
    assert token_limit(ChunkingSettings(max_tokens=64, overlap=31), EstimatedTokens(), 256) == 64


def test_a_model_with_no_window_to_speak_of_is_refused() -> None:
    with pytest.raises(ConfigError, match="reads only 16 tokens"):
        token_limit(ChunkingSettings(), EstimatedTokens(), 16)


def test_where_nothing_is_set_bytes_make_chunks_as_long_as_tokens_do(minilm: HuggingFaceTokens) -> None:
    document = build_document([Page(1, prose(5000))])
    by_bytes, by_tokens = (chunk_document(document, ChunkingSettings(), c, 8191) for c in (EstimatedTokens(), minilm))
    assert 0.5 < len(by_bytes) / len(by_tokens) < 1.5
    assert max(c.chunk_token_count for c in by_bytes) <= 1024
    assert token_limit(ChunkingSettings(), EstimatedTokens(), 512) == 512


def test_the_fingerprint_of_a_default_is_that_of_the_size_it_means() -> None:
    def fingerprint(limit: int | None, model: int) -> str:
        return chunker_fingerprint(ChunkingSettings(max_tokens=limit), EstimatedTokens(), model)

    assert fingerprint(None, 8191) == fingerprint(1024, 8191) == fingerprint(None, 1024)
    assert len({fingerprint(None, 8191), fingerprint(None, 512), fingerprint(256, 8191)}) == 3


def test_the_fingerprint_moves_with_everything_that_moves_a_cut_and_nothing_else(minilm: HuggingFaceTokens) -> None:
    base = chunker_fingerprint(ChunkingSettings(), minilm, 256)
    assert (
        base
        == chunker_fingerprint(ChunkingSettings(max_tokens=256), minilm, 256)
        == chunker_fingerprint(ChunkingSettings(max_tokens=256), minilm, 512)
    )
    variants = [
        chunker_fingerprint(ChunkingSettings(), minilm, 200),
        chunker_fingerprint(ChunkingSettings(), EstimatedTokens(), 256),
        chunker_fingerprint(ChunkingSettings(max_tokens=128), minilm, 256),
        chunker_fingerprint(ChunkingSettings(overlap=10), minilm, 256),
        chunker_fingerprint(ChunkingSettings(strategy="text"), minilm, 256),
        chunker_fingerprint(ChunkingSettings(include_headers_footers=True), minilm, 256),
    ]
    assert len({base, *variants}) == 7
