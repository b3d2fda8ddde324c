"""The lease: one holder at a time, taken over when it has expired, never from under a holder that renews."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import SinkUnavailable
from pipeline.sinks.storage_context_files import FolderStore
from pipeline.sinks.storage_context_lease import held_lease
from pipeline_tests.sinks.storage_context_folder import fail_when


def lease_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "leases").iterdir())


async def test_holders_come_one_after_the_other_and_their_numbers_grow(tmp_path: Path) -> None:
    inside, numbers = 0, []

    async def work() -> None:
        nonlocal inside
        async with held_lease(FolderStore(str(tmp_path)), "leases", seconds=30, wait=30) as lease:
            inside += 1
            assert inside == 1
            numbers.append(lease.number)
            await asyncio.to_thread(lease.check)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(12)))
    assert numbers == sorted(set(numbers))
    assert lease_files(tmp_path) == [f"{numbers[-1]:012}"]


async def test_a_held_lease_is_waited_for_and_then_reported_with_its_owner(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    async with held_lease(store, "leases", seconds=30, wait=1):
        with pytest.raises(SinkUnavailable, match=r"process \d+ has been writing"):
            async with held_lease(store, "leases", seconds=30, wait=0.01):
                pytest.fail("two holders")


async def test_an_expired_lease_is_taken_over_and_its_holder_notices(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    async with held_lease(store, "leases", seconds=30, wait=1) as stalled:
        file = tmp_path / "leases" / f"{stalled.number:012}"
        file.write_text(json.dumps({"owner": "a machine that sleeps", "expires_at": time.time() - 1}))
        async with held_lease(store, "leases", seconds=30, wait=1) as next_holder:
            assert next_holder.number == stalled.number + 1
            with pytest.raises(SinkUnavailable, match="another took over"):
                stalled.check()
            next_holder.check()


async def test_a_holder_that_renews_is_not_overtaken_after_the_duration(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    async with held_lease(store, "leases", seconds=0.3, wait=1) as lease:
        with pytest.raises(SinkUnavailable, match="has been writing"):
            async with held_lease(store, "leases", seconds=30, wait=0.9):
                pytest.fail("two holders")
        lease.check()


async def test_a_renewal_under_way_when_the_work_ends_does_not_outlive_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put, under_way = FolderStore(str(tmp_path)), FolderStore.put, threading.Event()

    def slow_to_renew(self: FolderStore, relative: str, data: bytes) -> None:
        if json.loads(data)["expires_at"]:
            under_way.set()
            time.sleep(0.2)
        put(self, relative, data)

    monkeypatch.setattr(FolderStore, "put", slow_to_renew)
    async with held_lease(store, "leases", seconds=30, wait=1) as lease:
        renewing = asyncio.create_task(asyncio.to_thread(lease.renew))
        await asyncio.to_thread(under_way.wait, 5)
    await renewing
    await asyncio.to_thread(lease.renew)
    async with held_lease(store, "leases", seconds=30, wait=0.01) as following:
        assert following.number == lease.number + 1


async def test_a_given_back_lease_is_free_at_once_and_worthless(tmp_path: Path) -> None:
    store = FolderStore(str(tmp_path))
    async with held_lease(store, "leases", seconds=30, wait=1) as lease:
        pass
    with pytest.raises(SinkUnavailable):
        lease.check()
    async with held_lease(store, "leases", seconds=30, wait=0.01) as following:
        assert following.number == lease.number + 1


async def test_a_lease_whose_taking_was_done_and_not_answered_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver sends such a request again, and is told that the file is there."""
    create = FolderStore.create

    def create_and_lose_the_answer(self: FolderStore, relative: str, data: bytes) -> bool:
        return create(self, relative, data) and create(self, relative, data)

    monkeypatch.setattr(FolderStore, "create", create_and_lose_the_answer)
    async with held_lease(FolderStore(str(tmp_path)), "leases", seconds=30, wait=0.01) as lease:
        lease.check()


async def test_of_two_that_take_it_at_once_the_one_that_is_told_no_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, create = FolderStore(str(tmp_path)), FolderStore.create

    def create_as_second(self: FolderStore, relative: str, data: bytes) -> bool:
        create(self, relative, json.dumps({"owner": "the first", "expires_at": time.time() + 30}).encode())
        return create(self, relative, data)

    monkeypatch.setattr(FolderStore, "create", create_as_second)
    with pytest.raises(SinkUnavailable, match="the first has been writing"):
        async with held_lease(store, "leases", seconds=30, wait=0.01):
            pytest.fail("two holders")


async def test_a_lease_that_is_no_sooner_taken_than_the_store_fails_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(str(tmp_path))
    async with held_lease(store, "leases", seconds=30, wait=1):
        pass
    with monkeypatch.context() as patch:
        fail_when(patch, "remove_file", lambda _: True)
        with pytest.raises(SinkUnavailable):
            async with held_lease(store, "leases", seconds=30, wait=1):
                pytest.fail("the former holder's file is still there")
    async with held_lease(store, "leases", seconds=30, wait=0.01):
        pass


async def test_what_was_done_is_done_when_its_lease_cannot_be_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with held_lease(FolderStore(str(tmp_path)), "leases", seconds=30, wait=1):
        fail_when(monkeypatch, "put", lambda _: True)


async def test_a_listing_that_lags_behind_gives_the_lease_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of an object store that is not strongly consistent: it shows nothing yet."""
    monkeypatch.setattr(FolderStore, "sizes", lambda *_: {})
    with pytest.raises(SinkUnavailable, match="nobody has been writing"):
        async with held_lease(FolderStore(str(tmp_path)), "leases", seconds=30, wait=0.01):
            pytest.fail("others may hold it")
