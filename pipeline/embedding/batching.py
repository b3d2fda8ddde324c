"""Which texts travel together.

What belongs here: pure planning. A plan is a list of batches of indices; every index is in exactly one.
"""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(token_counts: Sequence[int], *, token_budget: int, max_items: int) -> list[list[int]]:
    """Batches for a model that pads each batch to its longest text.

    Texts of like length share a batch, the longest first (so memory peaks at once, not at the end). A batch costs
    ``items x longest`` tokens, at most ``token_budget``; a text longer than the budget is a batch of its own.
    """
    by_length = sorted(range(len(token_counts)), key=lambda index: (-token_counts[index], index))
    batches: list[list[int]] = []
    room = 0
    for index in by_length:
        if room == 0:
            batches.append([])
            longest = token_counts[index]
            room = min(max_items, max(1, token_budget // longest)) if longest else max_items
        batches[-1].append(index)
        room -= 1
    return batches


def plan_requests(token_counts: Sequence[int], *, max_tokens: int, max_items: int) -> list[list[int]]:
    """Batches for an endpoint that limits the items and the sum of tokens of a request, in the order given.

    A text of more than ``max_tokens`` is a request of its own.
    """
    requests: list[list[int]] = []
    used = 0
    for index, count in enumerate(token_counts):
        if not requests or used + count > max_tokens or len(requests[-1]) == max_items:
            requests.append([])
            used = 0
        requests[-1].append(index)
        used += count
    return requests


def check_inputs(texts: Sequence[str], token_counts: Sequence[int], *, max_tokens: int) -> None:
    """Raise ValueError unless there is one count a text and no text is longer than the model reads."""
    if len(texts) != len(token_counts):
        raise ValueError(f"{len(texts)} texts came with {len(token_counts)} token counts")
    too_long = next((index for index, count in enumerate(token_counts) if count > max_tokens), None)
    if too_long is not None:
        raise ValueError(f"text {too_long} has {token_counts[too_long]} tokens, the model reads {max_tokens}")


def check_question(tokens: int, *, max_tokens: int) -> None:
    """Raise ValueError for a search query of more tokens than the model reads."""
    if tokens > max_tokens:
        raise ValueError(f"the question is too long: it has {tokens} tokens, and the model reads {max_tokens}; shorten it")
