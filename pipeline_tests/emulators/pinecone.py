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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline_tests.emulators.http import Answer, ApiError, Asked, HttpEmulator, Route
from pipeline_tests.emulators.pinecone_engine import MAX_REQUEST_BYTES, Engine, Lag

OLD_API, NEW_API = "2025-10", "2026-07"
MAX_INDEX_NAME = 45
POSITION_HEADERS = ("x-pinecone-request-lsn", "x-pinecone-max-indexed-lsn")
OTHER_POSITION_HEADERS = ("x-pinecone-lsn-committed", "x-pinecone-lsn-reconciled")

_DATA_ROUTES: tuple[Route, ...] = (
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
_CONTROL_ROUTES: tuple[Route, ...] = (
    ("GET", r"/indexes", "list_indexes"),
    ("POST", r"/indexes", "create_index"),
    ("GET", r"/indexes/([^/]+)", "describe_index"),
    ("DELETE", r"/indexes/([^/]+)", "delete_index"),
    ("PATCH", r"/indexes/([^/]+)", "configure_index"),
)
_INVALID_ARGUMENT, _UNAVAILABLE = 3, 14
_CONTROL_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "FORBIDDEN", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
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


class PineconeEmulator(HttpEmulator[Request]):
    """One server.

    ``lag`` says how late readers of all indexes are. ``headers`` are the names positions are answered under, of writes and of
    queries; ``None`` leaves them out. ``describes_until_ready``: how often a new index is described before it is ready.
    """

    fault_code = _UNAVAILABLE

    def __init__(self, api_key: str = "pc-emulator-key") -> None:
        super().__init__(api_key)
        self.indexes: dict[str, Index] = {}
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """As it was at first: no index, no fault, readers at once up to date."""
        self.lag = Lag()
        self.headers: tuple[str, str] | None = POSITION_HEADERS
        self.describes_until_ready = 0
        self.indexes.clear()
        self.forget()

    def settle(self) -> None:
        """Let readers see everything that has been written."""
        for index in self.indexes.values():
            with index.engine.lock:
                for namespace in index.engine.namespaces.values():
                    namespace.settle()

    def read(self, asked: Asked) -> Request:
        if asked.headers.get("api-key") != self.api_key:
            raise ApiError(401, "Invalid API Key", 16)
        version = asked.headers.get("x-pinecone-api-version", "")
        if version not in (OLD_API, NEW_API):
            raise ApiError(400, f"unknown API version {version!r}")
        index, path = "", asked.path
        if found := re.fullmatch(r"/at/([^/]+)(/.*)", path):
            index, path = found[1], found[2]
            if index not in self.indexes:
                raise ApiError(404, "Index not found", 5)
        size = len(asked.content)
        if index and size > MAX_REQUEST_BYTES:
            message = f"Error, message length too large: found {size} bytes, the limit is: {MAX_REQUEST_BYTES} bytes"
            raise ApiError(400, message, 11)
        route = asked.routed(_DATA_ROUTES if index else _CONTROL_ROUTES, path)
        if route is None:
            raise ApiError(404, f"no route {asked.method} {path}", 5)
        operation, found = route
        target = unquote(found[1]) if found.groups() else ""
        body = json.loads(asked.content) if asked.content else {}
        return Request(operation, index, target, body, size, asked.parameters, version)

    def done(self, request: Request, share: float = 1.0) -> Answer:
        """An upsert can be done in part."""
        answer, headers = self._done(request, share)
        content = json.dumps(answer)
        largest = self._largest_answer(request)
        if len(content) > largest:
            raise ApiError(400, f"Response size {len(content)} exceeds the limit of {largest} bytes")
        return Answer(200, content, headers)

    def worded(self, error: ApiError, asked: Asked) -> str:
        if asked.target.startswith("/at/"):
            return json.dumps({"code": error.code or _INVALID_ARGUMENT, "message": error.message, "details": []})
        code = _CONTROL_CODES.get(error.status, "UNKNOWN")
        return json.dumps({"error": {"code": code, "message": error.message}, "status": error.status})

    def _done(self, request: Request, share: float) -> tuple[dict[str, Any], dict[str, str]]:
        if not request.index:
            with self._lock:
                return self._controlled(request), {}
        engine = self.indexes[request.index].engine
        with engine.lock:
            answer, position = self._asked(engine, request, share)
        if position is None or self.headers is None:
            return answer, {}
        return answer, {self.headers[0 if request.operation in WRITES else 1]: str(position)}

    def _largest_answer(self, request: Request) -> float:
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
