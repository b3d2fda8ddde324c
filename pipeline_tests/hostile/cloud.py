"""A LlamaCloud that serves whatever it is told to: any bytes as a payload, any JSON as a listing, over real HTTP.

The local cloud parses documents, so what it serves is well formed; here nothing has to be.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any
from urllib.parse import unquote, urlsplit

INDEX = "exp-hostile"
PROJECT = "11111111-1111-1111-1111-111111111111"


@dataclass
class ServedFile:
    """One file of the index. ``body`` in pieces is sent without a length; ``metadata`` may be anything ``json`` can write."""

    id: str
    body: bytes | Iterable[bytes]
    display_name: str = ""
    metadata: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str | None = None
    updated_at: str = "2026-11-20T10:00:00Z"


@dataclass
class HostileCloud:
    """``files`` may be changed at any time. ``wrong_paths`` are requests that no client of the API should send; ``failing``
    has the statuses that paths which fit a regular expression are answered with."""

    files: list[ServedFile] = field(default_factory=list)
    api_key: str = "llx-hostile"
    base_url: str = ""
    version: int = 0
    index_id: str = "idx-hostile"
    failing: dict[str, int] = field(default_factory=dict)
    wrong_paths: list[str] = field(default_factory=list)

    def index(self) -> dict[str, Any]:
        return {
            "id": self.index_id,
            "export_config_id": INDEX,
            "name": "hostile",
            "project_id": PROJECT,
            "source_directory_id": "dir-source",
            "output_directory_id": "dir-output",
            "updated_at": f"2026-11-20T10:04:{self.version % 60:02d}Z",
            "metadata": {"status": "ready"},
            "sync_in_progress": False,
        }

    def listed(self, position: int, file: ServedFile) -> dict[str, Any]:
        return {
            "id": file.id,
            "directory_id": "dir-output",
            "display_name": file.display_name or f"{position}.pdf",
            "file_id": f"file-{position}",
            "metadata": file.metadata,
            "updated_at": file.updated_at,
            "deleted_at": None,
            "download_url": self.presigned(position),
        }

    def presigned(self, position: int) -> dict[str, Any]:
        return {"url": f"{self.base_url}/_blob/{position}", "expires_at": "2126-01-01T00:00:00Z"}

    def answer(self, method: str, path: str) -> Any:
        """The JSON of an API request; ``None``: there is no such path."""
        match [*path.removeprefix("/api/v1/").split("/"), method]:
            case ["indexes", "GET"]:
                return {"items": [self.index()], "next_page_token": None}
            case ["indexes", key, "GET"] if key in [self.index()[name] for name in ("id", "export_config_id")]:
                return self.index()
            case ["indexes", _, "sync", "POST"]:
                self.version += 1
                return {}
            case ["beta", "directories", "dir-output", "files", "GET"]:
                return {"items": [self.listed(*entry) for entry in enumerate(self.files)], "next_page_token": None}
            case ["beta", "files", file_id, "content", "GET"]:
                return self.presigned(int(file_id.removeprefix("file-")))
        return None


@contextmanager
def hostile_cloud(*files: ServedFile) -> Iterator[HostileCloud]:
    """Serves these files on a free port of this machine."""
    cloud = HostileCloud(list(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cloud))
    cloud.base_url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(cloud: HostileCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if self._fails(path):
                return
            if path.startswith("/_blob/"):
                self._serve(cloud.files[int(path.removeprefix("/_blob/"))])
            else:
                self._answer("GET", path)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlsplit(self.path).path
            if not self._fails(path):
                self._answer("POST", path)

        def _fails(self, path: str) -> bool:
            status = next((status for pattern, status in cloud.failing.items() if re.search(pattern, path)), None)
            if status is not None:
                self._send(status, b'{"detail": "not for you"}', {"Content-Type": "application/json"})
            return status is not None

        def _answer(self, method: str, path: str) -> None:
            found = cloud.answer(method, unquote(path))
            if found is None:
                cloud.wrong_paths.append(f"{method} {path}")
            self._send(200 if found is not None else 404, json.dumps(found).encode(), {"Content-Type": "application/json"})

        def _serve(self, file: ServedFile) -> None:
            if file.redirect is not None:
                self._send(302, b"", {"Location": file.redirect})
            elif isinstance(file.body, bytes):
                self._send(200, file.body, file.headers)
            else:
                self._stream(file.body)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self._write([body])

        def _stream(self, pieces: Iterable[bytes]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._write(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in chain(pieces, (b"",)))

        def _write(self, pieces: Iterable[bytes]) -> None:
            """A client that has seen enough hangs up: no fault of this server."""
            try:
                for piece in pieces:
                    self.wfile.write(piece)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_args: object) -> None:
            """Nobody reads it."""

    return Handler
