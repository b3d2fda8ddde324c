"""Stores that refuse a key and repeat it, as a gateway before one may, and exporters' settings that lead to them."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator
from pipeline_tests.emulators.http import ApiError, HttpEmulator
from pipeline_tests.emulators.pinecone import PineconeEmulator
from pipeline_tests.emulators.qdrant import QdrantEmulator
from pipeline_tests.emulators.turbopuffer import TurbopufferEmulator

Told = Callable[[str], str]
"""What a server says of a secret."""

API_KEYS: dict[str, tuple[type[HttpEmulator[Any]], str, str]] = {
    "azure_ai_search": (AzureAISearchEmulator, "AZURE_SEARCH_API_KEY", "endpoint"),
    "pinecone": (PineconeEmulator, "PINECONE_API_KEY", "controller_host"),
    "qdrant": (QdrantEmulator, "QDRANT_API_KEY", "url"),
    "turbopuffer": (TurbopufferEmulator, "TURBOPUFFER_API_KEY", "base_url"),
}
"""Of a sink: what stands in for its store, the variable of its key and the setting of its address."""


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[None]:
    """It answers in a thread of its own, until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def refusing(sink: str, key: str, status: int, told: Told) -> Iterator[dict[str, Any]]:
    """The settings of a sink whose store answers every request with ``status``."""
    emulator_class, _, address = API_KEYS[sink]

    def refuse(_request: Any) -> None:
        raise ApiError(status, told(key), emulator_class.fault_code)

    with emulator_class(key) as emulator:
        emulator.before = refuse
        yield {address: emulator.url}


class _RefusesLogins(socketserver.StreamRequestHandler):
    """PostgreSQL's protocol as far as the answer to the first message: no encryption, and no entrance."""

    told: bytes

    def handle(self) -> None:
        while (length := int.from_bytes(self.rfile.read(4))) == 8:  # asks for encryption
            self.rfile.read(4)
            self.wfile.write(b"N")
        self.rfile.read(length - 4)
        fields = b"".join(field + b"\0" for field in (b"SFATAL", b"VFATAL", b"C28P01", b"M" + self.told, b""))
        self.wfile.write(b"E" + (len(fields) + 4).to_bytes(4) + fields)


@contextmanager
def refusing_postgres(told: str) -> Iterator[str]:
    """The address (host:port) of a server that says this to everybody who logs in."""
    handler = type("Handler", (_RefusesLogins,), {"told": told.encode()})
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    with serving(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@contextmanager
def refusing_mongodb(told: str) -> Iterator[str]:
    """As ``refusing_postgres``. Raises ModuleNotFoundError without SecantusDB."""
    from pipeline_tests.emulators.mongodb import mongo_server

    with mongo_server(search=None) as server:
        server.refusal = told
        yield server.uri.partition("://")[2].partition("/")[0]


@contextmanager
def refusing_stores(secrets: dict[str, str], told: Told) -> Iterator[dict[str, dict[str, Any]]]:
    """The settings of the sinks that keep their keys in variables of a fixed name, by the sink's name."""
    with ExitStack() as stack:
        yield {
            sink: stack.enter_context(refusing(sink, secrets[variable], 403, told)) for sink, (_, variable, _) in API_KEYS.items()
        }
