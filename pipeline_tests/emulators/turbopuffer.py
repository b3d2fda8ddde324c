"""Turbopuffer over HTTP on a free port of this machine, to be driven by the vendor's own SDK.

What belongs here: the wire (paths, authorisation, errors) and the faults a test can ask for. What a namespace does is
``turbopuffer_engine``'s.
"""

from __future__ import annotations

import gzip
import json
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline_tests.emulators.http import Answer, ApiError, Asked, HttpEmulator, Route
from pipeline_tests.emulators.turbopuffer_engine import Engine

MAX_REQUEST_BYTES = 512_000_000

_ROUTES: tuple[Route, ...] = (
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


class TurbopufferEmulator(HttpEmulator[Request]):
    """One server."""

    def __init__(self, api_key: str = "tpuf-emulator-key") -> None:
        super().__init__(api_key)
        self.engine = Engine()
        self.max_request_bytes = MAX_REQUEST_BYTES

    def reset(self) -> None:
        """As it was when started: no namespaces, no faults, nothing asked."""
        self.engine = Engine()
        self.forget()

    def hold(self, operation: str) -> threading.Event:
        """Keep every request of this operation waiting until the event is set."""
        released = threading.Event()

        def wait(request: Request) -> None:
            if request.operation == operation:
                released.wait(30)

        self.before = wait
        return released

    def read(self, asked: Asked) -> Request:
        if asked.headers.get("authorization") != f"Bearer {self.api_key}":
            raise ApiError(401, "invalid API key")
        if len(asked.content) > self.max_request_bytes:
            raise ApiError(413, f"request is larger than {self.max_request_bytes} bytes")
        route = asked.routed(_ROUTES)
        if route is None:
            raise ApiError(404, f"no route {asked.method} {asked.path}")
        operation, found = route
        return Request(operation, unquote(found[1]), _json(asked), len(asked.content), asked.parameters)

    def done(self, request: Request, share: float = 1.0) -> Answer:
        """No request is done in part."""
        return Answer(200, json.dumps(self._done(request)))

    def worded(self, error: ApiError, asked: Asked) -> str:
        return json.dumps({"status": "error", "error": error.message})

    def _done(self, request: Request) -> Any:
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


def _json(asked: Asked) -> dict[str, Any]:
    raw = gzip.decompress(asked.content) if asked.headers.get("content-encoding") == "gzip" else asked.content
    try:
        body: dict[str, Any] = json.loads(raw) if raw else {}
    except ValueError as error:
        raise ApiError(400, f"invalid JSON: {error}") from None
    return body


def _answered(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        **answer,
        "billing": {"billable_logical_bytes_queried": 0, "billable_logical_bytes_returned": 0},
        "performance": {"cache_temperature": "hot", "server_total_ms": 0},
    }
