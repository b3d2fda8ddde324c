"""Cutting work into requests."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sinks.slicing import one_ahead, slices


@given(st.lists(st.integers(0, 20)), st.integers(1, 5), st.integers(0, 30))
def test_slices_keep_order_and_both_limits(items: list[int], count: int, size: int) -> None:
    cut = list(slices(items, count=count, size=size, size_of=lambda item: item))
    assert [item for part in cut for item in part] == items
    assert all(part and len(part) <= count and (sum(part) <= size or len(part) == 1) for part in cut)
    assert all(len(left) == count or sum(left) + right[0] > size for left, right in pairwise(cut))


async def test_the_next_result_is_made_while_the_present_one_is_used() -> None:
    second_started = threading.Event()

    def work(item: str) -> str:
        if item == "b":
            second_started.set()
        return item * 2

    seen = []
    async for item, result in one_ahead(["a", "b", "c"], work):
        if item == "a":
            assert await asyncio.to_thread(second_started.wait, 10)
        seen.append((item, result))
    assert seen == [("a", "aa"), ("b", "bb"), ("c", "cc")]


async def test_an_error_in_the_work_comes_out_at_its_turn() -> None:
    def work(item: str) -> str:
        if item == "b":
            raise KeyError("second")
        return item

    results = one_ahead(["a", "b"], work)
    assert await anext(results) == ("a", "a")
    with pytest.raises(KeyError, match="second"):
        await anext(results)
