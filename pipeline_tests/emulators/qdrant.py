"""Qdrant over HTTP on a free port of this machine, to be driven by the vendor's own SDK.

What belongs here: the wire (paths, authorisation, errors) and the faults a test can ask for. What a collection does is
``qdrant_engine``'s.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline_tests.emulators.qdrant_engine import Engine
from pipeline_tests.emulators.qdrant_filter import ApiError

MAX_REQUEST_BYTES = 32 * 2**20

_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/collections()", "list"),
    ("GET", r"/collections/([^/]+)/exists", "exists"),
    ("PUT", r"/collections/([^/]+)", "create"),
    ("GET", r"/collections/([^/]+)", "info"),
    ("DELETE", r"/collections/([^/]+)", "drop"),
    ("PUT", r"/collections/([^/]+)/index", "create_index"),
    ("PUT", r"/collections/([^/]+)/points", "upsert"),
    ("POST", r"/collections/([^/]+)/points/delete", "delete"),
    ("POST", r"/collections/([^/]+)/points/payload", "set_payload"),
    ("POST", r"/collections/([^/]+)/points/payload/delete", "delete_payload"),
    ("POST", r"/collections/([^/]+)/points/batch", "batch"),
    ("POST", r"/collections/([^/]+)/points/scroll", "scroll"),
    ("POST", r"/collections/([^/]+)/points/count", "count"),
    ("POST", r"/collections/([^/]+)/points/query", "query"),
)
WRITES = frozenset({"upsert", "delete", "set_payload", "delete_payload", "batch", "create_index"})


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    operation: str
    collection: str
    body: dict[str, Any]
    size: int
    parameters: dict[str, list[str]]


@dataclass
class Fault:
    """What happens to the next ``times`` requests of an operation, instead of or after being done."""

    operation: str
    times: int
    status: int | None
    """``None``: the request is done, its answer lost; 200: it is not done, and the answer is no JSON."""

    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"


class QdrantEmulator:
    """One server. ``requests`` is what was asked of it; ``before`` runs before a request is done, outside every lock."""

    def __init__(self, api_key: str = "qdrant-emulator-key") -> None:
        self.api_key = api_key
        self.engine = Engine()
        self.requests: list[Request] = []
        self.max_request_bytes = MAX_REQUEST_BYTES
        self.before: Callable[[Request], None] | None = None
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """As it was when started."""
        self.engine = Engine()
        self.max_request_bytes = MAX_REQUEST_BYTES
        self.before = None
        self.heal()
        self.requests.clear()

    def heal(self) -> None:
        """No fault is left."""
        with self._lock:
            self._faults.clear()

    def fail(
        self, operation: str, status: int, *, times: int = 1, retry_after: str | None = None, message: str = "injected"
    ) -> None:
        """Answer the next requests of this operation with an error, without doing them."""
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self._faults.append(Fault(operation, times, status, headers, message))

    def garble(self, operation: str) -> None:
        """Answer the next request of this operation as some other server would."""
        self._faults.append(Fault(operation, 1, 200))

    def lose_answer(self, operation: str, *, times: int = 1) -> None:
        """Do the next requests of this operation and close the connection instead of answering."""
        self._faults.append(Fault(operation, times, None))

    def count(self, operation: str) -> int:
        return sum(request.operation == operation for request in self.requests)

    def fault(self, operation: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.operation == operation and fault.times:
                    fault.times -= 1
                    return fault
        return None


def _handler(emulator: QdrantEmulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Requests are kept on the emulator instead."""

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                request = self._request(raw)
                emulator.requests.append(request)
                if emulator.before is not None:
                    emulator.before(request)
                fault = emulator.fault(request.operation)
                if fault is not None and fault.status is not None:
                    self._send(fault.status, "<html>" if fault.status == 200 else _error(fault.message), fault.headers)
                    return
                result = emulator.engine.call(request.operation, request.collection, request.body)
            except ApiError as error:
                self._send(error.status, _error(error.message), {})
                return
            if fault is not None:
                self.close_connection = True
                return
            self._send(200, json.dumps({"result": result, "status": "ok", "time": 0.001}), {})

        def _request(self, raw: bytes) -> Request:
            if self.headers.get("api-key") != emulator.api_key:
                raise ApiError(403, "Forbidden: Invalid API key or JWT")
            if len(raw) > emulator.max_request_bytes:
                raise ApiError(413, f"Payload error: JSON payload ({len(raw)} bytes) is larger than allowed")
            parts = urlsplit(self.path)
            for method, pattern, operation in _ROUTES:
                found = re.fullmatch(pattern, parts.path)
                if found and method == self.command:
                    body = json.loads(raw) if raw else {}
                    return Request(operation, unquote(found.group(1)), body, len(raw), parse_qs(parts.query))
            raise ApiError(404, "")

        def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
            raw = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_PUT = do_POST = do_DELETE = _serve

    return Handler


def _error(message: str) -> str:
    return json.dumps({"status": {"error": message}, "time": 0.001})


@contextmanager
def qdrant_emulator() -> Iterator[QdrantEmulator]:
    emulator = QdrantEmulator()
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()
