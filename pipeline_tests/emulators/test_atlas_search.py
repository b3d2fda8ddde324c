"""The emulation of MongoDB's search behaves as the vendor documents the real one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bson.binary import Binary, BinaryVectorDtype

from pipeline_tests.emulators.atlas_search import AtlasSearch, Document, SearchError

NAMESPACE = ("db", "records")
VECTORS = {
    "fields": [
        {"type": "vector", "path": "embedding", "numDimensions": 2, "similarity": "cosine"},
        {"type": "filter", "path": "m.year"},
        {"type": "filter", "path": "m.tags"},
    ]
}
TEXTS = {
    "mappings": {
        "fields": {
            "text": {"type": "string"},
            "m": {"type": "document", "fields": {"year": {"type": "number"}, "tags": {"type": "token"}}},
        }
    }
}


def packed(*values: float) -> Binary:
    return Binary.from_vector(list(values), BinaryVectorDtype.FLOAT32)


DOCUMENTS: list[Document] = [
    {"_id": "a", "embedding": packed(1, 0), "text": "The river rises", "m": {"year": 2020, "tags": ["x", "y"]}},
    {"_id": "b", "embedding": [0.0, 1.0], "text": "a river, a RIVER", "m": {"year": 2021.5, "tags": []}},
    {"_id": "c", "embedding": packed(-1, 0), "text": "dry", "m": {"year": "2020"}},
    {"_id": "narrow", "embedding": packed(1), "text": "river"},
    {"_id": "none", "m": {"year": True}},
]


def made(build_seconds: float = 0.0, lag_seconds: float = 0.0) -> AtlasSearch:
    search = AtlasSearch(build_seconds, lag_seconds)
    search.create(NAMESPACE, "v", "vectorSearch", VECTORS)
    search.create(NAMESPACE, "t", "search", TEXTS)
    return search


def by_vector(search: AtlasSearch, documents: list[Document] = DOCUMENTS, **stage: Any) -> list[Any]:
    stage = {"index": "v", "path": "embedding", "queryVector": packed(2, 0), "numCandidates": 10, "limit": 5, **stage}
    return search.vector_search(NAMESPACE, stage, lambda: list(documents))


def by_text(search: AtlasSearch, **compound: Any) -> list[Any]:
    return search.text_search(NAMESPACE, {"index": "t", "compound": compound}, lambda: list(DOCUMENTS))


def test_scores_of_cosine_lie_between_0_and_1_and_other_dimensions_are_not_indexed() -> None:
    found = by_vector(made())
    assert [name for name, _ in found] == ["a", "b", "c"]
    np.testing.assert_allclose([score for _, score in found], [1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"m.year": 2020}, "a"),
        ({"m.year": {"$eq": "2020"}}, "c"),
        ({"m.year": {"$ne": 2020}}, "bc"),
        ({"m.year": {"$gt": 2020, "$lt": 2022}}, "b"),
        ({"m.year": {"$in": [2020, 2021.5]}}, "ab"),
        ({"m.tags": "y"}, "a"),
        ({"m.tags": {"$nin": ["x"]}}, "bc"),
        ({"m.tags": {"$exists": True}}, "a"),
        ({"m.year": {"$not": {"$gte": 2020}}}, "c"),
        ({"$or": [{"m.tags": "x"}, {"m.year": "2020"}]}, "ac"),
        ({"$nor": [{"m.tags": "x"}, {"m.year": "2020"}]}, "b"),
    ],
)
def test_filters_follow_the_query_language(query: Document, expected: str) -> None:
    assert "".join(sorted(name for name, _ in by_vector(made(), filter=query))) == expected


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"filter": {"m.other": 1}}, "needs to be indexed as token"),
        ({"filter": {"m.year": {"$regex": "2"}}}, "not supported"),
        ({"filter": {"$where": "1"}}, "not supported"),
        ({"queryVector": packed(1, 2, 3)}, "2 dimensions but queried with 3"),
        ({"path": "text"}, "needs to be indexed as vector"),
        ({"numCandidates": 4}, "numCandidates"),
        ({"numCandidates": 10_001}, "numCandidates"),
    ],
)
def test_queries_the_index_cannot_answer_are_errors(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        by_vector(made(), **stage)


def test_a_missing_or_unbuilt_index_finds_nothing_and_says_nothing() -> None:
    assert by_vector(AtlasSearch()) == []
    search = made(build_seconds=math.inf)
    assert by_vector(search) == []
    assert [(index["status"], index["queryable"]) for index in search.listed(NAMESPACE, "v")] == [("PENDING", False)]


def test_while_an_index_is_rebuilt_its_old_definition_answers() -> None:
    search = made()
    search.listed(NAMESPACE, None)
    search.build_seconds = math.inf
    grown = {"fields": [*VECTORS["fields"], {"type": "filter", "path": "m.other"}]}
    search.update(NAMESPACE, "v", grown)
    (index,) = search.listed(NAMESPACE, "v")
    assert (index["status"], index["queryable"], index["latestDefinition"]) == ("BUILDING", True, grown)
    assert len(by_vector(search)) == 3
    with pytest.raises(SearchError, match=r"m\.other"):
        by_vector(search, filter={"m.other": 1})


def test_writes_are_seen_when_the_index_has_caught_up() -> None:
    search = made(lag_seconds=math.inf)
    documents = list(DOCUMENTS)
    assert len(by_vector(search, documents)) == 3
    documents.clear()
    search.note_write()
    assert len(by_vector(search, documents)) == 3
    search.catch_up()
    assert by_vector(search, documents) == []


def test_text_is_ranked_and_filtered() -> None:
    search = made()
    river = {"text": {"query": "RIVER nowhere", "path": "text"}}
    assert {name for name, _ in by_text(search, must=[river])} == {"a", "b", "narrow"}
    assert [score for _, score in by_text(search, must=[river])] == sorted(
        (s for _, s in by_text(search, must=[river])), reverse=True
    )
    tagged = {"equals": {"path": "m.tags", "value": "x"}}
    assert [name for name, _ in by_text(search, must=[river], filter=[tagged])] == ["a"]
    assert {name for name, _ in by_text(search, must=[river], mustNot=[tagged])} == {"b", "narrow"}
    assert [name for name, _ in by_text(search, must=[river], filter=[{"range": {"path": "m.year", "gt": 2020}}])] == ["b"]
    assert {name for name, _ in by_text(search, must=[river], filter=[{"in": {"path": "m.year", "value": [2020, 1]}}])} == {"a"}
    assert by_text(search, must=[{"text": {"query": "*", "path": "text"}}]) == []


@pytest.mark.parametrize(
    "operator",
    [{"equals": {"path": "m.year", "value": "2020"}}, {"equals": {"path": "m.other", "value": 1}}, {"phrase": {"path": "text"}}],
)
def test_text_queries_the_index_cannot_answer_are_errors(operator: Document) -> None:
    with pytest.raises(SearchError, match=r"needs to be indexed|not an operator"):
        by_text(made(), must=[operator])


@pytest.mark.parametrize(
    ("kind", "definition"),
    [
        ("vectorSearch", {"fields": []}),
        ("vectorSearch", {"fields": [{"type": "vector", "path": "e", "numDimensions": 8193, "similarity": "cosine"}]}),
        ("vectorSearch", {"fields": [*VECTORS["fields"], VECTORS["fields"][1]]}),
        ("search", {"fields": []}),
    ],
)
def test_malformed_definitions_are_refused(kind: str, definition: Document) -> None:
    with pytest.raises(SearchError):
        AtlasSearch().create(NAMESPACE, "x", kind, definition)


def test_an_index_exists_once() -> None:
    search = made()
    with pytest.raises(SearchError, match="Duplicate"):
        search.create(NAMESPACE, "v", "vectorSearch", VECTORS)
    search.drop(NAMESPACE, "v")
    with pytest.raises(SearchError, match="not found"):
        search.update(NAMESPACE, "v", VECTORS)
