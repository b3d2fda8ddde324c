"""Content-chosen cuts."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.documents.anchors import find_anchors, halve, pack

_UNITS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(units=_UNITS, reach=st.integers(1, 120))
def test_an_anchor_is_the_first_smallest_key_within_reach(units: list[tuple[int, int]], reach: int) -> None:
    keys = [key for key, _ in units]
    borders = [0, *accumulate(size for _, size in units)]

    def is_anchor(index: int) -> bool:
        before = [keys[i] for i in range(index) if borders[index] - borders[i] < reach]
        after = [keys[i] for i in range(index + 1, len(keys)) if borders[i] - borders[index] <= reach]
        inside = reach <= borders[index] < borders[-1] - reach
        return inside and all(k > keys[index] for k in before) and all(k >= keys[index] for k in after)

    assert find_anchors(keys, borders, reach) == [index for index in range(len(keys)) if is_anchor(index)]


@settings(max_examples=200, deadline=None)
@given(units=_UNITS, room=st.integers(1, 100))
def test_packing_partitions_the_units_and_only_a_lone_unit_exceeds_its_room(units: list[tuple[int, int]], room: int) -> None:
    sizes = [size for _, size in units]
    ranges = pack(sizes, [room] * len(units), [key for key, _ in units], 2 * room)
    assert [index for first, last in ranges for index in range(first, last)] == list(range(len(units)))
    assert all(last - first == 1 or sum(sizes[first:last]) <= room for first, last in ranges)


@settings(max_examples=200, deadline=None)
@given(units=_UNITS, longest=st.integers(1, 120))
def test_halving_partitions_the_units_and_only_a_lone_unit_is_longer(units: list[tuple[int, int]], longest: int) -> None:
    borders = [0, *accumulate(size for _, size in units)]
    ranges = halve([key for key, _ in units], borders, longest)
    assert [index for first, last in ranges for index in range(first, last)] == list(range(len(units)))
    assert all(last - first == 1 or borders[last] - borders[first] <= longest for first, last in ranges)
    if max(size for _, size in units) * 4 <= longest < borders[-1]:
        assert all(borders[last] - borders[first] > longest / 4 - 1 for first, last in ranges)


def test_halving_cuts_where_the_key_is_smallest_in_the_middle_half() -> None:
    assert halve([1, 1, 5, 2, 5, 5, 5, 1], list(range(0, 90, 10)), 79) == [(0, 3), (3, 8)]
    assert halve([5, 1], [0, 90, 100], 50) == [(0, 1), (1, 2)]
    assert halve([5, 1, 1], [0, 10, 20, 100], 50) == [(0, 2), (2, 3)]


def test_an_insertion_moves_few_of_the_halves_cuts() -> None:
    rng = random.Random(5)
    keys = [rng.getrandbits(32) for _ in range(4000)]
    cuts = {keys[first] for first, _ in halve(keys, list(range(4001)), 40)}
    moved = []
    for _ in range(30):
        position = rng.randrange(4000)
        changed = [*keys[:position], rng.getrandbits(32), *keys[position:]]
        moved.append(len(cuts ^ {changed[first] for first, _ in halve(changed, list(range(4002)), 40)}))
    assert len(cuts) > 100
    assert sorted(moved)[26] <= 4
    assert max(moved) <= 12


def test_a_sequence_of_a_few_chunks_has_no_anchors_and_is_packed_full() -> None:
    assert pack([30] * 7, [100] * 7, [9, 3, 8, 1, 7, 2, 6], 200) == [(0, 3), (3, 6), (6, 7)]


def test_anchors_far_from_an_insertion_stay() -> None:
    rng = random.Random(5)
    keys = [rng.getrandbits(32) for _ in range(400)]
    changed = [*keys[:200], 1, *keys[200:]]
    reach = 10
    before = find_anchors(keys, list(range(401)), reach)
    after = find_anchors(changed, list(range(402)), reach)
    assert [a for a in before if a < 200 - reach] == [a for a in after if a < 200 - reach]
    assert [a + 1 for a in before if a > 200 + reach] == [a for a in after if a > 201 + reach]
    assert all(right - left >= reach for left, right in pairwise(before))
