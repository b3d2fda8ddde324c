"""How long the stores wait before they ask again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.sinks import backoff


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("2", 2.0, 2.5),
        ("1800", 30.0, 37.5),
        ("0", 0.0, 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0, 2.0),
        (None, 1.0, 2.0),
    ],
)
def test_waits_are_bounded_and_jittered(header: str | None, least: float, most: float) -> None:
    waits = [backoff.wait(header, 4) for _ in range(50)]
    assert least <= min(waits) <= max(waits) <= most
    assert most == 0 or len(set(waits)) > 1
    assert backoff.backoff(100_000) <= backoff.LONGEST_WAIT
    assert 0.5 <= backoff.backoff(7, first=0.1, longest=1.0) <= 1.0


def test_a_date_is_waited_for_as_long_as_seconds_are() -> None:
    assert 30 <= backoff.wait(format_datetime(datetime.now(UTC) + timedelta(days=1)), 1) <= 37.5


def test_writers_that_disturb_each_other_wait_anything_up_to_a_growing_limit() -> None:
    for number, most in ((0, 0.1), (3, 0.8), (100, 2.0)):
        waits = [backoff.apart(number, first=0.1, longest=2.0) for _ in range(200)]
        assert min(waits) < most / 4 < most * 3 / 4 < max(waits) <= most
    assert backoff.apart(5, first=0) == 0
