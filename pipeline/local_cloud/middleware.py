"""Who may call, and which calls are answered with a fault. Plain ASGI: it stands in front of every request."""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.local_cloud.cloud import Cloud

_OPEN_PREFIX = "/_blob/"


class BearerAuth:
    """401 for every path but presigned URLs, unless the request carries the API key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OPEN_PREFIX) or self._allowed(scope):
            await self._app(scope, receive, send)
            return
        refusal = JSONResponse({"detail": "Invalid or missing API key"}, 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)


class RequestFaults:
    """429 and 5xx answers of the API while a test asks for them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = _fault(scope["app"].state.cloud) if scope["type"] == "http" and scope["path"].startswith("/api/") else None
        await (fault or self._app)(scope, receive, send)


def _fault(cloud: Cloud) -> JSONResponse | None:
    faults = cloud.faults.current
    if cloud.faults.take("rate_limited_requests"):
        return JSONResponse({"detail": "Too many requests"}, 429, {"Retry-After": f"{faults.retry_after_seconds:g}"})
    if cloud.faults.take("server_error_requests"):
        return JSONResponse({"detail": "The service is unavailable"}, faults.server_error_status)
    return None
