"""Writes to Dagster's storage that another process may make at the same moment."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.exc import IntegrityError

_ATTEMPTS = 10


def again_when_refused(write: Callable[[], None]) -> None:
    """Dagster's storages read which rows are there and then insert the others. Of two processes that do so at once one is
    refused; when it reads again, it finds what the other has written."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            write()
        except IntegrityError:
            if not left:
                raise
        else:
            return
