"""Which turn of several is told of."""

from __future__ import annotations

from benchmarks.comparison import median_turn
from benchmarks.sink import Measure


def test_the_median_turn_is_told_the_lower_one_of_two() -> None:
    turns = [Measure("step", 10, seconds) for seconds in (3.0, 1.0, 9.0, 2.0)]
    assert median_turn(turns).seconds == 2.0
    assert median_turn(turns[:3]).seconds == 3.0
