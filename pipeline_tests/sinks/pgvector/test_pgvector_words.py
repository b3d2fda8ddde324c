"""Which words of a search text PostgreSQL ranks by: the rarer a word, the more it counts."""

from __future__ import annotations

import pytest

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.pgvector_words import FEW, SHARE, Word, terms
from pipeline_tests.sinks.pgvector.bench import PgVectorBench

RECORDS = 100_000


async def test_a_rare_word_counts_more_than_several_common_ones(bench: PgVectorBench) -> None:
    await bench.replace(bench.file("dfl-common", ["which of the gates is to be closed"] * 30), bench.file("dfl-rare", ["a weir"]))
    for question in ("which of the gates is the weir?", "is the weir's gate which of the gates is it's"):
        hits = await bench.search(SearchRequest(bench.config, mode="text", text=question, k=31))
        assert [hit.record.parsed_directory_file_id for hit in hits] == ["dfl-rare", *["dfl-common"] * 30]


def test_a_common_word_is_left_out_where_a_rarer_one_is_asked_for_and_held() -> None:
    rare, common, missing = Word("'weir'", 3), Word("'the'", RECORDS // SHARE + 1), Word("'wier'", 0)
    assert [term.query for term in terms([common, rare, missing], RECORDS)] == ["'weir'"]
    assert [term.query for term in terms([common, missing], RECORDS)] == ["'the'"]
    assert terms([missing], RECORDS) == terms([], 0) == []


def test_no_word_is_left_out_that_few_records_have() -> None:
    words = [Word("'weir'", 3), Word("'the'", FEW)]
    assert {term.query for term in terms(words, FEW)} == {"'weir'", "'the'"}


def test_words_about_as_rare_are_ranked_together_and_each_counts() -> None:
    (common, rare) = terms([Word("'weir'", 3), Word("'gate'", 3), Word("'is'", 900)], 1_000)
    assert (common.query, rare.query) == ("'is'", "'weir' | 'gate'")
    assert rare.weight == pytest.approx(2 * 5.65, abs=0.02)
    assert common.weight == pytest.approx(0.1, abs=0.02)
