"""Qdrant over HTTP on a free port of this machine, to be driven by the vendor's own SDK.

What belongs here: the wire (paths, authorisation, errors) and the faults a test can ask for. What a collection does is
``qdrant_engine``'s.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline_tests.emulators.http import Answer, ApiError, Asked, HttpEmulator, Route
from pipeline_tests.emulators.qdrant_engine import Engine

MAX_REQUEST_BYTES = 32 * 2**20

_ROUTES: tuple[Route, ...] = (
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


class QdrantEmulator(HttpEmulator[Request]):
    """One server."""

    def __init__(self, api_key: str = "qdrant-emulator-key") -> None:
        super().__init__(api_key)
        self.engine = Engine()
        self.max_request_bytes = MAX_REQUEST_BYTES

    def reset(self) -> None:
        """As it was when started."""
        self.engine = Engine()
        self.max_request_bytes = MAX_REQUEST_BYTES
        self.forget()

    def read(self, asked: Asked) -> Request:
        if asked.headers.get("api-key") != self.api_key:
            raise ApiError(403, "Forbidden: Invalid API key or JWT")
        size = len(asked.content)
        if size > self.max_request_bytes:
            raise ApiError(413, f"Payload error: JSON payload ({size} bytes) is larger than allowed")
        route = asked.routed(_ROUTES)
        if route is None:
            raise ApiError(404, "")
        operation, found = route
        body = json.loads(asked.content) if asked.content else {}
        return Request(operation, unquote(found[1]), body, size, asked.parameters)

    def done(self, request: Request, share: float = 1.0) -> Answer:
        """No request is done in part."""
        result = self.engine.call(request.operation, request.collection, request.body)
        return Answer(200, json.dumps({"result": result, "status": "ok", "time": 0.001}))

    def worded(self, error: ApiError, asked: Asked) -> str:
        return json.dumps({"status": {"error": error.message}, "time": 0.001})
