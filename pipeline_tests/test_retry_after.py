"""What is read of a ``Retry-After`` header."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.retry_after import seconds_asked

_DATELIKE = r"(Fri, |Jan|GMT|EST|[ ,:-]|[+-]?\d{1,4}|\d\d:\d\d:\d\d)*"


@pytest.mark.parametrize(("header", "seconds"), [("0", 0.0), ("1.5", 1.5), (" 7 ", 7.0), ("86400", 86_400.0)])
def test_seconds_are_read(header: str, seconds: float) -> None:
    assert seconds_asked(header) == seconds


@pytest.mark.parametrize("zone", [" GMT", " +0000", " -0000", ""])
def test_a_date_is_in_utc_unless_it_says_otherwise(zone: str) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60)).removesuffix(" +0000")
    assert 55 < (seconds_asked(in_a_minute + zone) or 0) <= 60


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "soon",
        "-5",
        "nan",
        "inf",
        "1e300",
        "9" * 400,
        "Fri, 31 Dec 1999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 01 Jan 99999999999999999999 00:00:00 GMT",
    ],
)
def test_what_is_absent_unreadable_past_or_absurd_asks_for_nothing(header: str | None) -> None:
    assert seconds_asked(header) is None


@given(st.text() | st.from_regex(_DATELIKE, fullmatch=True))
def test_no_header_raises(header: str) -> None:
    assert (seconds_asked(header) or 0) >= 0
