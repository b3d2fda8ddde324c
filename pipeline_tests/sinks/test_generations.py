"""The replace protocol of stores without atomic writes: whatever fails, running again makes it exact."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SinkUnavailable
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.generations import FileWrites, remove_generations, replace_generations
from pipeline_tests.sinks.generation_model import KEYS, Crash, Fault, ModelStore, Write, content, run, settle

SIZES = (0, 1, 2, 6)
FAULTS: tuple[Fault, ...] = ("refused", "lost ack", "even", "odd")

Version = tuple[str, int]
"""A name and how many records it has."""


async def _stored(*files: FileWrites[Write]) -> ModelStore:
    store = ModelStore()
    assert await run(store, *files)
    return store


async def _changes(before: FileWrites[Write], after: FileWrites[Write]) -> int:
    store = await _stored(before)
    await run(store, after)
    return store.changes


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SIZES, SIZES)))
async def test_a_replace_leaves_exactly_the_new_version(before: int, after: int) -> None:
    neighbour = content(KEYS[1], "n", 4)
    store = await _stored(content(KEYS[0], "old", before), neighbour)
    wanted = content(KEYS[0], "new", after)
    assert await run(store, wanted)
    store.assert_holds(wanted, neighbour)
    assert await run(store, wanted)
    store.assert_holds(wanted, neighbour)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("before", "after"), list(itertools.product(SIZES, SIZES)))
async def test_a_crash_at_any_request_is_made_good_by_any_next_run(before: int, after: int, fault: Fault) -> None:
    old, new = content(KEYS[0], "old", before), content(KEYS[0], "new", after)
    neighbour = content(KEYS[1], "n", 4)
    following = [old, new, content(KEYS[0], "third", 5), content(KEYS[0], "third", 0)]
    for step in range(await _changes(old, new)):
        for wanted in following:
            store = await _stored(old, neighbour)
            assert not await run(store, new, fail_at=step, fault=fault)
            store.assert_truthful()
            assert await run(store, wanted)
            store.assert_holds(wanted, neighbour)


@pytest.mark.parametrize("before", SIZES[1:])
async def test_a_crash_never_looks_like_a_finished_file_of_another_content(before: int) -> None:
    old, new = content(KEYS[0], "old", before), content(KEYS[0], "new", 6)
    for step in range(1, await _changes(old, new)):
        store = await _stored(old)
        await run(store, new, fail_at=step, fault="refused")
        assert store.snapshots()[KEYS[0].file_id].record_set_hash.startswith(f"pending:{new.generation}")


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SIZES[1:], SIZES[1:])))
async def test_readers_have_the_old_records_until_all_new_ones_are_there(before: int, after: int) -> None:
    old, new = content(KEYS[0], "old", before), content(KEYS[0], "new", after)
    store = await _stored(old)

    def watch() -> None:
        held = {write.id for write in store.held()}
        assert held >= {write.id for write in old.writes} or held >= {write.id for write in new.writes}

    store.watch = watch
    assert await run(store, new)


async def test_concurrent_requests_of_one_round_end_before_the_next_round() -> None:
    files = [content(key, "old", 9) for key in KEYS]
    store = await _stored(*files)
    store.concurrency = 4
    wanted = [content(key, "new", 7) for key in KEYS]
    store.watch = lambda: None if all(map(store.complete, KEYS)) else pytest.fail("no version is complete")
    assert await run(store, *wanted)
    store.assert_holds(*wanted)


async def test_a_failure_ends_what_is_on_its_way_and_begins_nothing_else() -> None:
    store = ModelStore(concurrency=3)
    started = 0

    async def turn() -> None:
        nonlocal started
        started += 1
        await asyncio.sleep(0)

    store.turn = turn
    assert not await run(store, content(KEYS[0], "new", 40), fail_at=1)
    assert started <= 1 + 1 + 3
    assert len(asyncio.all_tasks()) == 1


async def test_requests_grow_with_records_not_with_files() -> None:
    keys = [FileKey("prj", "cfg", f"dfl-{n}") for n in range(200)]
    store = ModelStore(max_records=500, max_bytes=10**6, max_ids=1000)
    await replace_generations(store, [content(key, "old", 3) for key in keys])
    assert (store.reads, store.changes) == (1, 1 + 2 + 1 + 1)
    await replace_generations(store, [content(key, "new", 3) for key in keys])
    assert (store.reads, store.changes) == (2, 5 + 1 + 2 + 1 + 1 + 1)


async def test_no_upsert_has_more_bytes_than_the_store_takes() -> None:
    files = [content(FileKey("prj", "cfg", f"dfl-{count}"), "new", count) for count in range(1, 6)]
    store = ModelStore(max_records=500, max_bytes=30)
    await replace_generations(store, files)
    assert set(store.records) == {found for file in files for found in file.ids}


async def test_every_upsert_carries_the_marked_head_of_what_it_writes() -> None:
    store = ModelStore(max_records=4, max_bytes=10**6)
    requests: list[Sequence[Write]] = []
    plain = store.upsert

    async def upsert(writes: Sequence[Write]) -> None:
        requests.append(writes)
        await plain(writes)

    store.upsert = upsert  # type: ignore[method-assign]  # a spy
    await replace_generations(store, [content(KEYS[0], "a", 9), content(KEYS[1], "b", 1)])
    for writes in requests:
        heads = {write.generation for write in writes if write.pending}
        assert heads == {write.generation for write in writes}


@pytest.mark.parametrize("count", [2, 9])
async def test_a_head_that_gives_another_count_costs_the_version_it_is_replaced_by_nothing(count: int) -> None:
    store, deleted = ModelStore(), set[str]()
    wanted = content(KEYS[0], "v", 5)
    altered = Write(wanted.ids[0], KEYS[0], Generation(wanted.record_set_hash, count), 0)
    store.records[altered.id] = altered
    plain = store.delete

    async def delete(ids: Sequence[str]) -> None:
        deleted.update(ids)
        await plain(ids)

    store.delete = delete  # type: ignore[method-assign]  # a spy
    assert await run(store, wanted)
    store.assert_holds(wanted)
    assert deleted.isdisjoint(wanted.ids), "readers found less of it for a while"


async def test_records_no_head_tells_of_go_before_the_file_looks_finished() -> None:
    old, new = content(KEYS[0], "old", 5), content(KEYS[0], "new", 2)
    store = await _stored(old)
    del store.records[old.ids[0]]

    def watch() -> None:
        left = store.held() & set(old.writes)
        assert not left or store.snapshots()[KEYS[0].file_id].record_set_hash.startswith("pending:")

    store.records[new.ids[0]] = replace(new.writes[0], pending=str(new.generation))
    store.watch = watch
    assert await run(store, new)
    store.assert_holds(new)


async def test_removing_deletes_every_generation_of_the_named_files_only() -> None:
    store = await _stored(content(KEYS[0], "old", 6), content(KEYS[1], "n", 4))
    assert not await run(store, content(KEYS[0], "new", 6), fail_at=3)
    await remove_generations(store, [KEYS[0]])
    store.assert_holds(content(KEYS[1], "n", 4))


async def test_a_store_that_keeps_nothing_is_given_up_before_the_old_version_is_touched() -> None:
    old = content(KEYS[0], "old", 4)
    store = await _stored(old)

    async def forget(writes: Sequence[Write]) -> None:
        """Acknowledged, and gone."""

    store.upsert = forget  # type: ignore[method-assign]  # a store that lies
    with pytest.raises(SinkUnavailable, match="another run"):
        await replace_generations(store, [content(KEYS[0], "new", 4)], first_wait=0)
    store.assert_holds(old)


async def test_nothing_to_do_sends_nothing() -> None:
    store = ModelStore()
    await replace_generations(store, [])
    await remove_generations(store, [])
    assert (store.reads, store.changes) == (0, 0)


versions = st.builds(lambda version, count: (version, count), st.sampled_from("abc"), st.sampled_from((0, 1, 2, 4, 7)))
filled = versions.filter(lambda version: version[1] > 0)
both_files = st.tuples(versions, versions)


def _files(wanted: Sequence[Version]) -> list[FileWrites[Write]]:
    return [content(key, *version) for key, version in zip(KEYS, wanted, strict=True)]


@settings(max_examples=200, deadline=None)
@given(runs=st.lists(st.tuples(both_files, st.integers(0, 20), st.sampled_from(FAULTS)), min_size=1, max_size=5), last=both_files)
def test_any_series_of_crashes_is_made_good(
    runs: list[tuple[tuple[Version, Version], int, Fault]], last: tuple[Version, Version]
) -> None:
    async def scenario() -> None:
        store = ModelStore()
        for wanted, fail_at, fault in runs:
            await run(store, *_files(wanted), fail_at=fail_at, fault=fault)
            store.assert_truthful()
        assert await run(store, *_files(last))
        store.assert_holds(*_files(last))

    asyncio.run(scenario())


@settings(max_examples=200, deadline=None)
@given(
    first=versions,
    runs=st.lists(st.tuples(filled, st.integers(0, 15), st.sampled_from(FAULTS)), max_size=4),
)
def test_once_a_version_was_complete_one_always_is(first: Version, runs: list[tuple[Version, int, Fault]]) -> None:
    async def scenario() -> None:
        store = await _stored(content(KEYS[0], *first))
        if first[1]:
            store.watch = lambda: None if store.complete(KEYS[0]) else pytest.fail("no version is complete")
        for wanted, fail_at, fault in runs:
            await run(store, content(KEYS[0], *wanted), fail_at=fail_at, fault=fault)

    asyncio.run(scenario())


@settings(max_examples=200, deadline=None)
@given(
    before=versions,
    lost=filled,
    fail_at=st.integers(0, 12),
    meanwhile=versions,
    last=versions,
)
def test_a_request_that_arrives_after_the_next_run_is_found_and_made_good(
    before: Version, lost: Version, fail_at: int, meanwhile: Version, last: Version
) -> None:
    async def scenario() -> None:
        store = await _stored(content(KEYS[0], *before))
        store.max_ids = 10
        await run(store, content(KEYS[0], *lost), fail_at=fail_at, fault="late")
        assert await run(store, content(KEYS[0], *meanwhile))
        store.arrive()
        store.assert_truthful()
        assert await run(store, content(KEYS[0], *last))
        store.assert_holds(content(KEYS[0], *last))

    asyncio.run(scenario())


@settings(max_examples=200, deadline=None)
@given(
    before=versions,
    wanted=st.tuples(filled, versions),
    turns=st.lists(st.sampled_from((0, 1)), max_size=60),
    deaths=st.tuples(st.none() | st.integers(0, 15), st.none() | st.integers(0, 15)),
    last=versions,
)
def test_runs_that_overlap_are_found_and_made_good(
    before: Version,
    wanted: tuple[Version, Version],
    turns: list[int],
    deaths: tuple[int | None, int | None],
    last: Version,
) -> None:
    async def scenario() -> None:
        store = await _stored(content(KEYS[0], *before))
        await _interleaved(
            store.records, [content(KEYS[0], *version) for version in wanted], turns, deaths if wanted[1][1] else (None, None)
        )
        store.assert_truthful()
        assert await run(store, content(KEYS[0], *last))
        store.assert_holds(content(KEYS[0], *last))

    asyncio.run(scenario())


@settings(max_examples=200, deadline=None)
@given(before=versions, wanted=st.tuples(filled, filled), turns=st.lists(st.sampled_from((0, 1)), max_size=60))
def test_runs_that_overlap_and_both_end_well_leave_one_of_their_versions(
    before: Version, wanted: tuple[Version, Version], turns: list[int]
) -> None:
    async def scenario() -> None:
        store = await _stored(content(KEYS[0], *before))
        files = [content(KEYS[0], *version) for version in wanted]
        outcomes = await _interleaved(store.records, files, turns, (None, None))
        if outcomes == [None, None]:
            [held] = store.snapshots().values()
            store.assert_holds(next(file for file in files if file.record_set_hash == held.record_set_hash))

    asyncio.run(scenario())


async def _interleaved(
    records: dict[str, Write], files: Sequence[FileWrites[Write]], turns: Sequence[int], deaths: Sequence[int | None]
) -> list[BaseException | None]:
    """What becomes of two runs at once; ``turns`` says whose next request is served, ``deaths`` after how many a run dies."""
    waiting: dict[int, asyncio.Future[None]] = {}

    async def turn(number: int) -> None:
        waiting[number] = asyncio.get_running_loop().create_future()
        await waiting[number]

    stores = [ModelStore(records, turn=partial(turn, number), max_ids=10) for number in range(2)]
    tasks = [
        asyncio.create_task(replace_generations(store, [file], first_wait=0)) for store, file in zip(stores, files, strict=True)
    ]
    order = iter(turns)
    served = [0, 0]
    await settle()
    while waiting:
        wanted = next(order, 0)
        number = wanted if wanted in waiting else min(waiting)
        gate = waiting.pop(number)
        if served[number] == deaths[number]:
            gate.set_exception(Crash())
        else:
            gate.set_result(None)
        served[number] += 1
        await settle()
    return await asyncio.gather(*tasks, return_exceptions=True)
