"""Documents: nothing is lost on the way to BSON and back, and nothing in them can be taken for a query."""

from __future__ import annotations

from typing import Any

import bson
import numpy as np
import pytest
from bson.binary import Binary, BinaryVectorDtype
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import RecordRefused, SinkConflict
from pipeline.sinks.base import SinkContext
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.filters import parse_filters
from pipeline.sinks.mongodb_index import (
    grown_text_definition,
    grown_vector_definition,
    text_definition,
    vector_definition,
)
from pipeline.sinks.mongodb_layout import Write, decode, encode_file, packed, text_query, vector_filter
from pipeline.sinks.records import record_set_hash
from pipeline_tests.conformance.harness import FIELDS, MODEL, Bench, matrix

BENCH = Bench(sink=None, tenant="prj", config="cfg")  # type: ignore[arg-type]  # makes files only
CONTEXT = SinkContext("prj", MODEL, FIELDS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
METADATA = st.dictionaries(TEXT | st.sampled_from(["$where", "a.b", "", "\0", "text", "_id", "doc_id"]), SCALARS | st.lists(TEXT))


def documents(file: Any) -> list[dict[str, Any]]:
    return [bson.decode(write.document.raw) for write in encode_file(file, FIELDS).writes]


@given(METADATA, st.lists(TEXT, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_record_comes_back_as_it_was(metadata: dict[str, Any], texts: list[str]) -> None:
    file = BENCH.file("dfl-1", texts, metadata=metadata)
    written = encode_file(file, {}).writes
    table = decode([bson.decode(write.document.raw, bson.CodecOptions(tz_aware=True)) for write in written], MODEL.dimension)
    assert table.schema == file.table.schema
    assert record_set_hash(table) == file.record_set_hash
    assert np.array_equal(matrix(table), matrix(file.table))


@given(METADATA)
@settings(max_examples=60, deadline=None)
def test_no_field_of_the_metadata_could_be_an_operator_or_a_path(metadata: dict[str, Any]) -> None:
    (document,) = documents(BENCH.file("dfl-1", ["text"], metadata=metadata))
    assert not any(not key or key.startswith("$") or "." in key or "\0" in key for key in document["metadata"])


def test_a_record_lies_where_llama_index_looks_for_it() -> None:
    file = BENCH.file("dfl-1", 2, metadata={"year": 2024, "rating": 4, "undeclared": "x", "odd.key": 1, "huge": 2**70})
    document = documents(file)[1]
    assert document["_id"] == FileKey("prj", "cfg", "dfl-1").ids(Generation(file.record_set_hash, 2))[1]
    assert document["text"] == file.table["content"][1].as_py()
    assert document["embedding"].as_vector().dtype is BinaryVectorDtype.FLOAT32
    node = document["metadata"]
    assert node["doc_id"] == node["ref_doc_id"] == "cfg:dfl-1"
    assert (node["year"], node["rating"], node["undeclared"]) == (2024, 4.0, "x")
    assert isinstance(node["rating"], float), "a declared field has the declared type"
    assert not {"odd.key", "huge"} & node.keys()
    assert f'"id_":"{document["_id"]}"' in node["_node_content"]
    assert '"odd.key":1' in node["_node_content"]


def test_vectors_are_packed_as_the_driver_packs_them() -> None:
    vector = np.array([1.5, -0.25, 3e-9], np.float32)
    assert packed(vector) == Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32)


@given(st.dictionaries(TEXT.filter(lambda key: "\0" not in key), SCALARS.filter(lambda value: not isinstance(value, int))), TEXT)
@settings(max_examples=60, deadline=None)
def test_a_field_is_added_without_touching_the_others(document: dict[str, Any], value: str) -> None:
    write = Write("id", bson.raw_bson.RawBSONDocument(bson.encode(document)))
    assert write.with_field("\tadded", value).document.raw == bson.encode({**document, "\tadded": value})


def test_a_record_larger_than_a_document_may_be_is_refused_by_name() -> None:
    with pytest.raises(RecordRefused, match=r"dfl-1: chunk 1 .* 16,777,216") as caught:
        encode_file(BENCH.file("dfl-1", ["a", "é" * 8_400_000]), {})
    assert caught.value.file_id == "dfl-1"


def test_conditions_hold_values_never_queries() -> None:
    filters: dict[str, Any] = {
        "year": {"gte": 1, "ne": 3},
        "tags": {"nin": ["$where"]},
        "language": "{'$ne': 1}",
        "file_name": {"in": ["a"]},
    }
    conditions = parse_filters(filters, FIELDS)
    assert vector_filter("t", "c", conditions) == {
        "$and": [
            {"tenant_id": "t", "export_config_id": "c"},
            {"metadata.year": {"$gte": 1}},
            {"metadata.year": {"$ne": 3}},
            {"metadata.tags": {"$nin": ["$where"]}},
            {"metadata.language": {"$eq": "{'$ne': 1}"}},
            {"metadata.file_name": {"$in": ["a"]}},
        ]
    }
    query = text_query("words", "t", "c", conditions)
    assert query["must"] == [{"text": {"query": "words", "path": "text"}}]
    assert query["mustNot"] == [
        {"equals": {"path": "metadata.year", "value": 3}},
        {"in": {"path": "metadata.tags", "value": ["$where"]}},
    ]
    assert {"range": {"path": "metadata.year", "gte": 1}} in query["filter"]
    assert "mustNot" not in text_query("words", "t", "c", ())


def test_definitions_that_hold_what_is_wanted_are_left_alone() -> None:
    more = {**FIELDS, "theirs": "string"}
    theirs = SinkContext("prj", MODEL, more)
    assert grown_vector_definition(vector_definition(theirs), CONTEXT) is None
    assert grown_text_definition(text_definition(theirs), CONTEXT) is None


def test_definitions_grow_and_keep_what_others_declared() -> None:
    theirs = SinkContext("prj", MODEL, {"theirs": "boolean"})
    vectors = grown_vector_definition(vector_definition(theirs), CONTEXT)
    assert vectors is not None
    paths = [item["path"] for item in vectors["fields"]]
    assert {"embedding", "metadata.theirs", "metadata.year"} <= set(paths)
    assert len(paths) == len(set(paths))
    held = {**text_definition(theirs), "analyzer": "lucene.german"}
    texts = grown_text_definition(held, CONTEXT)
    assert texts is not None
    assert texts["analyzer"] == "lucene.german"
    assert (
        texts["mappings"]["fields"]["metadata"]["fields"].items()
        >= {"theirs": {"type": "boolean"}, "tags": {"type": "token"}}.items()
    )
    assert grown_text_definition(texts, CONTEXT) is None
    assert grown_text_definition(texts, theirs) is None


def test_definitions_of_a_field_indexed_in_several_ways_are_kept_and_one_of_them_must_fit() -> None:
    """As a field is listed whose values are single ones and lists (documented by the vendor)."""
    held = text_definition(SinkContext("prj", MODEL, {}))
    fields = held["mappings"]["fields"]
    fields["text"] = [{"type": "autocomplete"}, fields["text"]]
    fields["metadata"] = [{"type": "embeddedDocuments"}, fields["metadata"]]
    grown = grown_text_definition(held, CONTEXT)
    assert grown is not None
    found = grown["mappings"]["fields"]
    assert (found["text"], found["metadata"][0]) == (fields["text"], {"type": "embeddedDocuments"})
    assert found["metadata"][1]["fields"].keys() == fields["metadata"][1]["fields"].keys() | FIELDS.keys()
    assert grown_text_definition(grown, CONTEXT) is None
    found["metadata"] = found["metadata"][1:]
    assert grown_text_definition(grown, CONTEXT) is None
    fields["text"] = [{"type": "autocomplete"}, {"type": "token"}]
    with pytest.raises(SinkConflict, match="'text' as 'autocomplete' and 'token'"):
        grown_text_definition(held, CONTEXT)


@pytest.mark.parametrize("change", [{"similarity": "euclidean"}, {"numDimensions": 7}, {"path": "other"}])
def test_a_vector_index_of_another_kind_is_a_conflict(change: dict[str, Any]) -> None:
    held = vector_definition(CONTEXT)
    held["fields"][0] = {**held["fields"][0], **change}
    with pytest.raises(SinkConflict, match="vector_index"):
        grown_vector_definition(held, CONTEXT)


@pytest.mark.parametrize(("declared", "now"), [("string", "integer"), ("integer", "float"), ("boolean", "string_list")])
def test_a_field_declared_as_another_type_is_a_conflict(declared: Any, now: Any) -> None:
    held = text_definition(SinkContext("prj", MODEL, {"field": declared}))
    with pytest.raises(SinkConflict, match="'field'"):
        grown_text_definition(held, SinkContext("prj", MODEL, {"field": now}))


def test_a_text_field_mapped_as_something_else_is_a_conflict() -> None:
    held = text_definition(CONTEXT)
    held["mappings"]["fields"]["text"] = {"type": "autocomplete"}
    with pytest.raises(SinkConflict, match="'text'"):
        grown_text_definition(held, CONTEXT)


def test_another_dimension_is_another_definition() -> None:
    wider = SinkContext("prj", ModelIdentity("m", "f", 32), {})
    with pytest.raises(SinkConflict, match="numDimensions is 16, not 32"):
        grown_vector_definition(vector_definition(CONTEXT), wider)
