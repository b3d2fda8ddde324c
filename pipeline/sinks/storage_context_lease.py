"""One writer at a time: a lease kept as numbered files beside what it protects.

What belongs here: taking, renewing and giving back the lease. Each holder creates the file that follows the highest number
there is, which only one of several can; the highest number is the holder until its file says that it has expired. Numbers
never come twice, so they also name what a holder writes. Clocks of writers may differ by less than the lease's duration.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from pipeline.errors import SinkUnavailable
from pipeline.sinks.backoff import backoff
from pipeline.sinks.storage_context_files import FolderStore

_FIRST_WAIT: Final = 0.05
_LONGEST_WAIT: Final = 2.0


class Lease:
    """A lease that was taken. ``number`` is larger than that of every earlier holder."""

    def __init__(self, store: FolderStore, folder: str, number: int, seconds: float) -> None:
        self.number = number
        self._store = store
        self._folder = folder
        self._seconds = seconds
        self._valid_until = time.monotonic() + seconds
        self._writing = threading.Lock()
        self._released = False

    def check(self) -> None:
        """Raises SinkUnavailable when the lease has expired or somebody else has taken it over."""
        if time.monotonic() >= self._valid_until or max(_numbers(self._store, self._folder), default=0) != self.number:
            raise SinkUnavailable(
                f"storage_context at {self._store.shown}: this writer was stalled for so long that another took over; "
                "what it wrote may not count, run again"
            )

    def renew(self) -> None:
        """Does nothing once it is released: a thread that renews may come late."""
        with self._writing:
            if self._released:
                return
            before = time.monotonic()
            self._store.put(_name(self._folder, self.number), _content(time.time() + self._seconds))
            self._valid_until = before + self._seconds

    def release(self) -> None:
        """Waits for a renewal that is on its way to the store."""
        with self._writing:
            self._released = True
            self._valid_until = 0.0
            self._store.put(_name(self._folder, self.number), _content(0))


@asynccontextmanager
async def held_lease(store: FolderStore, folder: str, *, seconds: float, wait: float) -> AsyncIterator[Lease]:
    """Hold the lease during the block and renew it. Raises SinkUnavailable when another writer holds it for ``wait`` seconds."""
    lease = await _acquire(store, folder, seconds, wait)
    renewing = asyncio.create_task(_keep(lease, seconds / 3))
    try:
        yield lease
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        with suppress(SinkUnavailable):  # it expires, and what was done is done
            await asyncio.to_thread(lease.release)


async def _keep(lease: Lease, pause: float) -> None:
    """Renew until cancelled; a store that does not answer may answer the next time, and ``check`` notices if it does not."""
    while True:
        await asyncio.sleep(pause)
        try:
            await asyncio.to_thread(lease.renew)
        except SinkUnavailable:
            continue


async def _acquire(store: FolderStore, folder: str, seconds: float, wait: float) -> Lease:
    deadline = time.monotonic() + wait
    attempts = 0
    while (taken := await _attempt(store, folder, seconds)) is None:
        if time.monotonic() >= deadline:
            owner = await asyncio.to_thread(_owner, store, folder)
            raise SinkUnavailable(
                f"storage_context at {store.shown}: {owner} has been writing for more than {wait:g} s; "
                "wait for it to end, or raise lease_wait_seconds"
            )
        attempts += 1
        await asyncio.sleep(backoff(attempts, first=_FIRST_WAIT, longest=_LONGEST_WAIT))
    return taken


async def _attempt(store: FolderStore, folder: str, seconds: float) -> Lease | None:
    """Try in a thread; a lease that arrives after its taker was cancelled is given back."""
    trying = asyncio.create_task(asyncio.to_thread(_try, store, folder, seconds))
    try:
        return await asyncio.shield(trying)
    except asyncio.CancelledError:
        (outcome,) = await asyncio.gather(trying, return_exceptions=True)
        if isinstance(outcome, Lease):
            await asyncio.to_thread(outcome.release)
        raise


def _try(store: FolderStore, folder: str, seconds: float) -> Lease | None:
    latest = max(_numbers(store, folder), default=0)
    if latest and _holder(store, folder, latest)["expires_at"] > time.time():
        return None
    lease = Lease(store, folder, latest + 1, seconds)
    name, content = _name(folder, lease.number), _content(time.time() + seconds)
    if not store.create(name, content) and store.read(name) != content:  # unless it is the answer that was lost, and asked again
        return None
    try:
        return _sole(store, folder, lease)
    except SinkUnavailable:
        with suppress(SinkUnavailable):
            lease.release()
        raise


def _sole(store: FolderStore, folder: str, lease: Lease) -> Lease | None:
    """The lease as the only one there is; ``None``, and it is gone, where it was not the next one."""
    numbers = _numbers(store, folder)
    if max(numbers, default=0) != lease.number:
        # A listing was old: others have come and gone, and removed the file of this number.
        store.remove_file(_name(folder, lease.number))
        return None
    for number in numbers:
        if number != lease.number:
            store.remove_file(_name(folder, number))
    return lease


def _owner(store: FolderStore, folder: str) -> str:
    latest = max(_numbers(store, folder), default=0)
    return str(_holder(store, folder, latest)["owner"])


def _holder(store: FolderStore, folder: str, number: int) -> dict[str, Any]:
    content = store.read(_name(folder, number))
    found: dict[str, Any] = json.loads(content) if content else {"owner": "nobody", "expires_at": 0}
    return found


def _numbers(store: FolderStore, folder: str) -> list[int]:
    return [int(name) for name in store.sizes(folder) if name.isdigit()]


def _name(folder: str, number: int) -> str:
    return f"{folder}/{number:012}"


def _content(expires_at: float) -> bytes:
    """Never the same twice, so that its writer knows it again."""
    owner = f"{socket.gethostname()} process {os.getpid()}"
    return json.dumps({"owner": owner, "expires_at": expires_at, "written": uuid.uuid4().hex}).encode()
