from typing import Any

import httpx
import pytest

from pipeline.errors import ConfigError, SourceUnavailable, SyncFailed, Throttled
from pipeline_tests.llama_cloud.fake_cloud import (
    BASE_URL,
    FakeCloud,
    failure,
    index_body,
)

Body = dict[str, Any]

READY = index_body()
BUSY = index_body(sync_in_progress=True)
SYNCED = index_body(last_synced_at="2026-11-21T00:00:00Z")
FAILED_BEFORE = index_body(metadata={"status": "failed", "error_message": "out of credits"})
ACCEPTED = httpx.Response(200, json={})
REFUSED = httpx.Response(429, json={"detail": "Too many requests"})
GET = "GET api.example/api/v1/indexes/idx-1"
SYNC = "POST api.example/api/v1/indexes/idx-1/sync"


def scripted(states: list[Body], *asked: httpx.Response) -> FakeCloud:
    """An index that is in the next of ``states`` at every look, and whose syncs are answered by ``asked`` in turn."""
    looks, answers = iter(states), iter(asked)
    return FakeCloud(script=lambda request: next(answers) if request.method == "POST" else httpx.Response(200, json=next(looks)))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little patience with a sync that does not show."""
    monkeypatch.setattr("pipeline.llama_cloud.source._SHOWS_WITHIN_SECONDS", 0.05)


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


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"failed_file_count": 5, "failed_files": [{"name": f"{n}.pdf", "reason": "no PDF"} for n in range(4)]},
            "5 documents could not be parsed: 0.pdf: no PDF; 1.pdf: no PDF; 2.pdf: no PDF; ...",
        ),
        ({"failed_files": [{"name": "a.pdf", "reason": "no PDF"}]}, "1 document could not be parsed: a.pdf: no PDF"),
        ({"failed_file_count": 0, "failed_files": []}, None),
        ({"failed_file_count": "many", "failed_files": ["a.pdf", {"name": 7}]}, None),
    ],
)
async def test_an_index_that_names_the_documents_it_could_not_parse_says_so(told: dict[str, Any], message: str | None) -> None:
    async with FakeCloud(indexes=[index_body(metadata={"status": "ready", **told})]).source() as source:
        state = await source.get_index()
    assert (state.settled, state.error_message) == (True, message)


async def test_the_vendors_reason_is_kept_short_and_without_the_signatures_of_urls() -> None:
    reason = "Client error '403 Forbidden' for url 'https://storage.example/a?X-Amz-Signature=secret': " + "x" * 1000
    async with FakeCloud(indexes=[index_body(metadata={"status": "failed", "error_message": reason})]).source() as source:
        message = (await source.get_index()).error_message
    assert message is not None
    assert message.startswith("Client error '403 Forbidden' for url 'https://storage.example/a': xxx")
    assert len(message) == 300


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
    assert len(cloud.requests) == before + 3


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
        with pytest.raises(ConfigError, match=r"more than one index exists: set index_id or index_name to one of .*idx-1.*idx-2"):
            await source.get_index()


async def test_indexes_are_listed_by_the_page_size_of_the_settings() -> None:
    cloud = FakeCloud()
    async with cloud.source(index_id=None, page_size=100) as source:
        await source.get_index()
    assert cloud.requests[0].url.params["page_size"] == "100"


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
    cloud = scripted([BUSY, BUSY], httpx.Response(status, json={}))
    async with cloud.source() as source:
        assert await source.start_sync() is False
    assert cloud.paths()[SYNC] == 1


async def test_a_sync_that_ends_while_it_is_asked_for_was_running() -> None:
    async with scripted([BUSY, SYNCED], REFUSED).source() as source:
        assert await source.start_sync() is False


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("state", [READY, FAILED_BEFORE])
async def test_a_refusal_though_nothing_runs_is_throttling(state: Body) -> None:
    async with scripted([state] * 2, REFUSED).source() as source:
        with pytest.raises(Throttled, match=r"'docs' though none is running.*try again"):
            await source.start_sync()
    cloud = scripted([state] * 90, REFUSED, REFUSED)
    async with cloud.source() as source:
        with pytest.raises(Throttled):
            await source.sync(timeout=5)
    assert cloud.paths()[SYNC] == 2


async def test_a_sync_is_waited_for_that_shows_only_after_a_while() -> None:
    cloud = scripted([READY, READY, BUSY, SYNCED], ACCEPTED)
    async with cloud.source() as source:
        assert await source.sync(timeout=5)
    assert cloud.paths()[GET] == 4


async def test_the_failure_of_an_older_sync_is_not_taken_for_that_of_the_one_asked_for() -> None:
    cloud = scripted([FAILED_BEFORE, FAILED_BEFORE, BUSY, SYNCED], ACCEPTED)
    async with cloud.source() as source:
        assert await source.sync(timeout=5)
    assert cloud.paths()[GET] == 4


async def test_a_sync_that_fails_ends_the_wait_with_the_vendors_message() -> None:
    async with scripted([READY, BUSY, FAILED_BEFORE], ACCEPTED).source() as source:
        with pytest.raises(SyncFailed, match="out of credits"):
            await source.sync(timeout=5)


async def test_after_a_sync_that_was_running_another_one_is_asked_for() -> None:
    again = index_body(last_synced_at="2026-11-22T00:00:00Z")
    cloud = scripted([BUSY, BUSY, SYNCED, BUSY, again], REFUSED, ACCEPTED)
    async with cloud.source() as source:
        assert await source.sync(timeout=5)
    assert (cloud.paths()[SYNC], cloud.paths()[GET]) == (2, 5)


@pytest.mark.usefixtures("impatient")
async def test_a_sync_that_never_shows_is_not_waited_for_for_ever() -> None:
    async with scripted([READY] * 90, ACCEPTED).source() as source:
        assert await source.sync(timeout=5)


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
        assert (await source.wait_until_ready(timeout=5)).settled
    assert next(states, None) is None


@pytest.mark.parametrize(
    ("url", "expected"), [(BASE_URL, [0.25, 0.5, 1, 2, 4, 5, 5]), ("http://127.0.0.1:8800", [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])]
)
async def test_waiting_asks_soon_at_first_and_then_ever_later_but_for_this_machine(
    url: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("pipeline.llama_cloud.source.asyncio.sleep", note)
    async with scripted([BUSY] * 10 + [READY]).source(base_url=url) as source:
        await source.wait_until_ready(timeout=100)
    assert pauses == [0.03125, 0.0625, 0.125, *expected]


async def test_waiting_ends_with_the_vendors_message_when_the_sync_failed() -> None:
    failed = index_body(metadata={"status": "failed", "error_message": "out of credits"})
    async with FakeCloud(indexes=[failed]).source() as source:
        with pytest.raises(SyncFailed, match="'docs' failed: out of credits"):
            await source.wait_until_ready(timeout=5)


async def test_waiting_has_an_end() -> None:
    async with FakeCloud(indexes=[index_body(sync_in_progress=True)]).source() as source:
        with pytest.raises(SourceUnavailable, match=r"not ready after 0\.01 seconds"):
            await source.wait_until_ready(timeout=0.01)


async def test_an_index_is_made_once() -> None:
    cloud = FakeCloud()
    async with cloud.source(index_name="mine") as source:
        first = await source.create_index("dir-9", "mine", store_attachments=["screenshots"])
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
