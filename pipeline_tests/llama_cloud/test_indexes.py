import httpx
import pytest

from pipeline.errors import ConfigError, SourceUnavailable, SyncFailed
from pipeline_tests.llama_cloud.fake_cloud import (
    FakeCloud,
    failure,
    index_body,
)


async def test_the_state_of_an_index_is_read() -> None:
    async with FakeCloud().source() as source:
        state = await source.get_index()
    assert (state.index_id, state.export_config_id, state.name) == ("idx-1", "exp-1", "docs")
    assert state.settled


@pytest.mark.parametrize(
    ("metadata", "status", "message"),
    [
        ({"status": "failed", "error_message": "quota"}, "failed", "quota"),
        ({"status": "indexing"}, "building", None),
        ({}, "building", None),
        (None, "building", None),
    ],
)
async def test_only_two_values_of_status_are_stable(metadata: dict[str, str] | None, status: str, message: str | None) -> None:
    async with FakeCloud(indexes=[index_body(metadata=metadata)]).source() as source:
        state = await source.get_index()
    assert (state.status, state.error_message) == (status, message)


async def test_the_change_key_moves_with_what_a_sync_moves_and_nothing_else() -> None:
    bodies = [
        index_body(),
        index_body(metadata={"status": "failed"}),
        index_body(last_exported_at=None),
        index_body(last_synced_at="2026-11-21T00:00:00Z"),
        index_body(updated_at=None),
        index_body(sync_in_progress=True),
    ]
    keys = []
    for body in [*bodies, index_body(description="changed")]:
        async with FakeCloud(indexes=[body]).source() as source:
            keys.append((await source.get_index()).change_key)
    assert len(set(keys)) == len(bodies)
    assert keys[-1] == keys[0]


@pytest.mark.parametrize("accepted", ["id", "export_config_id"])
@pytest.mark.parametrize("named", [{"index_id": "idx-1"}, {"index_id": "exp-1"}, {"index_name": "docs"}])
async def test_an_index_is_found_by_either_identifier_or_name_and_the_one_that_works_is_remembered(
    accepted: str, named: dict[str, str]
) -> None:
    cloud = FakeCloud(
        indexes=[index_body(), index_body(id="idx-2", export_config_id="exp-2", name="x")], accepts_index_keys=(accepted,)
    )
    async with cloud.source(**named) as source:
        assert (await source.get_index()).index_id == "idx-1"
        before = len(cloud.requests)
        await source.get_index()
        assert await source.start_sync()
    assert len(cloud.requests) == before + 2


async def test_a_sync_is_found_under_the_other_identifier_too() -> None:
    def only_export_id_for_sync(request: httpx.Request) -> httpx.Response | None:
        return failure(404) if request.url.path.endswith("idx-1/sync") else None

    async with FakeCloud(script=only_export_id_for_sync).source() as source:
        await source.get_index()
        assert await source.start_sync()


@pytest.mark.parametrize("named", [{"index_id": "nope"}, {"index_name": "nope"}])
async def test_an_unknown_index_lists_the_candidates(named: dict[str, str]) -> None:
    (setting,) = named
    async with FakeCloud().source(**named) as source:
        with pytest.raises(ConfigError, match=rf"no index has the {setting} 'nope': choose from 'docs' \(idx-1\)"):
            await source.get_index()


async def test_the_only_index_of_a_project_needs_no_name() -> None:
    async with FakeCloud().source(index_id=None) as source:
        assert (await source.get_index()).index_id == "idx-1"


async def test_several_indexes_and_no_name_lists_the_candidates() -> None:
    async with FakeCloud(indexes=[index_body(), index_body(id="idx-2")]).source(index_id=None) as source:
        with pytest.raises(ConfigError, match=r"more than one index exists: set index_id to one of .*idx-1.*idx-2"):
            await source.get_index()


async def test_an_empty_project_says_so() -> None:
    async with FakeCloud(indexes=[]).source(index_id=None) as source:
        with pytest.raises(ConfigError, match=r"no index exists: .*this project has none"):
            await source.get_index()


async def test_an_ambiguous_name_lists_the_ids() -> None:
    async with FakeCloud(indexes=[index_body(), index_body(id="idx-2")]).source(index_name="docs") as source:
        with pytest.raises(
            ConfigError, match=r"more than one index has the index_name 'docs': set index_id to one of .*idx-1.*idx-2"
        ):
            await source.get_index()


@pytest.mark.parametrize("status", [409, 429])
async def test_a_running_sync_is_not_started_again_nor_retried(status: int) -> None:
    cloud = FakeCloud(script=lambda request: httpx.Response(status, json={}) if request.method == "POST" else None)
    async with cloud.source() as source:
        assert await source.start_sync() is False
    assert cloud.paths()["POST api.example/api/v1/indexes/idx-1/sync"] == 1


async def test_cancelling_says_whether_there_was_a_sync() -> None:
    cloud = FakeCloud()
    async with cloud.source() as source:
        assert await source.cancel_sync() is True
        cloud.script = lambda _: failure(409)
        assert await source.cancel_sync() is False
        cloud.script = lambda _: failure(422, "bad id")
        with pytest.raises(ConfigError, match="HTTP 422: bad id"):
            await source.cancel_sync()


async def test_waiting_ends_when_the_index_is_ready_and_not_syncing() -> None:
    states = iter(
        [
            index_body(metadata={"status": "building"}),
            index_body(metadata={"status": "failed"}, sync_in_progress=True),
            index_body(sync_in_progress=True),
            index_body(),
        ]
    )
    async with FakeCloud(script=lambda _: httpx.Response(200, json=next(states))).source() as source:
        assert (await source.wait_until_ready(timeout=5, poll=0)).settled
    assert next(states, None) is None


async def test_waiting_asks_soon_at_first_and_then_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("pipeline.llama_cloud.source.asyncio.sleep", note)
    states = iter([index_body(sync_in_progress=True)] * 7 + [index_body()])
    async with FakeCloud(script=lambda _: httpx.Response(200, json=next(states))).source() as source:
        await source.wait_until_ready(timeout=100, poll=2)
    assert pauses == [0.125, 0.25, 0.5, 1, 2, 2, 2]


async def test_waiting_ends_with_the_vendors_message_when_the_sync_failed() -> None:
    failed = index_body(metadata={"status": "failed", "error_message": "out of credits"})
    async with FakeCloud(indexes=[failed]).source() as source:
        with pytest.raises(SyncFailed, match="'docs' failed: out of credits"):
            await source.wait_until_ready(timeout=5)


async def test_waiting_has_an_end() -> None:
    async with FakeCloud(indexes=[index_body(sync_in_progress=True)]).source() as source:
        with pytest.raises(SourceUnavailable, match=r"not ready after 0\.01 seconds"):
            await source.wait_until_ready(timeout=0.01, poll=0.001)


async def test_an_index_is_made_once() -> None:
    cloud = FakeCloud()
    async with cloud.source(index_name="mine") as source:
        first = await source.create_index("dir-9", "mine", store_attachments=["screenshots"], description="d")
        second = await source.create_index("dir-9", "mine")
        assert first.index_id == second.index_id == (await source.get_index()).index_id == "idx-new"
        with pytest.raises(ConfigError, match="exists over another source directory"):
            await source.create_index("dir-8", "mine")
    assert cloud.paths()["POST api.example/api/v1/indexes"] == 1


async def test_making_an_index_is_never_retried() -> None:
    cloud = FakeCloud(script=lambda request: httpx.Response(503, json={}) if request.method == "POST" else None)
    async with cloud.source(index_name="mine") as source:
        with pytest.raises(SourceUnavailable):
            await source.create_index("dir-9", "mine")
    assert cloud.paths()["POST api.example/api/v1/indexes"] == 1
