"""Azure AI Search over HTTP on a free port of this machine, to be driven by the vendor's own SDK.

What belongs here: the wire (addresses, keys, errors, TLS) and the faults a test can ask for. What an index does is
``azure_ai_search_engine``'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pipeline_tests.emulators.azure_ai_search_engine import Engine
from pipeline_tests.emulators.azure_ai_search_schema import bad
from pipeline_tests.emulators.http import Answer, ApiError, Asked, Certificate, HttpEmulator, Route

MAX_REQUEST_BYTES = 16 * 2**20
_VERSIONS = ("2024-07-01", "2025-09-01", "2026-04-01")

_INDEX = r"/indexes\('([^']*)'\)"
_ROUTES: tuple[Route, ...] = (
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
class Request:
    """One request as it arrived."""

    operation: str
    index: str
    key: str
    body: dict[str, Any]
    size: int
    headers: Mapping[str, str]


class AzureAISearchEmulator(HttpEmulator[Request]):
    """One service."""

    content_type = "application/json; odata.metadata=minimal"

    def __init__(self, api_key: str = "azure-emulator-admin-key", certificate: Certificate | None = None) -> None:
        super().__init__(api_key, certificate)
        self.reset()

    def reset(self) -> None:
        """Empty, and without faults."""
        self.engine = Engine()
        self.max_request_bytes = MAX_REQUEST_BYTES
        self.forget()

    def read(self, asked: Asked) -> Request:
        if asked.headers.get("api-key") != self.api_key:
            raise ApiError(403, "")
        if asked.parameters.get("api-version", [""])[0] not in _VERSIONS:
            raise bad("The api-version query parameter is missing or not supported.")
        if len(asked.content) > self.max_request_bytes:
            raise ApiError(413, "The request body is too large and exceeds the maximum permissible limit.")
        path = unquote(asked.path)
        route = asked.routed(_ROUTES, path)
        if route is None:
            raise ApiError(404, f"no resource {asked.method} {path}")
        operation, found = route
        key = found[2] if operation == "lookup" else ""
        return Request(operation, found[1], key, _json(asked.content), len(asked.content), asked.headers)

    def done(self, request: Request, share: float = 1.0) -> Answer:
        """No request is done in part."""
        status, answer = self._done(request)
        return Answer(status, "" if answer is None else json.dumps(answer))

    def worded(self, error: ApiError, asked: Asked) -> str:
        return json.dumps({"error": {"code": error.code, "message": error.message}})

    def _done(self, request: Request) -> tuple[int, Any]:
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


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(raw) if raw else {}
    except ValueError as error:
        raise bad(f"The request is invalid. Details: {error}") from None
    return body
