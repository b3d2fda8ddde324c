"""A process that dies, without a process: from one chosen write on, nothing more reaches ledger, lake, sink or Dagster."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import pytest

from pipeline.lake import Lake
from pipeline.ledger import Ledger
from pipeline.ledger.vectors import VectorIndex
from pipeline.sinks.base import Exporter

_LEDGER_WRITES = (
    "complete_listing",
    "forget",
    "log",
    "record_done",
    "record_failures",
    "record_listing",
    "record_removed",
    "record_sink",
    "record_sink_state",
    "refetched",
    "request",
    "update_files",
    "update_state",
)


class Killed(BaseException):
    """No handler of errors gets to see a killed process; none may mistake this for an error."""


def _raise() -> None:
    raise Killed


class Death:
    """Strikes at the ``after``-th write from now and stays."""

    def __init__(self, after: int, strike: Callable[[], None]) -> None:
        self._left = after
        self._strike = strike
        self._lock = threading.Lock()

    @property
    def struck(self) -> bool:
        return self._left <= 0

    def write(self) -> None:
        with self._lock:
            self._left -= 1
        self.check()

    def check(self) -> None:
        if self.struck:
            self._strike()


@contextmanager
def dies_at_write(after: int, *exporters: type[Exporter], strike: Callable[[], None] = _raise) -> Iterator[Death]:
    """The block's process dies at its ``after``-th write to the lake, the ledger or a sink, before or after it is done."""
    death = Death(after, strike)
    with pytest.MonkeyPatch.context() as patch:
        for name in _LEDGER_WRITES:
            patch.setattr(Ledger, name, _mortal(getattr(Ledger, name), death))
        for name in ("claim", "replace", "release"):
            patch.setattr(VectorIndex, name, _mortal(getattr(VectorIndex, name), death))
        for name in ("write", "delete"):
            patch.setattr(Lake, name, _mortal(getattr(Lake, name), death))
        for exporter in exporters:
            for name in ("replace_files", "delete_files"):
                patch.setattr(exporter, name, _mortal(getattr(exporter, name), death))
        patch.setattr(dg.DagsterInstance, "handle_new_event", _silenced(dg.DagsterInstance.handle_new_event, death))
        yield death


def _mortal(method: Callable[..., Any], death: Death) -> Callable[..., Any]:
    """A write is two moments at which a process can die: before it is done, and before anyone learns that it is."""
    if inspect.iscoroutinefunction(method):

        async def slowly(*arguments: Any, **named: Any) -> Any:
            death.write()
            answer = await method(*arguments, **named)
            death.write()
            return answer

        return slowly

    def at_once(*arguments: Any, **named: Any) -> Any:
        death.write()
        answer = method(*arguments, **named)
        death.write()
        return answer

    return at_once


def _silenced(method: Callable[..., Any], death: Death) -> Callable[..., Any]:
    def alive(*arguments: Any, **named: Any) -> Any:
        death.check()
        return method(*arguments, **named)

    return alive
