"""Vectors as JSON decimals: the very same float32 numbers, short, and never longer than said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.sinks.decimals import short_decimals

DIMENSION = 3
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def column(vectors: Any) -> pa.ChunkedArray:
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])])


@given(hnp.arrays(np.float32, (2, DIMENSION), elements=finite))
def test_decimals_are_the_same_numbers_and_no_longer_than_said(vectors: Any) -> None:
    found, sizes = short_decimals(column(vectors))
    assert np.array_equal(found.astype(np.float32), vectors)
    for row, size in zip(found.tolist(), sizes.tolist(), strict=True):
        assert len(json.dumps(row, separators=(",", ":"))) <= size + len("[]") - 1


def test_a_unit_vectors_numbers_have_nine_digits_at_most() -> None:
    vectors = np.random.default_rng(5).standard_normal((50, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found, _ = short_decimals(column(vectors))
    digits = [repr(number).lstrip("-0.").partition("e")[0].replace(".", "") for number in found.reshape(-1).tolist()]
    assert max(map(len, digits)) <= 9
    assert sum(len(number) <= 8 for number in digits) > len(digits) / 2


def test_a_slice_of_a_column_is_that_slice() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    found, sizes = short_decimals(column(vectors).slice(1, 2))
    assert np.array_equal(found.astype(np.float32), vectors[1:3])
    assert len(sizes) == 2
