"""The server a comparison writes to: the one that is configured, or an emulator in a process of its own.

What belongs here: starting it, telling the environment where it is, and ending it. The emulator must not share our
interpreter, or its work would be counted as the sink's.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from typing import Any

from pipeline_tests.emulators.http import HttpEmulator

Serving = Callable[[], AbstractContextManager[tuple[str, ...]]]
"""A server for the time being, and what there is to know of it. Top-level, as another process imports it by name."""


@contextmanager
def in_another_process(serving: Serving, variables: tuple[str, ...], *, unless: str) -> Iterator[None]:
    """``serving`` runs in a process of its own and what it tells stands in these environment variables.

    Nothing happens where the variable ``unless`` is set: a server is configured then.
    """
    if os.environ.get(unless):
        yield
        return
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(serving, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        os.environ.update(zip(variables, ours.recv(), strict=True))
        yield
    finally:
        ours.close()
        process.join()
        for variable in variables:
            os.environ.pop(variable, None)


def _serve(serving: Serving, pipe: Connection) -> None:
    """Until the other end closes, on purpose or because its process is gone."""
    with serving() as told:
        pipe.send(told)
        pipe.poll(None)


@contextmanager
def emulated(emulator: HttpEmulator[Any]) -> Iterator[tuple[str, str]]:
    """Its key and its address. What it is asked is not kept: for a benchmark that would be all the data there is."""
    emulator.keeps_requests = False
    with emulator:
        yield emulator.api_key, emulator.url
