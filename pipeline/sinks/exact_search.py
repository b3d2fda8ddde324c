"""Exact search over records held in memory.

What belongs here: scores, and what the conditions of ``pipeline.sinks.filters`` mean for values at hand.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.sinks.base import MetadataType, SearchHit
from pipeline.sinks.filters import Condition, FieldValue, fitting_values
from pipeline.sinks.records import matrix, to_records

_COMPARISONS: Final = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


class ExactIndex:
    """Records of ``record_schema``, and their vectors with length 1."""

    def __init__(self, records: pa.Table, declared: Mapping[str, MetadataType]) -> None:
        self._vectors = _normalised(matrix(records["embedding"]))
        self._records = records.drop_columns(["embedding"])
        keys = zip(*(records[name].to_pylist() for name in ("parsed_directory_file_id", "file_name", "metadata")), strict=True)
        numbers: dict[tuple[str, str, str], int] = {}
        self._file_of_row = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        self._fields: list[dict[str, FieldValue]] = [
            {**fitting_values(metadata, declared), "parsed_directory_file_id": file_id, "file_name": name}
            for file_id, name, metadata in numbers
        ]

    def nearest(self, vector: npt.NDArray[np.float32], k: int, conditions: Sequence[Condition]) -> list[SearchHit]:
        """The ``k`` best records by cosine similarity among those whose file meets the conditions."""
        rows = self._rows_meeting(conditions)
        if not len(rows):
            return []
        scores = self._vectors[rows] @ _normalised(vector.reshape(1, -1))[0]
        best = np.argsort(-scores, kind="stable")[:k]
        records = to_records(self._records.take(pa.array(rows[best])))
        similarities = np.clip(scores[best], -1.0, 1.0).tolist()
        return [SearchHit(record, score) for record, score in zip(records, similarities, strict=True)]

    def _rows_meeting(self, conditions: Sequence[Condition]) -> npt.NDArray[np.int64]:
        meets = np.array([hold(conditions, fields) for fields in self._fields], bool)
        return np.flatnonzero(meets[self._file_of_row]) if len(meets) else np.empty(0, np.int64)


def _normalised(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def hold(conditions: Sequence[Condition], fields: Mapping[str, FieldValue]) -> bool:
    """Whether these values meet all conditions. An absent one is ``None``, or left out."""
    return all(_holds(item, fields.get(item.field)) for item in conditions)


def _holds(condition: Condition, value: FieldValue) -> bool:
    if condition.is_order:
        return isinstance(value, (int, float)) and bool(_COMPARISONS[condition.operator](value, condition.values[0]))
    present = value if isinstance(value, list) else [value]
    return any(item in condition.values for item in present) != condition.negated
