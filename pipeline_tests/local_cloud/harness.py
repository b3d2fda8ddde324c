"""A local server over a folder, driven by the real SDK."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from llama_cloud import AsyncLlamaCloud, LlamaCloud
from llama_cloud.types import IndexGetResponse
from llama_cloud.types.beta.directories import FileListResponse

from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings

DEADLINE_SECONDS = 60.0


class MovableClock:
    """The real time plus what a test has let pass."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset


@dataclass
class Harness:
    """What a test holds of one running server."""

    server: RunningLocalCloud
    client: LlamaCloud

    @property
    def async_client(self) -> AsyncLlamaCloud:
        return AsyncLlamaCloud(api_key=self.server.api_key, base_url=self.server.base_url, max_retries=0)

    def index(self) -> IndexGetResponse:
        """The first index, with its progress."""
        first = self.client.indexes.list().items[0]
        return self.client.indexes.get(first.id, expand=["sync_in_progress"])

    def settled(self, index_id: str | None = None) -> IndexGetResponse:
        """The index once no sync is in progress."""
        wanted = index_id or self.index().id
        state: list[IndexGetResponse] = []

        def done() -> bool:
            state[:] = [self.client.indexes.get(wanted, expand=["sync_in_progress"])]
            return not state[0].sync_in_progress

        until(done)
        return state[0]

    def sync(self, index_id: str | None = None) -> IndexGetResponse:
        wanted = index_id or self.index().id
        self.client.indexes.sync(wanted)
        return self.settled(wanted)

    def output(self, **filters: Any) -> dict[str, FileListResponse]:
        """Parsed files by display name."""
        return self.files(self.index().output_directory_id, **filters)

    def source(self, **filters: Any) -> dict[str, FileListResponse]:
        return self.files(self.index().source_directory_id, **filters)

    def files(self, directory_id: str | None, **filters: Any) -> dict[str, FileListResponse]:
        assert directory_id is not None
        return {file.display_name: file for file in self.client.beta.directories.files.list(directory_id, **filters)}

    def payload(self, file: FileListResponse) -> dict[str, Any]:
        assert file.file_id is not None
        answer = httpx.get(self.client.files.content(file.file_id).url)
        answer.raise_for_status()
        value: dict[str, Any] = answer.json()
        return value

    def texts(self) -> dict[str, list[str]]:
        """Page texts of every parsed file."""
        return {name: [page["text"] for page in self.payload(file)["parse"]["pages"]] for name, file in self.output().items()}

    def failures(self) -> dict[str, str]:
        return {problem["name"]: problem["reason"] for problem in metadata(self.settled())["failed_files"]}

    def inject(self, **faults: Any) -> None:
        """Replaces the faults in force; none ends them all."""
        body = Faults(**faults).model_dump(mode="json")
        answer = httpx.put(f"{self.server.base_url}/_admin/faults", json=body, headers=bearer(self.server.api_key))
        answer.raise_for_status()


def metadata(index: IndexGetResponse) -> dict[str, Any]:
    """What the server tells of an index's last sync."""
    assert index.metadata is not None
    return index.metadata


def bearer(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"}


def until(done: Callable[[], bool]) -> None:
    """Asks again until ``done``; the server has no way to call back."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not done():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


@contextmanager
def running(
    documents: Path | str, state_dir: Path, *, faults: Faults | None = None, clock: MovableClock | None = None, **settings: Any
) -> Iterator[Harness]:
    """A server over ``documents``; its first sync is done on entry unless faults hold it or it is switched off."""
    configured = LocalCloudSettings.model_validate(
        {"documents": documents, "state_dir": state_dir, "allow_fault_injection": True, **settings}
    )
    with (
        RunningLocalCloud(configured, faults=faults, clock=clock or MovableClock()) as server,
        LlamaCloud(api_key=server.api_key, base_url=server.base_url, max_retries=0) as client,
    ):
        harness = Harness(server, client)
        if configured.auto_sync_on_start and not (faults and faults.hold_syncs) and client.indexes.list().items:
            harness.settled()
        yield harness
