"""Ending asynchronous work of a run when Dagster's process is told to end.

Dagster's signal handler raises wherever the process is. In an event loop that is a callback as often as a wait, and then the
loop logs the interrupt away, or a task is left as it stands with what it has not written yet. Here SIGINT and SIGTERM cancel
the work instead, at its next wait, and Dagster hears of it when the work has cleaned up behind itself.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from dagster import DagsterExecutionInterruptedError

Answer = TypeVar("Answer")


def run_work(work: Coroutine[Any, Any, Answer]) -> Answer:
    """``asyncio.run(work)``. Raises DagsterExecutionInterruptedError when a signal has ended it, after its clean-up; a second
    signal cancels that too."""
    signals: list[int] = []

    async def cancellable() -> Answer:
        with _cancelling(signals):
            return await work

    try:
        answer = asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not signals:
            raise
    if signals:
        raise DagsterExecutionInterruptedError
    return answer


@contextmanager
def _cancelling(signals: list[int]) -> Iterator[None]:
    """Let a signal cancel the task that enters this, and note it. Python hands signals to its main thread alone; Dagster has no
    handlers elsewhere either."""
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def cancel(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        loop.call_soon_threadsafe(task.cancel)

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
