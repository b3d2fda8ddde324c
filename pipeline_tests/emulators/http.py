"""What every emulated HTTP API has: a server on a free port, a record of what was asked of it, and faults to order.

What belongs here: nothing of any store. An emulator says how it reads a request, does it, and words an error.
"""

from __future__ import annotations

import re
import ssl
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

Effect = Literal["not", "half", "all"]
Route = tuple[str, str, str]
"""Method, pattern of the path, operation."""


class ApiError(Exception):
    """An answer other than success; ``code`` is the API's own name or number for it."""

    def __init__(self, status: int, message: str, code: str | int = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class HasOperation(Protocol):
    """A request, read."""

    @property
    def operation(self) -> str: ...


R = TypeVar("R", bound=HasOperation)


@dataclass(frozen=True)
class Certificate:
    """A server's certificate and its key, in PEM files."""

    chain: Path
    key: Path


@dataclass(frozen=True)
class Asked:
    """A request off the wire. Names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def parameters(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def routed(self, routes: Sequence[Route], path: str | None = None) -> tuple[str, re.Match[str]] | None:
        """The operation the method and the path stand for."""
        for method, pattern, operation in routes:
            found = re.fullmatch(pattern, self.path if path is None else path)
            if found and method == self.method:
                return operation, found
        return None


@dataclass(frozen=True)
class Answer:
    """An answer as it goes over the wire."""

    status: int
    content: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What happens to the next ``times`` requests of an operation."""

    operation: str
    times: int
    status: int | None
    """``None``: no answer at all, the connection closes; 200: the answer is no JSON."""

    takes_effect: Effect = "not"
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "injected"
    stall_seconds: float = 0.0


class HttpEmulator(ABC, Generic[R]):
    """One server. ``requests`` is what was asked of it, unless ``keeps_requests`` is False.

    ``before`` runs before a request is done, outside every lock.
    """

    content_type: ClassVar[str] = "application/json"
    fault_code: ClassVar[str | int] = ""
    """The ``code`` of errors that a test asked for."""

    def __init__(self, api_key: str, certificate: Certificate | None = None) -> None:
        self.api_key = api_key
        self.requests: list[R] = []
        self.keeps_requests = True
        self.before: Callable[[R], None] | None = None
        self._faults: list[Fault] = []
        self._faulty = threading.Lock()
        self._scheme = "https" if certificate else "http"
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.chain, certificate.key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @abstractmethod
    def read(self, asked: Asked) -> R:
        """The request that was asked. Raises ApiError for one that is not understood or not allowed."""

    @abstractmethod
    def done(self, request: R, share: float = 1.0) -> Answer:
        """Do a request, or this share of it where it can be done in part. Raises ApiError."""

    @abstractmethod
    def worded(self, error: ApiError, asked: Asked) -> str:
        """The content of an answer that is an error."""

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forget(self) -> None:
        """No fault is left, and nothing was asked."""
        self.before = None
        self.heal()
        self.requests.clear()

    def heal(self) -> None:
        """No fault is left."""
        with self._faulty:
            self._faults.clear()

    def fail(
        self,
        operation: str,
        status: int,
        *,
        times: int = 1,
        retry_after: str | None = None,
        message: str = "injected",
        takes_effect: Effect = "not",
    ) -> None:
        """Answer the next requests of this operation with an error; some can take effect nevertheless, even in part."""
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self._faults.append(Fault(operation, times, status, takes_effect, headers, message))

    def garble(self, operation: str) -> None:
        """Answer the next request of this operation as some other server would."""
        self._faults.append(Fault(operation, 1, 200))

    def lose_answer(self, operation: str, *, times: int = 1, stall_seconds: float = 0.0) -> None:
        """Do the next requests of this operation and close the connection instead of answering, perhaps after a while."""
        self._faults.append(Fault(operation, times, None, "all", stall_seconds=stall_seconds))

    def count(self, operation: str) -> int:
        return sum(request.operation == operation for request in self.requests)

    def answer(self, asked: Asked) -> Answer | None:
        """What is answered; ``None`` where the connection closes instead."""
        try:
            request = self.read(asked)
            if self.keeps_requests:
                self.requests.append(request)
            if self.before is not None:
                self.before(request)
            fault = self._fault(request.operation)
            return self.done(request) if fault is None else self._failed(fault, request, asked)
        except ApiError as error:
            return Answer(error.status, self.worded(error, asked))

    def _fault(self, operation: str) -> Fault | None:
        with self._faulty:
            for fault in self._faults:
                if fault.operation == operation and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def _failed(self, fault: Fault, request: R, asked: Asked) -> Answer | None:
        if fault.takes_effect != "not":
            self.done(request, 0.5 if fault.takes_effect == "half" else 1.0)
        if fault.status is None:
            time.sleep(fault.stall_seconds)
            return None
        error = ApiError(fault.status, fault.message, self.fault_code)
        return Answer(fault.status, "<html>" if fault.status == 200 else self.worded(error, asked), fault.headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """As real servers have it: of five, connections that come at once are dropped and tried again a second later."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends a connection, or a handshake, is no error of the server's."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _handler(emulator: HttpEmulator[Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Requests are kept on the emulator instead."""

        def _serve(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = emulator.answer(Asked(self.command, self.path, headers, content))
            if answer is None:
                self.close_connection = True
                return
            self._send(answer)

        def _send(self, answer: Answer) -> None:
            content = answer.content.encode()
            self.send_response(answer.status)
            for name, value in {
                "Content-Type": emulator.content_type,
                "Content-Length": str(len(content)),
                **answer.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve

    return Handler
