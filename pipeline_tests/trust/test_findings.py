"""Comparing one file's records with what they should be, without a store."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.records import FileProvenance, build_file_records
from pipeline.stages.findings import Finding, compare_file
from pipeline_tests.conformance.harness import synthetic_chunks, unit_vectors, vector_column


def records(count: int, dimension: int = 16) -> pa.Table:
    provenance = FileProvenance("prj", "exp", "dfl-1", "a.md", "hash", datetime(2026, 1, 2, tzinfo=UTC), {"team": "gauges"})
    chunks = synthetic_chunks([f"text {n}" for n in range(count)])
    model = ModelIdentity("m", f"m@{dimension}", dimension)
    return build_file_records(provenance, chunks, vector_column(unit_vectors("v", count, dimension)), model).table


def compared(expected: pa.Table, held: pa.Table) -> list[tuple[str, int | None]]:
    return [(finding.kind, finding.chunk_index) for finding in compare_file("sink", "dfl-1", expected, held)]


def with_vectors(table: pa.Table, vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> pa.Table:
    position = table.schema.get_field_index("embedding")
    return table.set_column(position, table.schema.field("embedding"), vector_column(np.asarray(vectors, np.float32)))


def test_vectors_of_another_length_are_one_finding_for_the_file() -> None:
    assert compare_file("sink", "dfl-1", records(3), records(3, 8)) == [
        Finding("wrong_dimension", "sink", "dfl-1", None, "vectors of 8 instead of 16")
    ]


def test_a_store_that_normalises_holds_the_same_vectors() -> None:
    table = records(4)
    assert compared(with_vectors(table, unit_vectors("v", 4) * np.float32(3.7)), table) == []


@pytest.mark.parametrize("component", [np.nan, np.inf, 0.9])
def test_a_vector_that_points_elsewhere_or_nowhere_is_altered(component: float) -> None:
    table = records(3)
    vectors = unit_vectors("v", 3).copy()
    vectors[1, 0] = component
    assert compared(table, with_vectors(table, vectors)) == [("altered_vector", 1)]


def test_of_a_sink_without_vectors_everything_else_is_compared() -> None:
    held = records(3).drop_columns(["embedding"])
    assert compared(records(3), held) == []
    assert ("stale_tail", 2) in compared(records(2), held)
    assert compared(records(0), held.slice(0, 1)) == [("stale_tail", 0)]
    assert ("missing_chunk", 1) in compared(records(3), held.take([0, 2]))


@given(held=st.lists(st.integers(0, 7), max_size=12), count=st.integers(0, 6))
@settings(deadline=None, max_examples=60)
def test_rows_are_found_missing_duplicate_or_beyond_the_end_in_any_order(held: list[int], count: int) -> None:
    every = records(8)
    expected = records(8).slice(0, count)
    found = compared(expected, every.take(pa.array(held, pa.int64())))
    missing = {("missing_chunk", index) for index in range(count) if index not in held}
    beyond = {("stale_tail", index) for index in held if index >= count}
    twice = {("duplicate", index) for index in held if index < count and held.count(index) > 1}
    assert set(found) == missing | beyond | twice
    assert len(found) == len(set(found))
