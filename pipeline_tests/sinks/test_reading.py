"""Reading what another program has altered: nothing fails, and nothing equals what was written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bson import Int64

from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.generations import ALTERED, Head, is_altered, read_head, to_snapshots
from pipeline.sinks.reading import ALTERED_INSTANT, ALTERED_INTEGER, to_array, to_vectors
from pipeline.sinks.records import record_schema, to_records

WHEN = datetime(2026, 3, 4, 5, 6, 7, 89_000, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "tenant_id": "prj",
    "export_config_id": "cfg",
    "parsed_directory_file_id": "dfl-1",
    "content_fingerprint_hash": "f",
    "source_modified_at": WHEN.isoformat(timespec="milliseconds"),
    "chunk_count": 3,
    "embedding_model": "m",
    "record_set_hash": "h",
}


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        ("chunk_count", [3, 4.0, 1.5, "3", True, 2**40, 1e300, None], [3, 4, -1, -1, -1, None, None, None]),
        ("chunk_start_char", [2**40, 2**70, float("nan"), Int64(2**40)], [2**40, None, -1, 2**40]),
        ("content", ["text", 5, b"\xff", ["text"], "\ud800", None], ["text", None, None, None, None, None]),
        ("source_modified_at", [WHEN.isoformat(), "yesterday", 5, None], [WHEN, ALTERED_INSTANT, ALTERED_INSTANT, None]),
        ("attachments", [[], "x", {}, [5], [{"type": 5}], None], [[], None, None, None, None, None]),
    ],
)
def test_a_value_of_another_type_reads_as_one_no_record_has(name: str, values: list[Any], read: list[Any]) -> None:
    field = record_schema(1).field(name)
    assert to_array(values, field).to_pylist() == read
    assert to_array(values, field).type == field.type


def test_what_is_no_vector_reads_as_nan() -> None:
    read = to_vectors([[1, 2], None, [1], "xy", [[1, 2]], ["a", "b"], {}], 2)
    assert read.type == pa.list_(pa.float32(), 2)
    assert read[0].as_py() == [1.0, 2.0]
    assert np.isnan(read[1:].flatten().to_numpy()).all()


def test_a_record_with_nothing_left_is_still_one() -> None:
    schema = record_schema(2)
    (record,) = to_records(pa.table([to_array([None], item) for item in schema], schema=schema))
    assert (record.content, record.chunk_index, record.attachments, record.metadata) == ("", ALTERED_INTEGER, (), {})


def _listed(head: Head | None) -> str:
    assert head is not None
    (snapshot,) = to_snapshots([head])
    return snapshot.record_set_hash


def test_a_head_as_it_was_written_is_listed_as_that_version() -> None:
    head = read_head(VALUES, None)
    assert _listed(head) == "h"
    assert head is not None
    assert (head.key, head.generation) == (FileKey("prj", "cfg", "dfl-1"), Generation("h", 3))
    assert head.snapshot.source_modified_at == WHEN
    assert _listed(read_head({**VALUES, "chunk_count": 3.0}, "")) == "h"
    assert _listed(read_head(VALUES, "g:2,h:3")) == "pending:g:2,h:3"


TEXTS = ("content_fingerprint_hash", "embedding_model", "record_set_hash")
ALTERED_FIELDS: dict[str, list[Any]] = {
    **{name: [None, 5, []] for name in TEXTS},
    "chunk_count": [None, "3", 0, -2, 1.5, {}],
    "source_modified_at": ["yesterday", 5, []],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ALTERED_FIELDS.items() for value in values])
def test_a_head_with_an_altered_field_is_listed_as_altered_and_names_what_it_can(name: str, value: object) -> None:
    head = read_head({**VALUES, name: value}, "g:2,garbage,x:,:5,y:-1")
    assert head is not None
    assert is_altered(to_snapshots([head])[0])
    known = [] if name in ("chunk_count", "record_set_hash") else [Generation("h", 3)]
    assert head.named() == [*known, Generation("g", 2)]


def test_a_marker_that_is_no_text_makes_the_head_an_altered_one() -> None:
    assert _listed(read_head(VALUES, 5)) == f"pending:{ALTERED}"


@pytest.mark.parametrize("name", ["tenant_id", "export_config_id", "parsed_directory_file_id"])
@pytest.mark.parametrize("value", [None, 5, ["dfl-1"]])
def test_a_record_that_does_not_say_which_file_it_is_of_is_no_head(name: str, value: object) -> None:
    assert read_head({**VALUES, name: value}, None) is None


def test_an_endless_count_names_nothing() -> None:
    head = read_head({**VALUES, "chunk_count": 10**12}, f"g:{10**12}")
    assert head is not None
    assert head.named() == []
