"""Planted secrets, failing sinks and failing downloads; then everything that was written is searched for the secrets."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline_tests.command_line import run
from pipeline_tests.embedding.openai_endpoint import Answer, Body, right
from pipeline_tests.embedding.openai_endpoint import serving as serving_embeddings
from pipeline_tests.security.echoes import refusing_mongodb, refusing_postgres, refusing_stores

SECRETS = {
    "LLAMA_CLOUD_API_KEY": "llx-canary01",
    "OPENAI_API_KEY": "sk-canary02",
    "QDRANT_API_KEY": "qdrant-canary03",
    "PINECONE_API_KEY": "pcsk_canary04",
    "TURBOPUFFER_API_KEY": "tpuf_canary05",
    "AZURE_SEARCH_API_KEY": "azure-canary06",
    "INDEXPORT_PG_DSN": "postgresql://writer:canary07@127.0.0.1:9/vectors",
    "INDEXPORT_MONGODB_URI": "mongodb://writer:canary08@127.0.0.1:9/?authSource=admin",
    "AWS_ACCESS_KEY_ID": "AKIAcanary09",
    "AWS_SECRET_ACCESS_KEY": "canary10",
    "AWS_SESSION_TOKEN": "canary13",
    "MONGODB_URI": "mongodb://writer:canary11@127.0.0.1:9/",
    "STORE_TOKEN": "canary12",
}
MARKS = (b"canary", b"_blob/")
"""Part of every planted secret, and the path of every presigned URL."""

NOWHERE = "http://127.0.0.1:9"
FAILING_SINKS: dict[str, dict[str, Any]] = {
    "qdrant": {"url": NOWHERE, "timeout_seconds": 1},
    "pinecone": {"controller_host": NOWHERE, "request_seconds": 1},
    "turbopuffer": {"base_url": NOWHERE},
    "azure_ai_search": {"endpoint": "https://127.0.0.1:9"},
    "pgvector": {"dsn_env": "INDEXPORT_PG_DSN"},
    "mongodb": {"uri_env": "INDEXPORT_MONGODB_URI", "timeout_seconds": 1},
    "llama_docstore": {"vector_sink": "lancedb"},
    "llama_index": {
        name: {"class": "builtins:dict", "args": {"token": "${STORE_TOKEN}"}} for name in ("vector_store", "docstore")
    },
}

SHOW_WHAT_THEY_SEND = ("botocore", "pymongo")
"""Loggers that at DEBUG show the requests they sign, and what a server answers."""


@dataclass
class Installation:
    """A folder behind a local cloud, and a home of its own."""

    root: Path
    cloud: RunningLocalCloud
    servers: dict[str, str] = field(default_factory=dict)
    """Variables that lead to servers of the test's."""

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_CLOUD", "DAGSTER", "INDEXPORT"))}
        addresses = {"INDEXPORT_HOME": str(self.home), "LLAMA_CLOUD_BASE_URL": self.cloud.base_url}
        return {**inherited, **SECRETS, **addresses, **self.servers}

    def faults(self, **faults: Any) -> None:
        answer = httpx.put(
            f"{self.cloud.base_url}/_admin/faults",
            json=Faults(**faults).model_dump(mode="json"),
            headers={"Authorization": f"Bearer {self.cloud.api_key}"},
        )
        answer.raise_for_status()

    def run(self, *command: str) -> bytes:
        """Everything a command prints; it need not succeed."""
        outcome = subprocess.run(
            [sys.executable, "-m", *command], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240
        )
        return outcome.stdout


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    documents = tmp_path / "documents"
    documents.mkdir()
    for n in range(6):
        (documents / f"doc-{n}.md").write_text(f"# Document {n}\n\nThe gauge of station {n} reads {n} metres.\n")
    settings = LocalCloudSettings(
        documents=str(documents),
        state_dir=tmp_path / "cloud",
        api_key=SecretStr(SECRETS["LLAMA_CLOUD_API_KEY"]),
        allow_fault_injection=True,
    )
    with RunningLocalCloud(settings) as cloud:
        yield Installation(tmp_path, cloud)


def _written(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every file as it lies there, and what compression hides."""
    for path in sorted(home.rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"{path} (rows)", repr((table.to_pylist(), table.schema.metadata)).encode()


def _leaks(pieces: Iterator[tuple[str, bytes]]) -> dict[str, bytes]:
    found = {}
    for where, data in pieces:
        for mark in MARKS:
            position = data.find(mark)
            if position >= 0:
                found[where] = data[max(0, position - 120) : position + 60]
    return found


@pytest.mark.takes_long
def test_no_secret_and_no_presigned_url_is_written_or_printed(installation: Installation) -> None:
    installation.faults(
        payloads={"doc-0.md": "truncated", "doc-1.md": "missing", "doc-2.md": "not_json"},
        expired_blob_requests=3,
        page_size_cap=2,
    )
    export = {
        "name": "default",
        "embedding": {"provider": "constant"},
        "sinks": {"lancedb": {}, **FAILING_SINKS},
        "removal": {"grace_period_seconds": 0},
    }
    commands = (["plan"], ["status", "--json"], ["history", "doc-1.md"])
    said = installation.run("pipeline_tests.security.worker", json.dumps(export), json.dumps(commands))
    assert said.count(b"cursor: ") == 1, said[-3000:].decode(errors="replace")
    assert all(f"ended: {' '.join(command)}\n".encode() in said for command in commands), said[-3000:].decode(errors="replace")
    assert b"held: ChunkRecord" in said, "the sync has done its work"
    written = list(_written(installation.home))
    assert {"ledger.sqlite", "runs.db"} <= {Path(where).name for where, _ in written}
    assert any(b"qdrant" in data for where, data in written if where.endswith("ledger.sqlite")), "the sinks have failed"
    assert _leaks(iter([*written, ("worker", said)])) == {}


def _told(secret: str) -> str:
    return f"no access for {secret} today"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield Bucket(f"http://{host}:{port}")
    server.stop()


class Bucket:
    """``s3://records``."""

    def __init__(self, endpoint: str) -> None:
        self.variables = {
            "AWS_ENDPOINT": endpoint,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self._s3 = boto3.client("s3", endpoint_url=endpoint, **credentials)
        self._s3.create_bucket(Bucket="records")

    def copy(self, folder: Path) -> None:
        for held in self._s3.list_objects_v2(Bucket="records")["Contents"]:
            copied = folder / held["Key"]
            copied.parent.mkdir(parents=True, exist_ok=True)
            self._s3.download_file("records", held["Key"], str(copied))


def _refuse_one(asked: Body) -> Answer:
    if any("station 5" in text for text in asked["input"]):
        return 400, {"error": {"message": _told(SECRETS["OPENAI_API_KEY"])}}
    return right(asked)


@pytest.fixture
def refusing(installation: Installation) -> Iterator[dict[str, dict[str, Any]]]:
    """Settings of sinks whose stores refuse whoever comes, and repeat the secret they were shown."""
    with ExitStack() as stack:
        sinks = stack.enter_context(refusing_stores(SECRETS, _told))
        postgres = stack.enter_context(refusing_postgres(_told("canary07")))
        installation.servers["INDEXPORT_PG_DSN"] = f"postgresql://writer:canary07@{postgres}/vectors"
        sinks["pgvector"] = FAILING_SINKS["pgvector"]
        if find_spec("secantus"):
            mongodb = stack.enter_context(refusing_mongodb(_told("canary08")))
            installation.servers["INDEXPORT_MONGODB_URI"] = f"mongodb://writer:canary08@{mongodb}/?authSource=admin"
            sinks["mongodb"] = FAILING_SINKS["mongodb"]
        yield sinks


@pytest.mark.takes_long
def test_no_secret_that_a_server_repeats_is_written_or_printed(
    installation: Installation, bucket: Bucket, refusing: dict[str, dict[str, Any]]
) -> None:
    """The lake and one sink are on S3; an embedding endpoint refuses one file."""
    installation.servers.update(bucket.variables, INDEXPORT_LAKE_URI="s3://records/lake")
    with serving_embeddings() as endpoint:
        endpoint.script = [_refuse_one] * 100
        export = {
            "name": "default",
            "embedding": {"provider": "openai", "model": "any", "openai": {"base_url": endpoint.url, "native_dimension": 3}},
            "sinks": {"lancedb": {"uri": "s3://records/lance"}, **refusing},
        }
        commands = (["status", "--json"],)
        said = installation.run("pipeline_tests.security.worker", json.dumps(export), json.dumps(commands), *SHOW_WHAT_THEY_SEND)
    assert b"ended: status --json\n" in said, said[-3000:].decode(errors="replace")
    assert b"held: ChunkRecord" in said, "the sync has done its work"
    assert set(endpoint.keys) == {f"Bearer {SECRETS['OPENAI_API_KEY']}"}
    with closing(sqlite3.connect(installation.home / "ledger.sqlite")) as ledger:
        told = dict(ledger.execute("SELECT sink, last_error FROM indexport_sinks"))
    assert {sink for sink, reason in told.items() if _told("***") in (reason or "")} == set(refusing)
    bucket.copy(installation.root / "bucket")
    written = [*_written(installation.home), *_written(installation.root / "bucket")]
    assert _leaks(iter([*written, ("worker", said)])) == {}


@pytest.mark.usefixtures("impatient_sdk")
def test_an_error_that_stops_the_sync_shows_no_secret(
    installation: Installation,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    caplog.set_level(logging.DEBUG)
    installation.faults(server_error_requests=1000, server_error_status=500)
    outcomes = [run(command, **installation.environment) for command in ("sync", "plan")]
    assert all("LlamaCloud" in outcome.stderr for outcome in outcomes)
    assert "500" in caplog.text
    printed = [*(text for outcome in outcomes for text in (outcome.stdout, outcome.stderr)), caplog.text, *capfd.readouterr()]
    assert _leaks(iter([*_written(installation.home), *((text, text.encode()) for text in printed)])) == {}


def test_the_local_cloud_listens_on_this_machine_alone_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    settings = LocalCloudSettings(documents=str(tmp_path / "documents"), state_dir=tmp_path / "cloud")
    with RunningLocalCloud(settings) as cloud:
        port = httpx.URL(cloud.base_url).port
        connections = psutil.Process().net_connections("tcp")
        listening = [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port]
        assert listening == ["127.0.0.1"]
