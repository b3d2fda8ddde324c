from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.embedding.batching import check_inputs, plan_batches, plan_requests

counts = st.lists(st.integers(0, 600), max_size=80)
caps = st.integers(1, 2000)
items = st.integers(1, 40)


@settings(deadline=None)
@given(counts, caps, items)
def test_every_text_is_in_exactly_one_batch(token_counts: list[int], budget: int, max_items: int) -> None:
    for plan in (
        plan_batches(token_counts, token_budget=budget, max_items=max_items),
        plan_requests(token_counts, max_tokens=budget, max_items=max_items),
    ):
        assert sorted(index for batch in plan for index in batch) == list(range(len(token_counts)))
        assert all(1 <= len(batch) <= max_items for batch in plan)


@settings(deadline=None)
@given(counts, caps, items)
def test_a_padded_batch_stays_in_budget_unless_it_is_one_text(token_counts: list[int], budget: int, max_items: int) -> None:
    for batch in plan_batches(token_counts, token_budget=budget, max_items=max_items):
        assert len(batch) == 1 or len(batch) * max(token_counts[index] for index in batch) <= budget


@settings(deadline=None)
@given(counts, caps, items)
def test_batches_run_from_long_to_short(token_counts: list[int], budget: int, max_items: int) -> None:
    order = [index for batch in plan_batches(token_counts, token_budget=budget, max_items=max_items) for index in batch]
    assert [token_counts[index] for index in order] == sorted(token_counts, reverse=True)


@settings(deadline=None)
@given(counts, caps, items)
@example([0, 0], 1, 2)
def test_a_batch_takes_the_next_text_whenever_it_fits(token_counts: list[int], budget: int, max_items: int) -> None:
    plan = plan_batches(token_counts, token_budget=budget, max_items=max_items)
    for batch in plan[:-1]:
        assert len(batch) == max_items or (len(batch) + 1) * token_counts[batch[0]] > budget


@settings(deadline=None)
@given(counts, caps, items)
def test_requests_keep_the_order_and_the_sum_of_tokens(token_counts: list[int], limit: int, max_items: int) -> None:
    plan = plan_requests(token_counts, max_tokens=limit, max_items=max_items)
    assert [index for request in plan for index in request] == list(range(len(token_counts)))
    for request in plan:
        assert len(request) == 1 or sum(token_counts[index] for index in request) <= limit


def test_a_text_longer_than_the_model_reads_is_named() -> None:
    check_inputs(["a", "b"], [3, 512], max_tokens=512)
    with pytest.raises(ValueError, match=r"text 1 has 513 tokens, the model reads 512"):
        check_inputs(["a", "b"], [3, 513], max_tokens=512)


def test_counts_must_match_the_texts() -> None:
    with pytest.raises(ValueError, match="2 texts came with 1"):
        check_inputs(["a", "b"], [3], max_tokens=512)
