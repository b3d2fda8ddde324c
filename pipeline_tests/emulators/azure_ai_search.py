"""Azure AI Search over HTTP on a free port of this machine, to be driven by the vendor's own SDK.

What belongs here: the wire (addresses, keys, errors, TLS) and the faults a test can ask for. What an index does is
``azure_ai_search_engine``'s.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline_tests.emulators.azure_ai_search_engine import Engine
from pipeline_tests.emulators.azure_ai_search_schema import ApiError, bad

MAX_REQUEST_BYTES = 16 * 2**20
_VERSIONS = ("2024-07-01", "2025-09-01", "2026-04-01")

_INDEX = r"/indexes\('([^']*)'\)"
_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/indexes()", "list_indexes"),
    ("POST", r"/indexes()", "create_index"),
    ("GET", _INDEX, "get_index"),
    ("PUT", _INDEX, "put_index"),
    ("DELETE", _INDEX, "delete_index"),
    ("GET", _INDEX + r"/search\.stats", "stats"),
    ("POST", _INDEX + r"/docs/search\.index", "change"),
    ("POST", _INDEX + r"/docs/search\.post\.search", "search"),
    ("GET", _INDEX + r"/docs/\$count", "count"),
    ("GET", _INDEX + r"/docs\('([^']*)'\)", "lookup"),
)


@dataclass(frozen=True)
class Certificate:
    """A server's certificate and its key, in PEM files."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    operation: str
    index: str
    key: str
    body: dict[str, Any]
    size: int
    headers: dict[str, str]


@dataclass
class Fault:
    """What happens to the next ``times`` requests of an operation, instead of or after being done."""

    operation: str
    times: int
    status: int | None
    """``None``: the request is done, its answer lost."""

    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"


class AzureAISearchEmulator:
    """One service. ``requests`` is what was asked of it; ``before`` runs before a request is done, outside every lock."""

    def __init__(self, api_key: str = "azure-emulator-admin-key", certificate: Certificate | None = None) -> None:
        self.api_key = api_key
        self._scheme = "https" if certificate else "http"
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.chain, certificate.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Empty, and without faults."""
        self.engine = Engine()
        self.requests: list[Request] = []
        self.max_request_bytes = MAX_REQUEST_BYTES
        self.before: Callable[[Request], None] | None = None
        self._faults: list[Fault] = []

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

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

    def done(self, request: Request) -> tuple[int, Any]:
        """The status of a request and its answer."""
        engine, name = self.engine, request.index
        if request.operation == "create_index":
            return engine.put_index(str(request.body.get("name")), request.body, None, "*")
        if request.operation == "put_index":
            headers = request.headers
            return engine.put_index(name, request.body, headers.get("if-match"), headers.get("if-none-match"))
        if request.operation == "delete_index":
            engine.delete_index(name)
            return 204, None
        if request.operation == "change":
            return engine.change(name, request.body)
        if request.operation == "search":
            return 200, engine.search(name, request.body)
        if request.operation == "lookup":
            return 200, engine.lookup(name, request.key)
        if request.operation == "list_indexes":
            return 200, engine.list_indexes()
        return 200, {"get_index": engine.get_index, "stats": engine.stats, "count": engine.count}[request.operation](name)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends a connection, or a handshake, is no error of the server's."""


def _handler(emulator: AzureAISearchEmulator) -> type[BaseHTTPRequestHandler]:
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
                    self._send(fault.status, _problem("", fault.message), fault.headers)
                    return
                status, answer = emulator.done(request)
            except ApiError as error:
                self._send(error.status, _problem(error.code, error.message), {})
                return
            if fault is not None:
                self.close_connection = True
                return
            self._send(status, answer, {})

        def _request(self, raw: bytes) -> Request:
            parts = urlsplit(self.path)
            if self.headers.get("api-key") != emulator.api_key:
                raise ApiError(403, "")
            if parse_qs(parts.query).get("api-version", [""])[0] not in _VERSIONS:
                raise bad("The api-version query parameter is missing or not supported.")
            if len(raw) > emulator.max_request_bytes:
                raise ApiError(413, "The request body is too large and exceeds the maximum permissible limit.")
            path = unquote(parts.path)
            for method, pattern, operation in _ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    key = found[2] if operation == "lookup" else ""
                    return Request(operation, found[1], key, self._json(raw), len(raw), headers)
            raise ApiError(404, f"no resource {self.command} {path}")

        def _json(self, raw: bytes) -> dict[str, Any]:
            try:
                body: dict[str, Any] = json.loads(raw) if raw else {}
            except ValueError as error:
                raise bad(f"The request is invalid. Details: {error}") from None
            return body

        def _send(self, status: int, answer: Any, headers: dict[str, str]) -> None:
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            kind = "application/json; odata.metadata=minimal"
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

    return Handler


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


@contextmanager
def azure_ai_search_emulator(certificate: Certificate | None = None) -> Iterator[AzureAISearchEmulator]:
    """A running emulator, ended on the way out."""
    emulator = AzureAISearchEmulator(certificate=certificate)
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()
