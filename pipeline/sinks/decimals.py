"""Vectors as the decimals that travel in JSON.

What belongs here: how a float32 is written so that it reads back as the same number in as few digits as can be had at once
for a whole matrix. The float64 of a float32 takes up to 17 digits; 8 mostly suffice and 9 always do. What we write ourselves is
text; an SDK that writes its own JSON is given numbers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sinks.records import matrix

_DIGITS: Final = (9, 8)
_POWERS: Final = 10.0 ** np.arange(23)
"""Those a float64 holds exactly, so that a quotient by one is the float64 nearest to the decimal."""

_SIGN_POINT_COMMA: Final = 4
_MOST_ZEROS: Final = 4
"""In front of the digits, before an encoder writes an exponent instead."""

_ANY_NUMBER: Final = 26
"""The longest float64 as JSON, with its comma."""


def json_vectors(column: pa.ChunkedArray) -> pa.StringArray:
    """The vectors of a fixed_size_list<float32> column as the insides of JSON arrays: the shortest decimals that read back as the
    same float32."""
    vectors = column.combine_chunks()
    size = vectors.type.list_size
    offsets = pa.array(range(0, len(vectors) * size + 1, size), pa.int64())
    numbers = pc.cast(vectors.flatten(), pa.string())
    return pc.binary_join(pa.LargeListArray.from_arrays(offsets, numbers), ",")


def short_decimals(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The finite vectors of a fixed_size_list<float32> column, a row each, and how many bytes each takes in JSON at most.

    Every number converts to the very float32 it stands for.
    """
    vectors = matrix(column)
    exponents = _exponents(vectors)
    exact = vectors.astype(np.float64)
    found = exact
    for digits in _DIGITS:
        scale = _POWERS[np.clip(digits - 1 - exponents, 0, _POWERS.size - 1)]
        shorter = np.rint(exact * scale) / scale
        found = np.where(shorter.astype(np.float32) == vectors, shorter, found)
    return found, _lengths(exponents).sum(axis=1)


def _exponents(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Of ten, of every number's first digit; 0 for zeros."""
    with np.errstate(divide="ignore"):
        found = np.floor(np.log10(np.abs(vectors)))
    return np.where(np.isfinite(found), found, 0).astype(np.int64)


def _lengths(exponents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    digits = _DIGITS[0]
    usual = _SIGN_POINT_COMMA + digits + np.clip(-exponents - 1, 0, _MOST_ZEROS)
    return np.where(np.abs(exponents) < digits, usual, _ANY_NUMBER)
