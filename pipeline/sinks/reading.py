"""Values as a store holds them: another program may have removed one, or put one of another type in its place.

What belongs here: reading such values without failing, so that one altered record costs no other file anything. What cannot
be read equals nothing this sink has written, so that verification names it and the next replace mends it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ALTERED_INTEGER: Final = -1
ALTERED_INSTANT: Final = datetime.min.replace(microsecond=1000, tzinfo=UTC)
"""What is read for a value of another type where a record may have none: numbers are never negative, and nothing happened a
millisecond into the year 1, the first instant of which some programs say where they know none."""

_MISFITS: Final = (pa.ArrowException, ValueError, TypeError, OverflowError)


def instant(value: object) -> datetime | None:
    """A point in time as an ISO string or as the driver's own type."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return ALTERED_INSTANT
    return found if found is None or isinstance(found, datetime) else ALTERED_INSTANT


def whole(value: object) -> int | None:
    """An integer, which some stores hold as a float, and BSON's 64-bit numbers as a class of their own."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else ALTERED_INTEGER


def from_json(value: object) -> Any:
    """What a JSON text says; ``None`` for anything else."""
    try:
        return json.loads(value) if isinstance(value, str) else None
    except ValueError:
        return None


def to_table(
    schema: pa.Schema, values_of: Callable[[str], Sequence[Any]], unpack: Callable[[Any], npt.ArrayLike] = lambda value: value
) -> pa.Table:
    """Records of ``schema`` from the values of each of its fields, vectors as ``unpack`` gives them."""
    columns = [
        to_vectors(values_of(item.name), item.type.list_size, unpack)
        if pa.types.is_fixed_size_list(item.type)
        else to_array(values_of(item.name), item)
        for item in schema
    ]
    return pa.table(columns, schema=schema)


def to_array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """A column of records: null where a value is absent, or where it is of another type and no record has null there."""
    if pa.types.is_integer(field.type):
        values = [whole(value) for value in values]
    elif pa.types.is_timestamp(field.type):
        values = [instant(value) for value in values]
    try:
        return pa.array(values, field.type)
    except _MISFITS:
        return pa.array([value if _fits(value, field.type) else None for value in values], field.type)


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except _MISFITS:
        return False
    return True


def to_vectors(
    values: Sequence[Any], dimension: int, unpack: Callable[[Any], npt.ArrayLike] = lambda value: value
) -> pa.FixedSizeListArray:
    """A column of vectors, as ``unpack`` gives them: NaN where one is absent or is no vector of this dimension."""
    vectors = np.full((len(values), dimension), np.nan, np.float32)
    for row, value in enumerate(values):
        try:
            vector = np.asarray(unpack(value), np.float32)
        except _MISFITS:
            continue
        if vector.shape == (dimension,):
            vectors[row] = vector
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension)
