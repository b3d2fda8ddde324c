"""Turbopuffer over HTTP on a free port of this machine, to be driven by the vendor's own SDK.

What belongs here: the wire (paths, authorisation, errors) and the faults a test can ask for. What a namespace does is
``turbopuffer_engine``'s.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline_tests.emulators.turbopuffer_engine import Engine
from pipeline_tests.emulators.turbopuffer_schema import ApiError

MAX_REQUEST_BYTES = 512_000_000

_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("POST", r"/v2/namespaces/([^/]+)", "write"),
    ("POST", r"/v2/namespaces/([^/]+)/query", "query"),
    ("DELETE", r"/v2/namespaces/([^/]+)", "delete"),
    ("GET", r"/v[12]/namespaces/([^/]+)/metadata", "metadata"),
    ("GET", r"/v1/namespaces/([^/]+)/schema", "schema"),
    ("POST", r"/v1/namespaces/([^/]+)/schema", "update_schema"),
    ("GET", r"/v1/namespaces/([^/]+)/hint_cache_warm", "warm"),
    ("GET", r"/v1/namespaces()", "list"),
)


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    operation: str
    namespace: str
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


class TurbopufferEmulator:
    """One server. ``requests`` is what was asked of it; ``before`` runs before a request is done, outside every lock."""

    def __init__(self, api_key: str = "tpuf-emulator-key") -> None:
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

    def fail(
        self, operation: str, status: int, *, times: int = 1, retry_after: str | None = None, message: str = "injected"
    ) -> None:
        """Answer the next requests of this operation with an error, without doing them."""
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self._faults.append(Fault(operation, times, status, headers, message))

    def garble(self, operation: str) -> None:
        """Answer the next request of this operation as some other server would."""
        self._faults.append(Fault(operation, 1, 200))

    def hold(self, operation: str) -> threading.Event:
        """Keep every request of this operation waiting until the event is set."""
        released = threading.Event()

        def wait(request: Request) -> None:
            if request.operation == operation:
                released.wait(30)

        self.before = wait
        return released

    def reset(self) -> None:
        """As it was when started: no namespaces, no faults, nothing asked."""
        self.engine = Engine()
        self.before = None
        self.reset_faults()
        self.requests.clear()

    def reset_faults(self) -> None:
        with self._lock:
            self._faults.clear()

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

    def done(self, request: Request) -> Any:
        """The answer to a request."""
        name, body, parameters = request.namespace, request.body, request.parameters
        if request.operation == "write":
            return self.engine.write(name, body)
        if request.operation == "query":
            return _answered(self.engine.query(name, body))
        if request.operation == "delete":
            self.engine.delete(name)
        elif request.operation == "metadata":
            return self.engine.metadata(name)
        elif request.operation == "schema":
            return self.engine.schema(name)
        elif request.operation == "update_schema":
            self.engine.write(name, {"schema": body})
            return self.engine.schema(name)
        elif request.operation == "list":
            size = int(parameters.get("page_size", ["100"])[0])
            return self.engine.listing(parameters.get("prefix", [""])[0], parameters.get("cursor", [""])[0], size)
        return {"status": "OK", "message": ""}


def _answered(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        **answer,
        "billing": {"billable_logical_bytes_queried": 0, "billable_logical_bytes_returned": 0},
        "performance": {"cache_temperature": "hot", "server_total_ms": 0},
    }


def _handler(emulator: TurbopufferEmulator) -> type[BaseHTTPRequestHandler]:
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
                    told = "<html>" if fault.status == 200 else json.dumps({"status": "error", "error": fault.message})
                    self._send(fault.status, told, fault.headers)
                    return
                answer = emulator.done(request)
            except ApiError as error:
                self._send(error.status, json.dumps({"status": "error", "error": error.message}), {})
                return
            if fault is not None:
                self.close_connection = True
                return
            self._send(200, json.dumps(answer), {})

        def _request(self, raw: bytes) -> Request:
            if self.headers.get("Authorization") != f"Bearer {emulator.api_key}":
                raise ApiError(401, "invalid API key")
            if len(raw) > emulator.max_request_bytes:
                raise ApiError(413, f"request is larger than {emulator.max_request_bytes} bytes")
            parts = urlsplit(self.path)
            for method, pattern, operation in _ROUTES:
                found = re.fullmatch(pattern, parts.path)
                if method == self.command and found:
                    return Request(operation, unquote(found[1]), self._json(raw), len(raw), parse_qs(parts.query))
            raise ApiError(404, f"no route {self.command} {parts.path}")

        def _json(self, raw: bytes) -> dict[str, Any]:
            if self.headers.get("Content-Encoding") == "gzip":
                raw = gzip.decompress(raw)
            try:
                body: dict[str, Any] = json.loads(raw) if raw else {}
            except ValueError as error:
                raise ApiError(400, f"invalid JSON: {error}") from None
            return body

        def _send(self, status: int, answer: str, headers: dict[str, str]) -> None:
            content = answer.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # a client that has stopped waiting
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve

    return Handler


@contextmanager
def turbopuffer_emulator() -> Iterator[TurbopufferEmulator]:
    """A running emulator, ended on the way out."""
    emulator = TurbopufferEmulator()
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()
