"""What every sink promises a search: the best records first, filters that mean the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.sinks.base import SearchRequest
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import FIELDS, Bench, matrix, unit_vectors

METADATA: list[dict[str, Any]] = [
    {"year": 2021, "rating": 4.5, "language": "de", "draft": False, "tags": ["river", "gauge"]},
    {"year": 2022, "rating": -1, "language": "en", "draft": True, "tags": ["river"]},
    {"year": -3, "rating": 1e-7, "language": "it's", "draft": False, "tags": []},
    {"year": 2**53, "rating": 4.0, "language": "", "tags": ["o'clock", 'say "hi"']},
    {"unrelated": "x"},
]

FILTERS: list[dict[str, Any]] = [
    {"year": 2021},
    {"year": {"eq": -3}},
    {"year": {"ne": 2021}},
    {"year": {"in": [2021, 2022, 1]}},
    {"year": {"nin": [2021, -3]}},
    {"year": {"gt": 2021}},
    {"year": {"gte": 2021, "lt": 2023}},
    {"year": {"lte": 2021}},
    {"rating": 4},
    {"rating": {"gt": 0, "lte": 4.0}},
    {"rating": {"ne": 4.5}},
    {"rating": {"in": [-1, 4.5]}},
    {"language": "it's"},
    {"language": {"ne": "de"}},
    {"language": {"in": ["de", "it's"]}},
    {"language": {"nin": ["de"]}},
    {"draft": True},
    {"draft": {"ne": True}},
    {"draft": {"in": [False]}},
    {"tags": "river"},
    {"tags": {"ne": "river"}},
    {"tags": {"in": ["gauge", "o'clock"]}},
    {"tags": {"nin": ["gauge", 'say "hi"']}},
    {"file_name": "dfl-2.pdf"},
    {"parsed_directory_file_id": {"in": ["dfl-0", "dfl-4"]}},
    {"file_name": {"ne": "dfl-2.pdf"}, "draft": False},
    {"year": 1999},
    {"language": "x' OR 1=1 --"},
    {"language": {"in": ["') OR ('1'='1", "\\' OR true --"]}},
    {"tags": "x') OR array_has(tags, 'river"},
    {"file_name": "' OR ''='"},
]


def _holds(metadata: dict[str, Any], key: str, operator: str, operand: Any) -> bool:
    value = metadata.get(key)
    operands = operand if operator in ("in", "nin") else [operand]
    if operator in ("ne", "nin"):
        return not _holds(metadata, key, "in", operands)
    if value is None:
        return False
    if operator in ("eq", "in"):
        return any(item in operands for item in value) if isinstance(value, list) else value in operands
    return bool({"gt": value > operand, "gte": value >= operand, "lt": value < operand, "lte": value <= operand}[operator])


def _as_declared(key: str, value: Any) -> Any:
    """A float field has an integer as the nearest float."""
    if FIELDS.get(key) != "float":
        return value
    return [float(item) for item in value] if isinstance(value, list) else float(value)


def expected_files(files: list[FileRecords], filters: dict[str, Any]) -> set[str]:
    """The same filters, evaluated here."""
    found = set()
    for file in files:
        fields = {
            **{key: _as_declared(key, value) for key, value in file.provenance.metadata.items()},
            "file_name": file.provenance.file_name,
            "parsed_directory_file_id": file.file_id,
        }
        conditions = [
            (key, operator, _as_declared(key, operand))
            for key, written in filters.items()
            for operator, operand in (written if isinstance(written, dict) else {"eq": written}).items()
        ]
        if all(_holds(fields, *condition) for condition in conditions):
            found.add(file.file_id)
    return found


def _require(bench: Bench, mode: str) -> None:
    if mode not in bench.exporter.search_modes:
        pytest.skip(f"this sink has no {mode} search")


async def test_vector_search_finds_what_an_exact_search_finds(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}", 25) for n in range(8)]
    await bench.replace(*files)
    vectors = np.vstack([matrix(file.table) for file in files])
    addresses = [(file.file_id, index) for file in files for index in range(25)]
    for query in unit_vectors("queries", 5):
        similarity = vectors @ query
        best = np.argsort(-similarity)[:10]
        hits = await bench.search(SearchRequest(bench.config, vector=query, k=10))
        assert [(hit.record.parsed_directory_file_id, hit.record.chunk_index) for hit in hits] == [addresses[i] for i in best]
        np.testing.assert_allclose([hit.score for hit in hits], similarity[best], atol=1e-3)


async def test_the_score_is_the_cosine_whatever_the_lengths(bench: Bench) -> None:
    file = bench.file("dfl-1", 1)
    await bench.replace(file)
    vector = matrix(file.table)[0]
    for query, cosine in ((vector * 7, 1.0), (-vector / 3, -1.0)):
        (hit,) = await bench.search(SearchRequest(bench.config, vector=query))
        assert hit.score == pytest.approx(cosine, abs=1e-3)
        assert -1.0 <= hit.score <= 1.0


async def test_a_hit_is_the_whole_record(bench: Bench) -> None:
    file = bench.file("dfl-1", 3, metadata={"year": 2024, "other": ["x"]})
    await bench.replace(file)
    (hit,) = await bench.search(SearchRequest(bench.config, vector=matrix(file.table)[2], k=1))
    row = file.table.slice(2, 1).to_pylist()[0]
    assert hit.record.content == row["content"]
    assert hit.record.metadata == {"year": 2024, "other": ["x"]}
    assert [attachment.attachment_name for attachment in hit.record.attachments] == ["page_2_0.png", "page_2_1.png"]
    assert hit.record.source_modified_at == file.provenance.source_modified_at
    assert (hit.record.export_config_id, hit.record.parsed_directory_file_id) == (bench.config, "dfl-1")


async def test_text_search_finds_words_at_once_and_forgets_deleted_ones(bench: Bench) -> None:
    _require(bench, "text")
    await bench.replace(bench.file("dfl-1", ["the sluice gate is closed", "a weir"]), bench.file("dfl-2", ["nothing here"]))
    hits = await bench.search(SearchRequest(bench.config, mode="text", text="sluice"))
    assert [(hit.record.parsed_directory_file_id, hit.record.chunk_index) for hit in hits] == [("dfl-1", 0)]
    assert hits[0].score > 0
    await bench.exporter.optimize()
    await bench.replace(bench.file("dfl-1", ["a weir"], version="v2"), bench.file("dfl-3", ["another sluice"]))
    hits = await bench.search(SearchRequest(bench.config, mode="text", text="sluice"))
    assert [hit.record.parsed_directory_file_id for hit in hits] == ["dfl-3"]


SHA_256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
COMPOUND = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerk"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The IT department of the WHO", ["IT", "who", "the"]),
        (f"its digest is {SHA_256}", [SHA_256]),
        (f"im {COMPOUND} nichts", [COMPOUND.lower()]),
        ("the universe of universities", ["universe", "universities"]),
    ],
)
async def test_text_search_finds_every_word_as_it_is(bench: Bench, text: str, words: list[str]) -> None:
    """None is too common or too long to be found, and none is found by another that is only like it."""
    _require(bench, "text")
    await bench.replace(bench.file("dfl-1", [text]))
    for word in words:
        assert len(await bench.search(SearchRequest(bench.config, mode="text", text=word))) == 1, word
    assert await bench.search(SearchRequest(bench.config, mode="text", text="university digests")) == []


@pytest.mark.parametrize("text", ["x' OR 1=1 --", '"', "\\", "a AND (b", "*", "the", "content:x~2^3"])
async def test_any_text_can_be_searched_for(bench: Bench, text: str) -> None:
    _require(bench, "text")
    await bench.replace(bench.file("dfl-1", ["sluice"]))
    assert await bench.search(SearchRequest(bench.config, mode="text", text=text)) == []


@pytest.mark.parametrize("mode", ["text", "hybrid"])
@pytest.mark.parametrize("text", ['"portal outage"', '"portal" or "outage"', '"Portal"', '"portal outage'])
async def test_text_in_quotes_is_answered(bench: Bench, mode: Any, text: str) -> None:
    _require(bench, mode)
    file = bench.file("dfl-1", ["after the portal outage", "a weir"])
    await bench.replace(file, bench.file("dfl-2", 3))
    await bench.exporter.optimize()
    hits = await bench.search(SearchRequest(bench.config, mode=mode, vector=matrix(file.table)[0], text=text, k=5))
    assert (hits[0].record.parsed_directory_file_id, hits[0].record.chunk_index) == ("dfl-1", 0)


async def test_hybrid_search_ranks_first_what_both_find(bench: Bench) -> None:
    _require(bench, "hybrid")
    file = bench.file("dfl-1", ["the sluice gate", "sluice", "a weir"])
    await bench.replace(file, bench.file("dfl-2", 20))
    request = SearchRequest(bench.config, mode="hybrid", vector=matrix(file.table)[1], text="sluice", k=5)
    hits = await bench.search(request)
    assert len(hits) == 5
    assert (hits[0].record.parsed_directory_file_id, hits[0].record.chunk_index) == ("dfl-1", 1)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(0 <= hit.score <= 1 for hit in hits)


async def test_filters_mean_the_same_everywhere(bench: Bench) -> None:
    files = [bench.file(f"dfl-{n}", 2, metadata=metadata) for n, metadata in enumerate(METADATA)]
    await bench.replace(*files)
    for filters in FILTERS:
        request = SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], k=50, filters=filters)
        found = [hit.record.parsed_directory_file_id for hit in await bench.search(request)]
        assert set(found) == expected_files(files, filters), filters
        assert len(found) == 2 * len(set(found)), filters


@pytest.mark.parametrize("mode", ["text", "hybrid"])
async def test_filters_hold_in_every_mode(bench: Bench, mode: Any) -> None:
    _require(bench, mode)
    await bench.replace(*(bench.file(f"dfl-{n}", ["sluice"], metadata=metadata) for n, metadata in enumerate(METADATA)))
    request = SearchRequest(
        bench.config, mode=mode, vector=unit_vectors("q", 1)[0], text="sluice", filters={"year": {"gt": 2021}}
    )
    assert {hit.record.parsed_directory_file_id for hit in await bench.search(request)} == {"dfl-1", "dfl-3"}


async def test_a_hostile_config_id_reaches_nothing(bench: Bench) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    hostile = "x' OR '1'='1"
    assert await bench.snapshots(config=hostile) == {}
    assert await bench.search(SearchRequest(hostile, vector=unit_vectors("q", 1)[0])) == []
    await bench.delete("x') OR ('1'='1", config=bench.config)
    await bench.delete("dfl-1", config=hostile)
    await bench.assert_holds(file)


@pytest.mark.parametrize(
    "filters",
    [{"pages": 3}, {"year": "2021"}, {"year": {"like": 1}}, {"language": {"gt": "a"}}, {"tags": {"in": []}}, {"year": None}],
)
async def test_a_filter_that_makes_no_sense_is_refused(bench: Bench, filters: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(filters))):
        await bench.search(SearchRequest(bench.config, vector=unit_vectors("q", 1)[0], filters=filters))


async def test_a_request_without_what_its_mode_needs_is_refused(bench: Bench) -> None:
    vector = unit_vectors("q", 1)[0]
    requests = [
        SearchRequest(bench.config),
        SearchRequest(bench.config, vector=vector[:-1]),
        SearchRequest(bench.config, vector=vector, k=0),
        SearchRequest(bench.config, mode="text", text="  "),
        SearchRequest(bench.config, mode="hybrid", text="a"),
    ]
    for request in requests:
        with pytest.raises(ValueError, match=r"vector|mode|k must"):
            await bench.search(request)
