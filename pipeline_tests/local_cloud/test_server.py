"""Starting, stopping and what listens where."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, SourceUnavailable
from pipeline.local_cloud.cloud import open_cloud
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline_tests.local_cloud.harness import Harness, bearer, running, until
from pipeline_tests.ports import free_port


def test_it_listens_on_this_machine_only(cloud: Harness) -> None:
    assert cloud.server.base_url.startswith("http://127.0.0.1:")
    assert LocalCloudSettings(documents="x", state_dir=Path("y")).host == "127.0.0.1"


def test_it_stops_cleanly_and_frees_its_port_and_threads(documents: Path, state_dir: Path) -> None:
    before = set(threading.enumerate())
    with running(documents, state_dir) as cloud:
        url = cloud.server.base_url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    leftover = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("local-cloud")}
    assert leftover == set()
    with pytest.raises(RuntimeError, match="not running"):
        _ = cloud.server.base_url


def test_a_taken_port_is_a_setting_error(documents: Path, state_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = LocalCloudSettings(documents=str(documents), state_dir=state_dir, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="choose another port"), RunningLocalCloud(settings):
            pass


def test_a_state_directory_in_use_is_waited_for_by_the_user(documents: Path, state_dir: Path) -> None:
    with (
        running(documents, state_dir),
        pytest.raises(SourceUnavailable, match="in use by another command"),
        RunningLocalCloud(LocalCloudSettings(documents=str(documents), state_dir=state_dir)),
    ):
        pass


def test_a_disk_without_locks_is_not_taken_for_a_state_directory_in_use(
    documents: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    settings = LocalCloudSettings(documents=str(documents), state_dir=state_dir)
    told = f"cannot keep its state in {state_dir}.*No locks available: .*that disk has no file locks: set INDEXPORT_HOME"
    with running(documents, state_dir), pytest.raises(SourceUnavailable, match=told):
        open_cloud(settings)


@pytest.mark.parametrize(
    ("place", "works"),
    [("state", False), ("a/b", False), (".", False), (".state", True), ("x.tmp/state", True), ("../state", True)],
)
def test_state_is_never_kept_among_the_documents(documents: Path, place: str, works: bool) -> None:
    settings = LocalCloudSettings(documents=str(documents), state_dir=documents / place)
    if works:
        open_cloud(settings).state.close()
    else:
        with pytest.raises(ConfigError, match="lies among the documents"):
            open_cloud(settings)


@pytest.mark.usefixtures("ignores_spelling")
def test_state_is_known_to_be_among_the_documents_in_every_case_that_finds_them(documents: Path) -> None:
    other_case = documents.with_name(documents.name.swapcase())
    with pytest.raises(ConfigError, match="lies among the documents"):
        open_cloud(LocalCloudSettings(documents=str(other_case), state_dir=documents / "state"))


def test_other_machines_are_let_in_only_when_told(documents: Path, state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(documents, state_dir, host="0.0.0.0") as cloud:  # noqa: S104  # the subject of the test
        assert cloud.server.base_url.startswith("http://127.0.0.1:")
        assert cloud.client.indexes.list().items
    assert "other machines can reach" in caplog.text


def test_urls_follow_the_name_the_client_called(documents: Path, state_dir: Path) -> None:
    with running(documents, state_dir, host="0.0.0.0") as cloud:  # noqa: S104  # other machines know it by a name
        file_id = cloud.output()["hello.md"].file_id
        headers = {**bearer(cloud.server.api_key), "Host": "cloud.internal:8080"}
        answer = httpx.get(f"{cloud.server.base_url}/api/v1/beta/files/{file_id}/content", headers=headers)
        assert answer.json()["url"].startswith("http://cloud.internal:8080/_blob/")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 400),
        ("127.0.0.1.evil.example:80", 400),
        ("", 400),
        ("LOCALHOST:80", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
    ],
)
def test_a_web_page_cannot_reach_it_under_a_name_of_its_own(cloud: Harness, host: str, status: int) -> None:
    """A name that comes to stand for 127.0.0.1 (DNS rebinding) would make the page and this server one origin to a browser."""
    url = f"{cloud.server.base_url}/api/v1/indexes"
    assert httpx.get(url, headers={**bearer(cloud.server.api_key), "Host": host}).status_code == status


def _is_an_address_here(host: str) -> bool:
    with suppress(OSError), socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        return True
    return False


@pytest.mark.parametrize("host", ["::1", "LocalHost", "127.0.0.2", "127.2"])
def test_it_answers_under_the_address_it_announces_and_the_one_it_is_told_to_listen_on(
    documents: Path, state_dir: Path, host: str
) -> None:
    if not _is_an_address_here(host):
        pytest.skip(f"the loopback of this machine has no {host}")
    with running(documents, state_dir, host=host) as cloud:
        assert cloud.client.indexes.list().items
        given = f"[{host}]" if ":" in host else host
        assert httpx.get(cloud.server.base_url, headers={"Host": given}).status_code == 401
        assert httpx.get(cloud.server.base_url, headers={"Host": "evil.example"}).status_code == 400


def test_the_key_is_not_shown_by_the_settings() -> None:
    settings = LocalCloudSettings.model_validate({"documents": "x", "state_dir": "y", "api_key": "llx-secret"})
    assert "llx-secret" not in repr(settings)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        LocalCloudSettings.model_validate({"documents": "x", "state_dir": "y", "indexname": "z"})


def test_serve_runs_until_it_is_interrupted(documents: Path, state_dir: Path) -> None:
    port = free_port()
    code = (
        "from pathlib import Path; from pipeline.local_cloud.server import serve;"
        "from pipeline.local_cloud.settings import LocalCloudSettings;"
        f"settings = LocalCloudSettings(documents={str(documents)!r}, state_dir=Path({str(state_dir)!r}), port={port});"
        "serve(settings, announce=print)"
    )
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        until(lambda: process.poll() is not None or _answers(port))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def test_ten_thousand_files_are_listed_fast(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    with running(documents, tmp_path / "state") as cloud:
        (database,) = (tmp_path / "state").glob("*/state.sqlite3")
        _fill(database, cloud.index().output_directory_id, 10_000)
        directory = cloud.index().output_directory_id
        assert directory is not None
        path = f"{cloud.server.base_url}/api/v1/beta/directories/{directory}/files"
        query: dict[str, str] = {"page_size": "1000", "expand": "download_url"}
        seen: set[str] = set()
        pages = 0
        started = time.process_time()
        with httpx.Client(headers=bearer(cloud.server.api_key)) as client:
            while True:
                page = client.get(path, params=query).json()
                pages += 1
                seen.update(item["id"] for item in page["items"])
                if page["next_page_token"] is None:
                    break
                query["page_token"] = page["next_page_token"]
        assert len(seen) == 10_000
        assert pages == 10
        assert time.process_time() - started < 2.5  # client and server together take a tenth


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/v1/indexes", headers=bearer("local")).status_code == 200
    except httpx.ConnectError:
        return False


def _fill(database: Path, directory_id: str | None, count: int) -> None:
    with sqlite3.connect(database) as connection:
        connection.executemany(
            "INSERT INTO directory_file (id, directory_id, display_name, unique_id, file_id, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, '6f3b0a52-4a44-5d0e-9d3f-1f6f5b6b7c01', ?, ?)",
            [
                (f"dfl-{n}", directory_id, f"{n}.md", f"{n}.md", "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z")
                for n in range(count)
            ],
        )
    connection.close()
