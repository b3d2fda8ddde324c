"""Whose fault a payload is that cannot be downloaded: its file's, or that of the storage or LlamaCloud as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SourceUnavailable
from pipeline.lake import Lake
from pipeline.llama_cloud.download import RetryPolicy
from pipeline.stages.detect import detect
from pipeline.stages.fetch import fetch
from pipeline.stages.report import StageReport
from pipeline_tests.hostile.cloud import HostileCloud, ServedFile, hostile_cloud
from pipeline_tests.hostile.corpus import paged, payload
from pipeline_tests.world import World, world_over

BAD = "dfl-007"
ALL_BLOBS = "^/_blob/"


@pytest.fixture(autouse=True)
def impatient(impatient_sdk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are retried at once."""
    monkeypatch.setattr(RetryPolicy, "pause", lambda *_: 0.0)


@contextmanager
def served(root: Path, count: int, **settings: Any) -> Iterator[tuple[HostileCloud, World]]:
    files = [ServedFile(f"dfl-{n:03}", paged(f"Text of file {n}."), f"{n}.pdf") for n in range(count)]
    with hostile_cloud(*files) as cloud, world_over(root, cloud, sinks={"lancedb": {}}, **settings) as world:
        yield cloud, world


def fetched(world: World, *file_ids: str) -> StageReport:
    """What a run of these files, or of all there are, fetches."""
    asyncio.run(detect(world.export, complete=True))
    return asyncio.run(fetch(world.export, list(file_ids) or list(world.export.ledger.files()), run_id="a run"))


def arrived(world: World) -> set[str]:
    return {file_id for file_id, row in world.export.ledger.files().items() if row.fetched_token is not None}


@pytest.mark.parametrize(
    ("pattern", "count", "status"),
    [
        ("^/_blob/7$", 40, 403),
        ("^/_blob/7$", 40, 500),
        ("^/_blob/7$", 40, 503),
        ("/file-7/content$", 20, 403),
        ("/file-7/content$", 20, 502),
    ],
)
def test_a_file_that_alone_cannot_be_downloaded_is_left_out_and_stops_no_other(
    tmp_path: Path, pattern: str, count: int, status: int
) -> None:
    with served(tmp_path, count) as (cloud, world):
        cloud.failing[pattern] = status
        report = world.sync()
        assert (report.runs, report.failed_runs) == (1, 0)
        assert len(world.names()) == count - 1
        row = world.export.ledger.files()[BAD]
        assert (row.status, row.attempts) == ("failed", 1)
        assert f"HTTP {status}" in (row.last_error or "")


@pytest.mark.parametrize("status", [400, 401, 403, 500])
def test_a_storage_that_fails_for_every_file_counts_no_attempt(tmp_path: Path, status: int) -> None:
    with served(tmp_path, 8) as (cloud, world):
        cloud.failing[ALL_BLOBS] = status
        with pytest.raises(SourceUnavailable, match=rf"none of 8 payloads .*HTTP {status}"):
            fetched(world)
        assert {row.attempts for row in world.export.ledger.files().values()} == {0}
        cloud.failing.clear()
        world.ingest()


def test_a_file_without_an_object_is_parked_in_the_end(tmp_path: Path) -> None:
    with served(tmp_path, 8, detection={"max_attempts": 1}) as (cloud, world):
        cloud.failing["^/_blob/7$"] = 404
        assert "HTTP 404" in fetched(world).failures[BAD]
        assert world.export.ledger.files()[BAD].status == "parked"


def hang_up(_cloud: HostileCloud) -> None:
    raise ConnectionResetError


@pytest.mark.parametrize("answer", [hang_up, lambda _cloud: "a gateway's page", lambda _cloud: {"items": None}])
def test_a_listing_with_urls_that_breaks_off_only_costs_requests(
    tmp_path: Path, answer: Callable[[HostileCloud], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(tmp_path, 40) as (_, world):
        asyncio.run(detect(world.export, complete=True))
        real = HostileCloud.answer

        def broken(cloud: HostileCloud, method: str, path: str) -> Any:
            return answer(cloud) if path.endswith("/dir-output/files") else real(cloud, method, path)

        monkeypatch.setattr(HostileCloud, "answer", broken)
        assert asyncio.run(fetch(world.export, list(world.export.ledger.files()), run_id="a run")).worked == 40


def test_a_storage_that_goes_down_half_way_is_left_alone_soon_and_what_has_come_is_gone_on_with(tmp_path: Path) -> None:
    with served(tmp_path, 60) as (cloud, world):
        fetched(world, "dfl-000")
        cloud.failing[ALL_BLOBS] = 503
        report = fetched(world)
        assert (len(report.failures), len(report.not_ready), report.skipped) == (32, 27, 1)
        untried = [world.export.ledger.files()[file_id] for file_id in report.not_ready]
        assert {(row.status, row.attempts) for row in untried} == {("new", 0)}


def test_many_files_that_alone_cannot_be_downloaded_stop_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than a look tries in a row."""
    monkeypatch.setattr("pipeline.stages.fetch._MANY", 16)
    with served(tmp_path, 30, index={"max_concurrent_downloads": 8}) as (cloud, world):
        cloud.failing["^/_blob/1?[0-9]$"] = 503
        for _ in range(12):
            try:
                fetched(world)
            except SourceUnavailable:
                continue
        assert arrived(world) == {f"dfl-{n:03}" for n in range(20, 30)}


def test_what_was_fetched_before_llamacloud_throttles_is_kept(tmp_path: Path) -> None:
    with served(tmp_path, 8, index={"max_concurrent_downloads": 1}) as (cloud, world):
        cloud.failing["/file-7/content$"] = 429
        tries = 0
        while len(arrived(world)) < 7 and (tries := tries + 1) < 30:
            with pytest.raises(SourceUnavailable, match="requests_per_second"):
                fetched(world)
        assert BAD not in arrived(world)
        assert len(arrived(world)) == 7
        assert world.export.ledger.files()[BAD].attempts == 0


def test_a_file_that_cannot_be_downloaded_for_a_while_is_never_parked(tmp_path: Path) -> None:
    with served(tmp_path, 8, detection={"max_attempts": 1}) as (cloud, world):
        cloud.failing[ALL_BLOBS] = 500
        for attempt in (1, 2):
            assert "HTTP 500" in fetched(world, BAD).failures[BAD]
            row = world.export.ledger.files()[BAD]
            assert (row.status, row.attempts) == ("failed", attempt)
            assert row.next_retry_at is not None


def test_only_failures_that_are_the_files_own_count_towards_parking_it(tmp_path: Path) -> None:
    with served(tmp_path, 8, detection={"max_attempts": 2}) as (cloud, world):
        seen = []
        for status in (503, 403, 404, 503, 404):
            cloud.failing["^/_blob/7$"] = status
            fetched(world, BAD)
            row = world.export.ledger.files()[BAD]
            seen.append((row.status, row.attempts))
        assert seen == [("failed", 1), ("failed", 2), ("failed", 3), ("failed", 4), ("parked", 5)]


def test_pages_that_fail_are_named_and_a_file_none_of_whose_pages_can_be_parsed_keeps_its_old_version(tmp_path: Path) -> None:
    failed = {"success": False, "error": "time-out"}
    with served(tmp_path, 2) as (cloud, world):
        assert world.sync().ok
        for at, pages in (
            ("11", [{"page_number": 1, "text": "Text of file 0."}, {"page_number": 2, **failed}]),
            ("12", [failed]),
        ):
            cloud.files[0] = replace(cloud.files[0], body=payload(pages), updated_at=f"2026-11-20T{at}:00:00Z")
            report = world.sync()
            assert world.names() == {"0.pdf", "1.pdf"}
            told = world.export.ledger.files()["dfl-000"]
            if report.ok:
                assert [row.data["failed_pages"] for row in world.numbers("parsed_payloads")["files"].records] == ["2"]
        assert (told.status, told.last_error) == ("failed", "LlamaCloud could not parse any of the 1 pages of '0.pdf'")


def test_metadata_that_moves_while_a_payload_is_fetched_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path, 2) as (_, world):
        fetched(world)
        ledger = world.export.ledger
        ledger.update_files([{"file_id": "dfl-000", "refetch": True}])
        real = Lake.write_many

        def moves_meanwhile(self: Lake, *given: Any) -> list[int]:
            ledger.update_files([{"file_id": "dfl-000", "metadata": '{"team": "b"}'}])
            return real(self, *given)

        with monkeypatch.context() as patched:
            patched.setattr(Lake, "write_many", moves_meanwhile)
            asyncio.run(fetch(world.export, ["dfl-000"], run_id="a run"))
        assert ledger.files()["dfl-000"].refetch
        asyncio.run(fetch(world.export, ["dfl-000"], run_id="a run"))
        assert not ledger.files()["dfl-000"].refetch
