"""What counts as a document in a folder."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from pipeline.errors import ConfigError
from pipeline.local_cloud.documents import DocumentFolder, DocumentsUnavailable, UnreadableDocument, check_metadata
from pipeline_tests.local_cloud.harness import metadata, running


def _paths(folder: Path) -> list[str]:
    return [document.path for document in DocumentFolder(str(folder), {}).scan()]


def _sidecars(folder: Path) -> dict[str, str | None]:
    return {document.path: document.sidecar for document in DocumentFolder(str(folder), {}).scan()}


def test_hidden_lock_and_sidecar_files_are_no_documents(tmp_path: Path) -> None:
    kept = ["a.md", "b/c.txt", "d.pdf"]
    skipped = [
        ".hidden.md",
        ".git/config.txt",
        "~$d.docx",
        ".~lock.d.odt#",
        "a.md~",
        "e.lock",
        "f.tmp",
        "g.part",
        "a.md.meta.json",
    ]
    for name in [*kept, *skipped]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert _paths(tmp_path) == kept
    assert _sidecars(tmp_path) == {"a.md": "a.md.meta.json", "b/c.txt": None, "d.pdf": None}


def test_a_sidecar_is_of_the_document_of_its_name_whether_the_letters_are_composed_or_not(tmp_path: Path) -> None:
    """As files from macOS have them apart, and what is typed beside them composed."""
    for name in ("Vertra\u0308ge.md", "Vertr\u00e4ge.md.meta.json", "a/O\u0308l.md.meta.json", "a/\u00d6l.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"team": "crew"}')
    found = _sidecars(tmp_path)
    assert found == {
        "Vertra\u0308ge.md": "Vertr\u00e4ge.md.meta.json",
        "a/\u00d6l.md": "a/O\u0308l.md.meta.json",
    }
    read = DocumentFolder(str(tmp_path), {}).read_sidecars(DocumentFolder(str(tmp_path), {}).scan())
    assert {path: sidecar.metadata for path, sidecar in read.items()} == {path: {"team": "crew"} for path in found}


def test_of_two_documents_that_look_alike_a_sidecar_is_of_the_one_that_is_spelt_as_it(tmp_path: Path) -> None:
    for name in ("Vertra\u0308ge.md", "Vertr\u00e4ge.md", "Vertr\u00e4ge.md.meta.json"):
        (tmp_path / name).write_text("{}")
    assert _sidecars(tmp_path) == {"Vertra\u0308ge.md": None, "Vertr\u00e4ge.md": "Vertr\u00e4ge.md.meta.json"}


@pytest.mark.parametrize(
    "name", ["report.pdf.download/report.pdf", "a.txt.download", "b/c.pdf.part/c.pdf", "d.crdownload/d.md", "Icon\r", "b/Icon\r"]
)
def test_what_a_download_or_the_finder_leaves_in_a_folder_is_no_document(tmp_path: Path, name: str) -> None:
    for kept in ("Icon.md", "download.md", "x.download.md", name):
        (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / kept).write_text("x")
    assert _paths(tmp_path) == ["Icon.md", "download.md", "x.download.md"]
    elsewhere = fsspec.filesystem("memory")
    elsewhere.pipe_file(f"/{tmp_path.name}/{name}", b"x")
    assert DocumentFolder(f"memory://{tmp_path.name}", {}).scan() == []


def test_links_to_files_count_and_links_to_folders_do_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "target.md").write_text("four")
    (folder / "link.md").symlink_to(tmp_path / "target.md")
    (folder / "loop").symlink_to(folder)
    (folder / "dead.md").symlink_to(tmp_path / "nothing")
    (folder / "self.md").symlink_to(folder / "self.md")
    found = DocumentFolder(str(folder), {}).scan()
    assert [(document.path, document.size) for document in found] == [("link.md", 4)]


def test_a_recent_file_has_no_stamp_and_a_settled_one_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("a")
    folder = DocumentFolder(str(tmp_path), {})
    assert folder.scan()[0].stamp is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10)
    stamp = folder.scan()[0].stamp
    assert stamp is not None
    assert folder.scan()[0].stamp == stamp
    (tmp_path / "a.md").write_text("b")
    assert folder.scan()[0].stamp not in (None, stamp)


@pytest.mark.parametrize("moment", [253_402_300_800, -62_135_596_801, 2**62])
def test_a_file_of_a_time_no_calendar_has_is_a_document_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """As tmpfs, XFS and ZFS hold it; others cut it short."""
    (tmp_path / "odd.md").write_text("x")
    found = (tmp_path / "odd.md").stat()
    odd = os.stat_result((*found[:8], moment, int(found.st_ctime)), {"st_mtime": float(moment), "st_ctime": found.st_ctime})
    monkeypatch.setattr(Path, "stat", lambda _path, **_options: odd)
    (document,) = DocumentFolder(str(tmp_path), {}).scan()
    assert (document.path, document.modified_at) == ("odd.md", None)


def test_a_missing_folder_is_unavailable_not_empty(tmp_path: Path) -> None:
    with pytest.raises(DocumentsUnavailable, match="does not exist"):
        DocumentFolder(str(tmp_path / "nowhere"), {}).scan()
    assert _paths(tmp_path) == []


def test_a_subfolder_that_cannot_be_listed_makes_the_scan_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "outer" / "locked").mkdir(parents=True)
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DocumentsUnavailable, match=r"Permission denied: '.*locked'"):
        DocumentFolder(str(tmp_path), {}).scan()


def test_a_folder_that_vanishes_during_the_scan_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "sub").mkdir()
    scandir = os.scandir

    def vanish(path: Path) -> object:
        if Path(path).name == "sub":
            raise FileNotFoundError(2, "No such file or directory")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert _paths(tmp_path) == ["a.md"]


def test_a_document_that_vanishes_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocument, match="No such file"):
        DocumentFolder(str(tmp_path), {}).read("gone.md")


def test_an_unknown_filesystem_is_a_setting_error() -> None:
    with pytest.raises(ConfigError, match="documents='nosuch://x'"):
        DocumentFolder("nosuch://x", {})


def test_a_filesystem_that_is_not_installed_is_a_setting_error_that_names_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"documents='dropbox://x' cannot be opened: .*dropbox.*indexport\[s3\]"):
        DocumentFolder("dropbox://x", {})


@pytest.mark.parametrize("scheme", ["ftp", "sftp", "nosuch"])
def test_a_filesystem_that_cannot_be_opened_is_a_setting_error_in_one_line_without_its_password(scheme: str) -> None:
    url = f"{scheme}://bob:hunter2@127.0.0.1:9/docs"
    with pytest.raises(ConfigError, match=rf"^documents='{scheme}://127.0.0.1:9/docs' cannot be opened: \S.*$") as refused:
        DocumentFolder(url, {})
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_a_folder_on_a_web_server_is_read_with_a_password_that_nobody_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with web_folder({"a.md": (200, b"# A"), "b.md": (503, b""), "c.md": (404, b"")}) as address:
        documents = address.replace("http://", "http://bob:hunter2@")
        with running(documents, tmp_path) as cloud:
            assert cloud.texts() == {"a.md": ["# A"]}
            failures = cloud.failures()
    assert failures.keys() == {"b.md", "c.md"}
    assert f"{address}/b.md" in failures["b.md"]
    with running(documents, tmp_path) as cloud:
        gone = metadata(cloud.index())
    assert gone["error_message"].startswith(f"{address} cannot be listed: ")
    assert "hunter2" not in f"{failures} {gone} {caplog.text}"


@contextmanager
def web_folder(files: Mapping[str, tuple[int, bytes]]) -> Iterator[str]:
    """The address of a folder on a web server that gives each file with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            links = "".join(f'<a href="{name}">{name}</a>' for name in files).encode()
            status, content = files.get(self.path.removeprefix("/docs/"), (200, links))
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/docs"
        server.shutdown()


@pytest.mark.parametrize("value", [[], "text", {"a": {}}, {"a": [1]}, {"a": float("nan")}, {"a": [["x"]]}, None])
def test_only_flat_metadata_is_accepted(value: object) -> None:
    with pytest.raises(ValueError, match="flat JSON object"):
        check_metadata(value)


@pytest.mark.parametrize("member", [{}, "\ud800"])
def test_of_a_long_name_the_beginning_is_told(member: object) -> None:
    with pytest.raises(ValueError, match="nnn") as told:
        check_metadata({"n" * 30_000: member})
    assert len(str(told.value)) < 500


def test_metadata_keeps_its_types() -> None:
    metadata = {"text": "1", "whole": 1, "real": 1.5, "yes": True, "none": None, "tags": ["a", "b"]}
    checked = check_metadata(metadata)
    assert checked == metadata
    assert [type(value) for value in checked.values()] == [type(value) for value in metadata.values()]
