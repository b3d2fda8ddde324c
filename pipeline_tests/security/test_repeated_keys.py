"""A server that refuses a key may repeat it; what we say of the refusal never does, nor half of it."""

from __future__ import annotations

import http.server
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import SINK_ERRORS
from pipeline.local_cloud.documents import DocumentFolder, DocumentsUnavailable
from pipeline.sinks.base import SinkContext
from pipeline.sinks.registry import exporter_class
from pipeline.sinks.storage_context_files import FolderStore
from pipeline_tests.conformance.mongodb_harness import NO_ENGINE
from pipeline_tests.security.echoes import API_KEYS, Told, refusing, refusing_mongodb, refusing_postgres, serving

KEY = "zq-canary-123"
REPETITIONS: dict[str, Told] = {"whole": lambda key: f"no access for {key} today", "at the cut": lambda key: "x" * 297 + key}
CONTEXT = SinkContext("prj-1", ModelIdentity("model", "model@1", 16))


async def _refusal(sink: str, settings: dict[str, Any]) -> str:
    """All that is told of a sink that cannot be provisioned."""
    found = exporter_class(sink)
    exporter = found(found.settings_type(**settings), CONTEXT)
    with pytest.raises(SINK_ERRORS) as caught:
        await exporter.provision()
    await exporter.close()
    return "".join(traceback.format_exception(caught.value))


@pytest.fixture(params=REPETITIONS)
def told(request: pytest.FixtureRequest) -> Told:
    return REPETITIONS[request.param]


def _assert_masked(message: str) -> None:
    assert "no access for *** today" in message or "xxx" in message, "the server's words are quoted"
    assert "zq" not in message


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("sink", API_KEYS)
async def test_an_api_key_that_a_store_repeats(sink: str, status: int, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEYS[sink][1], KEY)
    with refusing(sink, KEY, status, told) as settings:
        _assert_masked(await _refusal(sink, settings))


@pytest.mark.parametrize(
    "dsn", ["postgresql://bob:{}@{}/db?sslmode=disable", "user=bob password='{}' host={} port={}", "PGPASSWORD"]
)
async def test_a_password_that_postgresql_repeats(dsn: str, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_postgres(told(KEY)) as address:
        if dsn == "PGPASSWORD":
            monkeypatch.setenv("PGPASSWORD", KEY)
            dsn = f"postgresql://bob@{address}/db"
        elif "://" in dsn:
            dsn = dsn.format(KEY, address)
        else:
            dsn = dsn.format(KEY, *address.split(":"))
        monkeypatch.setenv("SOME_DSN", dsn)
        _assert_masked(await _refusal("pgvector", {"dsn_env": "SOME_DSN"}))


async def test_a_password_that_mongodb_repeats(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("secantus", reason=NO_ENGINE)
    with refusing_mongodb(told(KEY)) as address:
        monkeypatch.setenv("SOME_URI", f"mongodb://bob:{KEY}@{address}/?authSource=admin")
        _assert_masked(await _refusal("mongodb", {"uri_env": "SOME_URI"}))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It answers to a wrong secret as S3 does, with the id of the key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            told = f"<Error><Code>SignatureDoesNotMatch</Code><Message>no access for {KEY} today</Message></Error>"
            self.send_response(403)
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told.encode())

        do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    for name, value in {**environment, "AWS_ENDPOINT": address, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    with serving(server):
        yield


@pytest.mark.usefixtures("s3")
async def test_a_key_that_s3_repeats() -> None:
    _assert_masked(await _refusal("lancedb", {"uri": "s3://bucket/prefix"}))
    with pytest.raises(SINK_ERRORS) as caught:
        FolderStore("s3://bucket/prefix").put("a", b"")
    _assert_masked(str(caught.value))
    with pytest.raises(DocumentsUnavailable) as unlisted:
        DocumentFolder("s3://bucket/prefix", {}).scan()
    _assert_masked(str(unlisted.value))
