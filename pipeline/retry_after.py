"""The ``Retry-After`` header: how long a server asks to be left alone. How long anybody waits is the callers' to say."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_LONGEST_SECONDS: Final = 365 * 86_400.0


def seconds_asked(header: str | None) -> float | None:
    """Seconds from now, of either form of the header: a number of seconds or an HTTP date (one without a zone is in UTC).

    ``None`` where it is absent, unreadable, in the past or asks for more than a year.
    """
    try:
        seconds = float(header or "")
    except ValueError:
        seconds = _seconds_until(header or "")
    return seconds if 0 <= seconds <= _LONGEST_SECONDS else None  # NaN is neither.


def _seconds_until(date: str) -> float:
    """Less than 0 for a date that cannot be read."""
    try:
        moment = parsedate_to_datetime(date)
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return -1.0
