"""Findings: how what a sink holds differs from what it should hold.

What belongs here: the kinds of difference and the comparison of one file's records with its expected ones; pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from pipeline.embedding.base import Vectors
from pipeline.sinks.records import HASHED_FIELDS, matrix

FindingKind = Literal[
    "missing_file",
    "missing_chunk",
    "stale_tail",
    "stale_file",
    "orphan_file",
    "foreign_records",
    "altered_text",
    "altered_metadata",
    "altered_vector",
    "wrong_model",
    "wrong_dimension",
    "duplicate",
    "pending",
    "stale_index",
    "unsearchable",
    "conflict",
    "unreachable",
    "unproved",
]
"""``stale_file``: another version of the file stands (a deep verification names the records). ``pending``: a replace was left
half-way. ``stale_index``: what the store keeps beside the files, such as LlamaIndex's list of their nodes, is not theirs.
``unsearchable``: the records stand and searches do not find them. ``conflict``: the collection is not ours or does not fit.
``unreachable``: the sink is down or set up wrong.
``unproved``: the lake lacks what to compare with."""

_TEXT_FIELDS: Final = frozenset({"content", "context", "content_hash", "chunk_start_char", "chunk_end_char"})
_COMPARED: Final = (*HASHED_FIELDS, "record_set_hash")
_VECTOR_TOLERANCE: Final = 1e-5
"""Largest difference of a component between unit vectors: some stores normalise what they are given, in float32."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. ``file_id`` is ``None`` for what concerns no file, ``chunk_index`` for what concerns a whole one."""

    kind: FindingKind
    sink: str
    file_id: str | None
    chunk_index: int | None
    detail: str


def compare_file(sink: str, file_id: str, expected: pa.Table, held: pa.Table) -> list[Finding]:
    """Every difference between a file's records (both of ``record_schema``), chunk by chunk; none when they are equal.

    Ids are the store's own business and not compared. Of a sink that holds no vectors, everything else is.
    """
    if "embedding" not in held.column_names:
        expected, held = _with_one_vector(expected), _with_one_vector(held)
    dimensions = [table.schema.field("embedding").type.list_size for table in (expected, held)]
    if dimensions[0] != dimensions[1]:
        return [Finding("wrong_dimension", sink, file_id, None, f"vectors of {dimensions[1]} instead of {dimensions[0]}")]
    if _same(expected, held):
        return []
    return list(_differences(sink, file_id, expected, held))


def _with_one_vector(table: pa.Table) -> pa.Table:
    """The same vector in every row, so that rows never differ by it."""
    same = pa.FixedSizeListArray.from_arrays(pa.repeat(pa.scalar(1.0, pa.float32()), table.num_rows), 1)
    others = table.drop_columns([name for name in ("embedding",) if name in table.column_names])
    return others.append_column("embedding", same)


def _same(expected: pa.Table, held: pa.Table) -> bool:
    if expected.num_rows != held.num_rows:
        return False
    if any(not expected[name].equals(held[name]) for name in _COMPARED):
        return False
    return not _turned(_directions(expected), _directions(held)).any()


def _differences(sink: str, file_id: str, expected: pa.Table, held: pa.Table) -> Iterator[Finding]:
    wanted = {row["chunk_index"]: row for row in expected.select(_COMPARED).to_pylist()}
    wanted_at = {index: position for position, index in enumerate(wanted)}
    found: dict[int, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for position, row in enumerate(held.select(_COMPARED).to_pylist()):
        if row["chunk_index"] is None:
            yield Finding("altered_metadata", sink, file_id, None, "a record has no chunk_index")
        else:
            found[row["chunk_index"]].append((position, row))
    for index in sorted(wanted.keys() - found.keys()):
        yield Finding("missing_chunk", sink, file_id, index, f"chunk {index} of {len(wanted)} is missing")
    expected_directions, held_directions = _directions(expected), _directions(held)
    for index, rows in sorted(found.items()):
        if index not in wanted:
            yield Finding("stale_tail", sink, file_id, index, f"the file has {len(wanted)} chunks")
            continue
        if len(rows) > 1:
            yield Finding("duplicate", sink, file_id, index, f"{len(rows)} records of one chunk")
        position, row = rows[0]
        yield from _row_differences(sink, file_id, index, wanted[index], row)
        at = wanted_at[index]
        if _turned(expected_directions[at : at + 1], held_directions[position : position + 1]).any():
            yield Finding("altered_vector", sink, file_id, index, "another vector than the lake's")


def _row_differences(sink: str, file_id: str, index: int, wanted: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[Finding]:
    differing = [name for name in _COMPARED if wanted[name] != row[name]]
    texts = [name for name in differing if name in _TEXT_FIELDS]
    others = [name for name in differing if name not in _TEXT_FIELDS and name != "embedding_model"]
    if "embedding_model" in differing:
        detail = f"made by {row['embedding_model']!r} instead of {wanted['embedding_model']!r}"
        yield Finding("wrong_model", sink, file_id, index, detail)
    if texts:
        yield Finding("altered_text", sink, file_id, index, f"differs in {', '.join(texts)}")
    if others:
        yield Finding("altered_metadata", sink, file_id, index, f"differs in {', '.join(others)}")


def _directions(table: pa.Table) -> Vectors:
    """The vectors at unit length; a vector without a direction becomes NaN, which equals nothing."""
    vectors = matrix(table["embedding"])
    with np.errstate(divide="ignore", invalid="ignore"):
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _turned(one: Vectors, other: Vectors) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows differ; a row that cannot be compared differs."""
    close: np.ndarray[Any, np.dtype[np.bool_]] = np.all(np.abs(one - other) <= _VECTOR_TOLERANCE, axis=1)
    return ~close
