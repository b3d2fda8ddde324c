"""Running the application: in the foreground, or in a thread for tests and the demo."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from pipeline.errors import ConfigError
from pipeline.local_cloud.app import app_over
from pipeline.local_cloud.cloud import Cloud, open_cloud
from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.identity import Clock, utc_now
from pipeline.local_cloud.settings import LocalCloudSettings

_log = logging.getLogger(__name__)
_STOP_SECONDS = 5


def serve(settings: LocalCloudSettings, *, announce: Callable[[str], None]) -> None:
    """Serves until interrupted; ``announce`` is told the URL. Raises ``ConfigError`` if the address is taken or the settings
    cannot work."""
    with _listen(settings) as listener:
        cloud = open_cloud(settings)
        announce(_url(listener))
        _log.info("serving %s at %s", cloud.folder.shown, _url(listener))
        _Server(app_over(cloud, _address(listener))).run(sockets=[listener])


class RunningLocalCloud:
    """A server in a background thread, on a free port unless one is set, for as long as the ``with`` block lasts.

    Entering raises ``ConfigError`` if the address is taken or the settings cannot work, ``SourceUnavailable`` on a full disk and
    while another server uses its folder.
    """

    def __init__(self, settings: LocalCloudSettings, *, faults: Faults | None = None, clock: Clock = utc_now) -> None:
        self._settings = settings
        self._faults = faults
        self._clock = clock
        self._cloud: Cloud | None = None
        self._running: _Running | None = None

    @property
    def base_url(self) -> str:
        """What to give the SDK as ``base_url``."""
        if self._running is None:
            raise RuntimeError("the local server is not running; use it in a with block")
        return _url(self._running.listener)

    @property
    def api_key(self) -> str:
        return self._settings.api_key.get_secret_value()

    def skipped(self) -> dict[str, str]:
        """Why the last sync of an index made no payload of a document, by its name; the first thousand."""
        rows = self._cloud.state.query('SELECT metadata FROM "index"') if self._cloud else []
        failed = [problem for row in rows for problem in json.loads(row["metadata"]).get("failed_files", [])]
        return {problem["name"]: problem["reason"] for problem in failed}

    def __enter__(self) -> RunningLocalCloud:
        listener = _listen(self._settings)
        try:
            self._cloud = open_cloud(self._settings, self._clock, self._faults)
        except BaseException:
            listener.close()
            raise
        self._running = _Running(_Server(app_over(self._cloud, _address(listener))), listener)
        self._running.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None) -> None:
        if self._running is not None:
            self._running.stop()
            self._running = None


class _Server(uvicorn.Server):
    """Says when it is ready, and asks clients to go when it stops."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_STOP_SECONDS
        )
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class _Running:
    """The thread of a server and the socket it listens on."""

    def __init__(self, server: _Server, listener: socket.socket) -> None:
        self.listener = listener
        self._server = server
        self._thread = threading.Thread(target=self._run, name="local-cloud", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server.ready.wait()
        if not self._server.started:
            self.stop()
            raise RuntimeError("the local server did not start; its log says why")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self.listener.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self.listener])
        finally:
            self._server.ready.set()


def _listen(settings: LocalCloudSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another port") from error
    if not ip_address(_address(listener)).is_loopback:
        _log.warning("listening on %s: other machines can reach the documents with the API key", settings.host)
    return listener


def _address(listener: socket.socket) -> str:
    address: str = listener.getsockname()[0]
    return address


def _url(listener: socket.socket) -> str:
    """An address that a client on this machine can call."""
    host, port = listener.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
