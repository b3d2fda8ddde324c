"""Pinecone over HTTP on a free port of this machine, to be driven by the vendor's own SDK, of either major version.

What belongs here: the wire (paths, versions, authorisation, errors, positions in headers), the control plane, and the faults
a test can ask for. What an index does with records is ``pinecone_engine``'s. Every index has its own path on the one server,
where the real service gives it a host of its own.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline_tests.emulators.pinecone_engine import MAX_REQUEST_BYTES, ApiError, Engine, Lag

OLD_API, NEW_API = "2025-10", "2026-07"
MAX_INDEX_NAME = 45
POSITION_HEADERS = ("x-pinecone-request-lsn", "x-pinecone-max-indexed-lsn")
OTHER_POSITION_HEADERS = ("x-pinecone-lsn-committed", "x-pinecone-lsn-reconciled")

_DATA_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("POST", r"/vectors/upsert", "upsert"),
    ("POST", r"/vectors/update", "update"),
    ("POST", r"/vectors/delete", "delete"),
    ("POST", r"/query", "query"),
    ("GET", r"/vectors/fetch", "fetch"),
    ("POST", r"/vectors/fetch_by_metadata", "fetch_by_metadata"),
    ("GET", r"/vectors/list", "list"),
    ("POST", r"/describe_index_stats", "stats"),
    ("GET", r"/namespaces", "list_namespaces"),
    ("POST", r"/namespaces", "create_namespace"),
    ("GET", r"/namespaces/([^/]+)", "describe_namespace"),
    ("DELETE", r"/namespaces/([^/]+)", "delete_namespace"),
)
_CONTROL_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/indexes", "list_indexes"),
    ("POST", r"/indexes", "create_index"),
    ("GET", r"/indexes/([^/]+)", "describe_index"),
    ("DELETE", r"/indexes/([^/]+)", "delete_index"),
    ("PATCH", r"/indexes/([^/]+)", "configure_index"),
)
WRITES = frozenset({"upsert", "update", "delete"})
BOUNDED = frozenset({"query", "fetch", "fetch_by_metadata"})


@dataclass(frozen=True)
class Request:
    """One request as it arrived; ``target`` is the index or namespace its path names."""

    operation: str
    index: str
    target: str
    body: dict[str, Any]
    size: int
    parameters: dict[str, list[str]]
    api_version: str

    @property
    def namespace(self) -> str:
        return str(self.body.get("namespace") or self.parameters.get("namespace", [""])[0] or "__default__")


@dataclass
class Fault:
    """What happens to the next ``times`` requests of an operation."""

    operation: str
    times: int
    status: int | None = None
    """``None``: no answer at all, the connection closes."""

    takes_effect: Literal["not", "half", "all"] = "not"
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"
    stall_seconds: float = 0.0


@dataclass
class Index:
    """One index as the control plane knows it."""

    name: str
    host: str
    dimension: int
    metric: str
    cloud: str
    region: str
    deletion_protection: str
    tags: dict[str, str] | None
    engine: Engine
    describes_until_ready: int
    state: str = "Initializing"

    def described(self, api_version: str) -> dict[str, Any]:
        shared = {
            "name": self.name,
            "host": self.host,
            "status": {"ready": self.state == "Ready", "state": self.state},
            "deletion_protection": self.deletion_protection,
            "tags": self.tags,
        }
        if api_version == NEW_API:
            vector = {"type": "dense_vector", "dimension": self.dimension, "metric": self.metric}
            deployment = {"deployment_type": "managed", "cloud": self.cloud, "region": self.region}
            return {**shared, "schema": {"fields": {"_values": vector}}, "deployment": deployment}
        spec = {"serverless": {"cloud": self.cloud, "region": self.region}}
        return {**shared, "dimension": self.dimension, "metric": self.metric, "vector_type": "dense", "spec": spec}


class PineconeEmulator:
    """One server. ``requests`` is what was asked of it; ``before`` runs before a request is done, outside every lock.

    ``lag`` says how late readers of all indexes are. ``headers`` are the names positions are answered under, of writes and of
    queries; ``None`` leaves them out. ``describes_until_ready``: how often a new index is described before it is ready.
    """

    def __init__(self, api_key: str = "pc-emulator-key") -> None:
        self.api_key = api_key
        self.lag = Lag()
        self.headers: tuple[str, str] | None = POSITION_HEADERS
        self.describes_until_ready = 0
        self.indexes: dict[str, Index] = {}
        self.requests: list[Request] = []
        self.before: Callable[[Request], None] | None = None
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(self) -> None:
        """As it was at first: no index, no fault, readers at once up to date."""
        self.lag = Lag()
        self.headers = POSITION_HEADERS
        self.describes_until_ready = 0
        self.before = None
        for kept in (self.indexes, self.requests, self._faults):
            kept.clear()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(
        self,
        operation: str,
        status: int,
        *,
        times: int = 1,
        retry_after: str | None = None,
        message: str = "injected",
        takes_effect: Literal["not", "half", "all"] = "not",
    ) -> None:
        """Answer the next requests of this operation with an error; an upsert can take effect in part nevertheless."""
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        self._faults.append(Fault(operation, times, status, takes_effect, headers, message))

    def lose_answer(self, operation: str, *, times: int = 1, stall_seconds: float = 0.0) -> None:
        """Do the next requests of this operation and close the connection instead of answering, perhaps after a while."""
        self._faults.append(Fault(operation, times, None, "all", stall_seconds=stall_seconds))

    def reset_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def count(self, operation: str) -> int:
        return sum(request.operation == operation for request in self.requests)

    def settle(self) -> None:
        """Let readers see everything that has been written."""
        for index in self.indexes.values():
            with index.engine.lock:
                for namespace in index.engine.namespaces.values():
                    namespace.settle()

    def fault(self, operation: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.operation == operation and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def done(self, request: Request, share: float = 1.0) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer to a request, and its headers."""
        if not request.index:
            with self._lock:
                return self._controlled(request), {}
        engine = self.indexes[request.index].engine
        with engine.lock:
            answer, position = self._asked(engine, request, share)
        if position is None or self.headers is None:
            return answer, {}
        return answer, {self.headers[0 if request.operation in WRITES else 1]: str(position)}

    def largest_answer(self, request: Request) -> float:
        return self.indexes[request.index].engine.max_result_bytes if request.operation in BOUNDED else math.inf

    def _asked(self, engine: Engine, request: Request, share: float) -> tuple[dict[str, Any], int | None]:
        body, parameters, name = request.body, request.parameters, request.namespace
        if request.operation == "upsert":
            return engine.upsert(name, body, share)
        if request.operation == "query":
            return engine.query(name, body)
        if request.operation == "update":
            return engine.update(name, body)
        if request.operation == "delete":
            return engine.delete(name, body)
        token = parameters.get("paginationToken", [""])[0]
        prefix = parameters.get("prefix", [""])[0]
        answers: dict[str, Callable[[], dict[str, Any]]] = {
            "fetch": lambda: engine.fetch(name, parameters.get("ids", [])),
            "fetch_by_metadata": lambda: engine.fetch_by_metadata(name, body),
            "list": lambda: engine.list_ids(name, prefix, int(parameters.get("limit", ["100"])[0]), token),
            "stats": engine.stats,
            "list_namespaces": lambda: engine.list_namespaces(prefix),
            "create_namespace": lambda: engine.create_namespace(body["name"]),
            "describe_namespace": lambda: engine.describe_namespace(request.target),
            "delete_namespace": lambda: engine.delete_namespace(request.target),
        }
        return answers[request.operation](), None

    def _controlled(self, request: Request) -> dict[str, Any]:
        if request.operation == "create_index":
            return self._created(request)
        if request.operation == "list_indexes":
            return {"indexes": [index.described(request.api_version) for index in self.indexes.values()]}
        if request.target not in self.indexes:
            raise ApiError(404, f"Resource {request.target} not found")
        index = self.indexes[request.target]
        if request.operation == "delete_index":
            if index.deletion_protection == "enabled":
                raise ApiError(403, "Deletion protection is enabled for this index")
            del self.indexes[request.target]
            return {}
        if request.operation == "configure_index":
            index.tags = {**(index.tags or {}), **request.body.get("tags", {})}
            index.deletion_protection = request.body.get("deletion_protection", index.deletion_protection)
        elif index.state == "Initializing":
            index.describes_until_ready -= 1
            index.state = "Ready" if index.describes_until_ready < 0 else "Initializing"
        return index.described(request.api_version)

    def _created(self, request: Request) -> dict[str, Any]:
        body = request.body
        name = body["name"]
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) or len(name) > MAX_INDEX_NAME:
            raise ApiError(400, f"Name must have 1 to {MAX_INDEX_NAME} lower case alphanumeric characters or '-'")
        if name in self.indexes:
            raise ApiError(409, "Resource already exists")
        vector, place = _new_shape(body) if request.api_version == NEW_API else _old_shape(body)
        self.indexes[name] = Index(
            name=name,
            host=f"{self.url}/at/{name}",
            dimension=vector["dimension"],
            metric=vector["metric"],
            cloud=place["cloud"],
            region=place["region"],
            deletion_protection=body.get("deletion_protection") or "disabled",
            tags=body.get("tags"),
            engine=Engine(vector["dimension"], self.lag),
            describes_until_ready=self.describes_until_ready,
        )
        return self.indexes[name].described(request.api_version)


def _new_shape(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = body["schema"]["fields"]
    if set(fields) != {"_values"}:
        raise ApiError(400, "this emulator has no document indexes")
    return fields["_values"], body["deployment"]


def _old_shape(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"dimension": body["dimension"], "metric": body["metric"]}, body["spec"]["serverless"]


def _handler(emulator: PineconeEmulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            """Requests are kept on the emulator instead."""

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            control = not self.path.startswith("/at/")
            try:
                request = self._request(raw)
                emulator.requests.append(request)
                if emulator.before is not None:
                    emulator.before(request)
                fault = emulator.fault(request.operation)
                self._answer(request, fault)
            except ApiError as error:
                self._send(error.status, _error_body(error, control), {})

        def _answer(self, request: Request, fault: Fault | None) -> None:
            if fault is None:
                answer, headers = emulator.done(request)
                self._send(200, answer, headers, emulator.largest_answer(request))
                return
            if fault.takes_effect != "not":
                emulator.done(request, 0.5 if fault.takes_effect == "half" else 1.0)
            if fault.status is None:
                time.sleep(fault.stall_seconds)
                self.close_connection = True
                return
            error = ApiError(fault.status, fault.message, 14)
            self._send(fault.status, _error_body(error, not request.index), fault.headers)

        def _request(self, raw: bytes) -> Request:
            if self.headers.get("Api-Key") != emulator.api_key:
                raise ApiError(401, "Invalid API Key", 16)
            version = self.headers.get("X-Pinecone-Api-Version", "")
            if version not in (OLD_API, NEW_API):
                raise ApiError(400, f"unknown API version {version!r}")
            parts = urlsplit(self.path)
            index, path = "", parts.path
            if found := re.fullmatch(r"/at/([^/]+)(/.*)", parts.path):
                index, path = found[1], found[2]
                if index not in emulator.indexes:
                    raise ApiError(404, "Index not found", 5)
            if index and len(raw) > MAX_REQUEST_BYTES:
                message = f"Error, message length too large: found {len(raw)} bytes, the limit is: {MAX_REQUEST_BYTES} bytes"
                raise ApiError(400, message, 11)
            for method, pattern, operation in _DATA_ROUTES if index else _CONTROL_ROUTES:
                found = re.fullmatch(pattern, path)
                if method == self.command and found:
                    target = unquote(found[1]) if found.groups() else ""
                    body = json.loads(raw) if raw else {}
                    return Request(operation, index, target, body, len(raw), parse_qs(parts.query), version)
            raise ApiError(404, f"no route {self.command} {path}", 5)

        def _send(self, status: int, answer: Any, headers: dict[str, str], largest: float = math.inf) -> None:
            content = json.dumps(answer).encode()
            if len(content) > largest:
                raise ApiError(400, f"Response size {len(content)} exceeds the limit of {largest} bytes")
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do_PATCH = _serve

    return Handler


def _error_body(error: ApiError, control: bool) -> dict[str, Any]:
    if not control:
        return {"code": error.code, "message": error.message, "details": []}
    codes = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
    return {"error": {"code": codes.get(error.status, "UNKNOWN"), "message": error.message}, "status": error.status}


@contextmanager
def pinecone_emulator() -> Iterator[PineconeEmulator]:
    """A running emulator, ended on the way out."""
    emulator = PineconeEmulator()
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()
