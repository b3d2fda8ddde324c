"""The application: settings in, FastAPI out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.local_cloud import (
    routes_admin,
    routes_directories,
    routes_directory_files,
    routes_downloads,
    routes_files,
    routes_indexes,
)
from pipeline.local_cloud.cloud import Cloud, open_cloud
from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.identity import Clock, utc_now
from pipeline.local_cloud.indexes import ensure_first_index
from pipeline.local_cloud.middleware import BearerAuth, RequestFaults
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.local_cloud.sync_runner import SyncRunner

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def create_app(settings: LocalCloudSettings, *, faults: Faults | None = None, clock: Clock = utc_now) -> FastAPI:
    """A LlamaCloud-compatible application. Its state is opened when it starts and closed when it stops.

    Start-up raises ``ConfigError`` for a folder that cannot be opened or a state directory in use.
    """
    return app_over(lambda: open_cloud(settings, clock, faults), settings)


def app_over(open_parts: Callable[[], Cloud], settings: LocalCloudSettings) -> FastAPI:
    """The application over parts that ``open_parts`` gives at start-up; it closes them when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        cloud = await asyncio.to_thread(open_parts)
        syncs = SyncRunner(cloud)
        app.state.cloud, app.state.syncs = cloud, syncs
        try:
            await asyncio.to_thread(_start, cloud, syncs)
            yield
        finally:
            await asyncio.to_thread(syncs.close)
            cloud.state.close()

    app = FastAPI(title="Indexport local cloud", lifespan=lifespan, openapi_url=None)
    app.add_middleware(RequestFaults)
    app.add_middleware(BearerAuth, api_key=settings.api_key.get_secret_value())
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_names(settings.host), www_redirect=False)
    # Downloads first: their paths are more specific than those of files.
    for module in (routes_downloads, routes_directories, routes_directory_files, routes_files, routes_indexes):
        app.include_router(module.router)
    if settings.allow_fault_injection:
        app.include_router(routes_admin.router)
    return app


def _names(host: str) -> list[str]:
    """What a server that listens on ``host`` may be called. On this machine alone the key is no secret (``local``), so that a web
    page must not become its equal by giving 127.0.0.1 a name of its own; what others reach, they know by any name."""
    try:
        address = ip_address(host)
    except ValueError:
        return [*_LOOPBACK_NAMES, host]
    shown = f"[{host}]" if address.version == 6 else host
    return [*_LOOPBACK_NAMES, shown] if address.is_loopback else ["*"]


def _start(cloud: Cloud, syncs: SyncRunner) -> None:
    syncs.recover()
    first = ensure_first_index(cloud)
    if first is not None and cloud.settings.auto_sync_on_start:
        syncs.start(first)
