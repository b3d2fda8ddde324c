"""The application: its parts and settings in, FastAPI out."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.errors import DAMAGE, sqlite_says
from pipeline.local_cloud import (
    routes_admin,
    routes_directories,
    routes_directory_files,
    routes_downloads,
    routes_files,
    routes_indexes,
)
from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.indexes import ensure_first_index
from pipeline.local_cloud.middleware import BearerAuth, RequestFaults
from pipeline.local_cloud.state import unusable
from pipeline.local_cloud.sync_runner import SyncRunner

_log = logging.getLogger(__name__)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def app_over(cloud: Cloud, address: str) -> FastAPI:
    """A LlamaCloud-compatible application over these parts, which it closes when it stops; it is reached at this IP address."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        syncs = SyncRunner(cloud)
        app.state.cloud, app.state.syncs = cloud, syncs
        try:
            await asyncio.to_thread(_start, cloud, syncs)
            yield
        finally:
            await asyncio.to_thread(syncs.close)
            cloud.state.close()

    settings = cloud.settings
    app = FastAPI(title="Indexport local cloud", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(sqlite3.DatabaseError, _of_the_database)
    app.add_middleware(RequestFaults)
    app.add_middleware(BearerAuth, api_key=settings.api_key.get_secret_value())
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_names(settings.host, address), www_redirect=False)
    # Downloads first: their paths are more specific than those of files.
    for module in (routes_downloads, routes_directories, routes_directory_files, routes_files, routes_indexes):
        app.include_router(module.router)
    if settings.allow_fault_injection:
        app.include_router(routes_admin.router)
    return app


def _names(host: str, address: str) -> list[str]:
    """What a server may be called that was told to listen on ``host``, which is ``address``. On this machine alone the key is no
    secret (``local``), so that a web page must not become its equal by giving 127.0.0.1 a name of its own; what others reach,
    they know by any name."""
    if not ip_address(address).is_loopback:
        return ["*"]
    return [*_LOOPBACK_NAMES, *(f"[{name}]" if ":" in name else name for name in (host.lower(), address))]


async def _of_the_database(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, sqlite3.OperationalError) and not sqlite_says(error, *DAMAGE):
        raise error
    told = str(unusable(request.app.state.cloud.state.folder, error))
    _log.error(told)
    return JSONResponse({"detail": told}, 500)


def _start(cloud: Cloud, syncs: SyncRunner) -> None:
    syncs.recover()
    first = ensure_first_index(cloud)
    if first is not None and cloud.settings.auto_sync_on_start:
        syncs.start(first)
