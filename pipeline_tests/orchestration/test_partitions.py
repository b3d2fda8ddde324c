from __future__ import annotations

import dagster as dg
from dagster._core.test_utils import create_run_for_test
from hypothesis import given
from hypothesis import strategies as st

from pipeline.orchestration.partitions import (
    PARTITION,
    RANGE_START,
    add_keys,
    contiguous_ranges,
    delete_keys,
    is_quiet,
    key_order,
    run_is_live,
)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 7))
def test_ranges_cover_exactly_the_wanted_keys_in_store_order(flags: list[bool], size: int) -> None:
    order = [f"k{n}" for n in range(len(flags))]
    wanted = [key for key, flag in zip(order, flags, strict=True) if flag]
    ranges = list(contiguous_ranges(order, wanted, size))
    assert [key for keys in ranges for key in keys] == wanted
    for keys in ranges:
        assert 0 < len(keys) <= size
        start = order.index(keys[0])
        assert order[start : start + len(keys)] == keys


def test_keys_are_appended_once_and_keep_their_order() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        add_keys(instance, "default", ["b", "a"])
        add_keys(instance, "default", ["a", "c"])
        assert key_order(instance, "default") == ["b", "a", "c"]
        delete_keys(instance, "default", ["b"])
        add_keys(instance, "default", ["b"])
        assert key_order(instance, "default") == ["a", "c", "b"]


def test_a_moment_is_quiet_unless_an_unfinished_run_carries_a_partition() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert is_quiet(instance)
        create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
        create_run_for_test(instance, status=dg.DagsterRunStatus.SUCCESS, tags={PARTITION: "a"})
        assert is_quiet(instance)
        started = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={RANGE_START: "a"})
        assert not is_quiet(instance)
        assert run_is_live(instance, started.run_id)
        instance.delete_run(started.run_id)
        assert is_quiet(instance)
        assert not run_is_live(instance, started.run_id)
