"""How records are spelled in Pinecone: names, ids, numbers, metadata and its limits."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import RecordRefused
from pipeline.sinks import pinecone as sink
from pipeline.sinks import pinecone_layout as layout
from pipeline.sinks.file_keys import Generation
from pipeline.sinks.pinecone_layout import RecordKey, Write
from pipeline.sinks.records import FileProvenance, FileRecords, build_file_records, record_set_hash
from pipeline_tests.conformance.harness import FIELDS, MODEL, synthetic_chunks, unit_vectors, vector_column

names = st.text(min_size=1, max_size=60)
identifiers = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def make_file(
    texts: Sequence[str], *, metadata: dict[str, Any] | None = None, vectors: Any = None, file_id: str = "dfl-1"
) -> FileRecords:
    provenance = FileProvenance("prj-1", "cfg-1", file_id, "a.pdf", "hash", None, metadata or {})
    numbers = unit_vectors("seed", len(texts)) if vectors is None else vectors
    return build_file_records(provenance, synthetic_chunks(texts), vector_column(numbers), MODEL)


def encoded(file: FileRecords) -> Sequence[Write]:
    return layout.encode_file(file, FIELDS).writes


@given(name=names, fingerprint=names, prefix=st.from_regex(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?", fullmatch=True))
def test_an_index_name_is_one_pinecone_allows(name: str, fingerprint: str, prefix: str) -> None:
    model = ModelIdentity(name, fingerprint, 8)
    made = layout.index_name(prefix, model)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", made)
    assert len(made) <= 45
    assert made.endswith(model.slug[-8:])


@given(first=st.tuples(identifiers, identifiers), second=st.tuples(identifiers, identifiers))
def test_a_namespace_is_plain_and_belongs_to_one_config_of_one_tenant(first: tuple[str, str], second: tuple[str, str]) -> None:
    one, other = layout.namespace_name(*first), layout.namespace_name(*second)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,512}", one)
    assert (one == other) == (first == second)


@given(config=identifiers, file_id=identifiers, count=st.integers(1, 3))
def test_a_record_id_is_ascii_and_says_which_document_it_is_of(config: str, file_id: str, count: int) -> None:
    ids = RecordKey("prj", config, file_id).ids(Generation("hash", count))
    assert len(set(ids)) == count
    for made in ids:
        assert made.isascii()
        assert made.isprintable()
        assert layout.document_of(made) == f"{config}:{file_id}"
        assert made.startswith(RecordKey("prj", config, file_id).prefix)


def test_the_id_of_an_ordinary_file_is_what_llama_index_lists_by() -> None:
    (write, *_) = encoded(make_file(["a"], file_id="dfl-a1b2"))
    assert re.fullmatch(r"cfg-1:dfl-a1b2#[0-9a-f-]{36}", write.id)


@given(a=identifiers, b=identifiers)
def test_the_prefix_of_one_file_is_never_that_of_another(a: str, b: str) -> None:
    if a != b:
        assert not RecordKey("prj", "cfg", a).prefix.startswith(RecordKey("prj", "cfg", b).prefix)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, (2, MODEL.dimension), elements=finite).filter(lambda values: values.any(axis=1).all()))
def test_a_vector_is_sent_as_short_decimals_that_are_the_same_numbers(vectors: Any) -> None:
    for row, write in zip(vectors, encoded(make_file(["a", "b"], vectors=vectors)), strict=True):
        sent = orjson.loads(orjson.dumps(write.values))
        assert np.asarray(sent, np.float32).tobytes() == row.tobytes() or np.array_equal(np.asarray(sent, np.float32), row)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(st.lists(texts, min_size=1, max_size=3), st.dictionaries(texts, texts | st.booleans() | st.lists(texts), max_size=4))
def test_a_record_comes_back_as_it_was_and_its_size_is_not_underrated(contents: list[str], metadata: dict[str, Any]) -> None:
    metadata = {key: value for key, value in metadata.items() if key not in FIELDS}
    file = make_file(contents, metadata=metadata)
    writes = encoded(file)
    for write in writes:
        wire = orjson.dumps({"id": write.id, "values": write.values, "metadata": write.metadata})
        assert len(wire) + 1 <= write.size
        for value in write.metadata.values():
            assert isinstance(value, str | int | float) or all(isinstance(element, str) for element in value)
    table = layout.decode([(write.id, _held(write.metadata), write.values) for write in writes], MODEL.dimension)
    assert table.schema == file.table.schema
    assert record_set_hash(table) == file.record_set_hash
    assert table.drop_columns(["id"]).equals(file.table.drop_columns(["id"]))


def _held(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: float(value) if type(value) is int else value for key, value in metadata.items()}


def test_metadata_is_llama_indexs_with_the_text_held_once() -> None:
    text = "the sluice gate is closed"
    (_, write) = encoded(make_file(["first", text], metadata={"year": 2024, "note": None, "tags": ["a"], "mixed": [1, "a"]}))
    node = json.loads(write.metadata["_node_content"])
    assert node["text"] == text
    assert node["metadata"]["context"] == "# Manual\n\n"
    assert node["id_"] == write.id.rpartition("#")[2]
    assert node["relationships"]["1"]["node_id"] == "cfg-1:dfl-1"
    assert {write.metadata[key] for key in ("document_id", "doc_id", "ref_doc_id")} == {"cfg-1:dfl-1"}
    assert write.metadata["_node_type"] == "TextNode"
    assert write.metadata["year"] == 2024
    assert write.metadata["tags"] == ["a"]
    assert not {"note", "mixed", "content", "text", "context"} & write.metadata.keys()
    assert orjson.dumps(write.metadata).count(text.encode()) == 1


def test_a_files_own_metadata_never_stands_in_for_a_records_fields() -> None:
    posing = {"tenant_id": "x", "_node_content": "x", "chunk_count": "9", "pending": "x", "page_range_start": "x", "$where": "x"}
    *_, write = encoded(make_file(["a", "b", "c"], metadata=posing))
    assert write.metadata["tenant_id"] == "prj-1"
    assert write.metadata["chunk_count"] == 3
    assert not {"pending", "page_range_start", "$where"} & write.metadata.keys()


@pytest.mark.parametrize(
    ("texts", "summary", "told"),
    [
        (["small", "x" * 40_000], 10, r"chunk 1 makes 4\d,\d{3} .* 40,960 a record: 4\d,\d{3} .* text .*; make chunks smaller$"),
        (["x" * 36_000], 10, r"chunk 0 makes 3\d,\d{3} .* 36,864 .*40,960, .* 4,096 free.*: 3\d,\d{3} .*; make chunks smaller$"),
        (
            ["small", "small"],
            20_000,
            r"chunk 0 makes 6\d,\d{3} .*, 60,\d{3} the file's metadata.*three times; make that smaller$",
        ),
    ],
)
def test_a_record_larger_than_pinecone_holds_is_refused_with_what_makes_it_so(
    texts: Sequence[str], summary: int, told: str
) -> None:
    with pytest.raises(RecordRefused, match=f"dfl-1: {told}"):
        encoded(make_file(texts, metadata={"summary": "s" * summary}))


@pytest.mark.parametrize(
    ("texts", "summary", "most"),
    [
        (lambda size: [("word " * size)[:size]], lambda _: "", 34_000),
        (lambda size: ["first", ("word " * size)[:size]], lambda _: "", 38_000),
        (lambda size: ["first", ('"ab",' * size)[:size]], lambda _: "", 17_000),
        (lambda _: ["word " * 200], lambda size: "s" * size, 11_000),
    ],
    ids=["first chunk", "later chunk", "quotes", "metadata"],
)
def test_as_much_fits_as_is_documented(texts: Callable[[int], list[str]], summary: Callable[[int], str], most: int) -> None:
    """In the docstring of the sink, which is part of the documentation."""
    assert f"{most:,}" in (sink.__doc__ or "")
    encoded(make_file(texts(most), metadata={"summary": summary(most)}))
    with pytest.raises(RecordRefused):
        encoded(make_file(texts(most * 11 // 10), metadata={"summary": summary(most * 11 // 10)}))


@given(st.integers(38_000, 40_500))
def test_what_is_not_refused_fits_whole_and_marked(length: int) -> None:
    file = make_file(["x" * (length - 4_096), "x" * length])
    try:
        head, body = encoded(file)
    except RecordRefused:
        return
    marked = head.marked("h" * 4_000)
    for write in (marked, body):
        assert len(orjson.dumps(write.metadata)) <= layout.MAX_METADATA_BYTES
    wire = orjson.dumps({"id": marked.id, "values": marked.values, "metadata": marked.metadata})
    assert len(wire) + 1 <= marked.size


def test_a_vector_of_zeros_is_refused() -> None:
    vectors = unit_vectors("seed", 3)
    vectors[1] = 0
    with pytest.raises(RecordRefused, match="chunk 1 is all zeros"):
        encoded(make_file(["a", "b", "c"], vectors=vectors))


def test_an_integer_that_a_float_cannot_hold_is_refused_where_filters_would_lie() -> None:
    with pytest.raises(RecordRefused, match=r"'year' is beyond.*2\*\*53") as refused:
        encoded(make_file(["a"], metadata={"year": 2**53 + 1}))
    assert str(2**53 + 1) not in str(refused.value)
    (write,) = encoded(make_file(["a"], metadata={"undeclared": 2**53 + 1}))
    assert "undeclared" not in write.metadata
    assert json.loads(write.metadata["metadata_json"]) == {"undeclared": 2**53 + 1}


def test_ids_longer_than_pinecone_holds_are_refused() -> None:
    with pytest.raises(RecordRefused, match="512"):
        encoded(make_file(["a"], file_id="d" * 480))
    assert len(encoded(make_file(["a"], file_id="d" * 469))[0].id) == 512


def test_a_record_written_by_others_is_no_head_and_equals_nothing_we_write() -> None:
    assert layout.to_head({"chunk_index": 0.0}) is None
    (row,) = layout.decode([("stray", {"text": "x", "_node_content": "[]"}, [0.0] * 16)], 16).to_pylist()
    assert {value for name, value in row.items() if name not in ("id", "embedding")} == {None}


def test_an_empty_file_has_no_records() -> None:
    file = dataclasses.replace(make_file(["a"]), table=make_file(["a"]).table.slice(0, 0))
    assert encoded(file) == []
    assert layout.decode([], 16).num_rows == 0
    assert isinstance(layout.decode([], 16), pa.Table)
