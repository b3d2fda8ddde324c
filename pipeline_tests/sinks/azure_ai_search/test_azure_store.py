"""Azure AI Search's throttling, lost answers, keys, addresses and TLS; the emulator beside the vendor's client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.search.documents import SearchClient
from azure.search.documents.models import VectorizedQuery

from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.sinks import azure_store as store
from pipeline.sinks import backoff
from pipeline.sinks.azure_ai_search import AzureAISearchExporter, AzureAISearchSettings
from pipeline.sinks.base import SinkContext
from pipeline.sinks.registry import _EXTRAS, SINKS, exporter_class
from pipeline_tests.conformance.azure_ai_search_harness import (
    INDEX,
    AzureAISearchUnderTest,
)
from pipeline_tests.conformance.harness import MODEL, Bench, matrix
from pipeline_tests.emulators.azure_ai_search import AzureAISearchEmulator, Request
from pipeline_tests.emulators.certificate import write_certificate
from pipeline_tests.emulators.http import Answer, Certificate


@pytest.mark.parametrize("status", [409, 422, 503])
async def test_a_busy_service_is_asked_again(bench: Bench, emulator: AzureAISearchEmulator, status: int) -> None:
    emulator.fail("search", status, times=2, retry_after="0.001")
    emulator.fail("change", status, times=2, retry_after="0.001")
    await bench.replace(bench.file("dfl-1"))
    await bench.assert_holds(bench.file("dfl-1"))


async def test_the_wait_a_service_asks_for_is_kept(bench: Bench, emulator: AzureAISearchEmulator) -> None:
    emulator.fail("search", 503, retry_after="0.3")
    started = time.monotonic()
    await bench.snapshots()
    assert time.monotonic() - started >= 0.3


async def test_a_service_that_never_answers_is_unavailable(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    emulator.lose_answer("change", times=100)
    with pytest.raises(SinkUnavailable, match="cannot be reached to write records"):
        await bench.replace(bench.file("dfl-1"))
    assert emulator.count("change") == 3


@pytest.mark.parametrize("status", [402, 405])
async def test_a_status_that_says_nothing_of_the_documents_refuses_no_file(
    bench: Bench, emulator: AzureAISearchEmulator, status: int
) -> None:
    emulator.fail("change", status, times=30)
    with pytest.raises(SinkUnavailable, match=str(status)):
        await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    assert emulator.count("change") == 1


async def test_a_slow_answer_is_waited_for_only_so_long(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_READ_SECONDS", 0.1)
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    released = threading.Event()

    def stall(_: Request) -> None:
        released.wait(30)

    emulator.before = stall
    with pytest.raises(SinkUnavailable, match="did not answer in time to list snapshots"):
        await bench.snapshots(bench.open())
    released.set()


async def test_what_is_not_the_service_is_told_so(emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "done", lambda _: Answer(200, ""))
    exporter = AzureAISearchExporter(AzureAISearchSettings(endpoint=emulator.url), SinkContext("prj", MODEL))
    with pytest.raises(SinkUnavailable, match="is not Azure AI Search; check the address"):
        await exporter.provision()
    await exporter.close()


async def test_an_index_that_is_not_there_is_empty_and_names_what_to_do(emulator: AzureAISearchEmulator) -> None:
    bench = Bench(AzureAISearchUnderTest(AzureAISearchSettings(endpoint=emulator.url), ()))
    exporter = bench.open()
    assert await bench.snapshots() == {}
    await bench.delete("dfl-1")
    await exporter.drop_collection()
    assert await exporter.list_scopes() == frozenset()
    with pytest.raises(SinkUnavailable, match="provision the sink first"):
        await bench.replace(bench.file("dfl-1"))
    await exporter.close()


async def test_a_refused_key_is_named_by_its_variable_and_never_shown(
    bench: Bench, emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_SEARCH_API_KEY", "wrong-azure-key")
    with pytest.raises(SinkUnavailable, match="403; check the key in AZURE_SEARCH_API_KEY") as caught:
        await bench.open().provision()
    assert "wrong-azure-key" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("endpoint", "environment", "told"),
    [
        (None, {"AZURE_SEARCH_API_KEY": "k-secret"}, "set AZURE_SEARCH_ENDPOINT"),
        ("https://[::1", {"AZURE_SEARCH_API_KEY": "k-secret"}, "set AZURE_SEARCH_ENDPOINT"),
        ("search.windows.net", {"AZURE_SEARCH_API_KEY": "k-secret"}, "https://host"),
        ("http://example.org", {"AZURE_SEARCH_API_KEY": "k-secret"}, "unencrypted; use https"),
        ("https://k-secret@example.org", {}, "set AZURE_SEARCH_API_KEY to an admin key of https://example.org"),
    ],
)
async def test_a_missing_or_unfit_setting_is_named(
    endpoint: str | None, environment: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_SEARCH_API_KEY", "AZURE_SEARCH_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exporter = AzureAISearchExporter(AzureAISearchSettings(endpoint=endpoint), SinkContext("prj", MODEL))
    with pytest.raises(ConfigError, match=told) as caught:
        await exporter.provision()
    assert "k-secret" not in str(caught.value)


async def test_the_endpoint_may_come_from_the_environment(
    emulator: AzureAISearchEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_SEARCH_ENDPOINT", f"{emulator.url}/")
    exporter = AzureAISearchExporter(AzureAISearchSettings(), SinkContext("prj", MODEL))
    await exporter.provision()
    await exporter.close()
    assert INDEX in emulator.engine.indexes


async def test_no_request_and_no_log_holds_the_key_outside_its_header(
    bench: Bench, emulator: AzureAISearchEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        await bench.replace(bench.file("dfl-1"))
        await bench.open().provision()
    assert emulator.api_key not in caplog.text
    assert all(emulator.api_key not in str(request.body) for request in emulator.requests)


def test_a_missing_package_is_named_with_the_right_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _EXTRAS.keys() <= SINKS.keys()
    monkeypatch.setitem(sys.modules, "pipeline.sinks.azure_ai_search", None)
    with pytest.raises(ConfigError, match=r"indexport\[azure\]"):
        exporter_class("azure_ai_search")


_OVER_TLS = """
import asyncio, sys
from pipeline.sinks.azure_ai_search import AzureAISearchExporter, AzureAISearchSettings
from pipeline.sinks.base import SinkContext
from pipeline_tests.conformance.harness import FIELDS, MODEL

async def main():
    exporter = AzureAISearchExporter(AzureAISearchSettings(endpoint=sys.argv[1]), SinkContext("prj", MODEL, FIELDS))
    await exporter.provision()
    print(await exporter.list_snapshots(export_config_id="cfg"))
    await exporter.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_is_spoken_and_a_certificate_must_be_trusted(tmp_path: Path, trusted: bool) -> None:
    write_certificate(tmp_path)
    certificate = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with AzureAISearchEmulator(certificate=certificate) as emulator:
        environment = {**os.environ, "AZURE_SEARCH_API_KEY": emulator.api_key, "PYTHONPATH": str(Path.cwd())}
        environment.pop("SSL_CERT_FILE", None)
        if trusted:
            environment["SSL_CERT_FILE"] = str(certificate.chain)
        done = subprocess.run(
            [sys.executable, "-c", _OVER_TLS, emulator.url],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    if trusted:
        assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
    else:
        assert "cannot be reached" in done.stderr
        assert emulator.requests == []


async def test_the_emulator_serves_the_vendors_client(bench: Bench, emulator: AzureAISearchEmulator) -> None:
    files = [bench.file(f"dfl-{n}", 600, metadata={"year": 2020 + n}) for n in range(2)]
    await bench.replace(*files)
    await asyncio.to_thread(_drive, emulator, matrix(files[1].table)[7].tolist(), files[1].table["content"][7].as_py())


def _drive(emulator: AzureAISearchEmulator, vector: list[float], content: str) -> None:
    with SearchClient(emulator.url, INDEX, AzureKeyCredential(emulator.api_key), retry_total=0) as client:
        assert client.get_document_count() == 1200
        assert len(list(client.search("*", top=1100, select=["id"]))) == 1100, "a page holds 1,000"
        counted = client.search("*", include_total_count=True, facets=["year", "file_name,count:1"], top=0)
        assert counted.get_count() == 1200
        facets = counted.get_facets() or {}
        assert {item["value"]: item["count"] for item in facets["year"]} == {2020: 600, 2021: 600}
        assert len(facets["file_name"]) == 1
        nearest = VectorizedQuery(vector=vector, k_nearest_neighbors=3, fields="embedding")
        (first, *_) = client.search(None, vector_queries=[nearest], filter="year eq 2021", top=3)
        assert (first["content"], first["@search.score"]) == (content, pytest.approx(1.0))
        assert client.get_document(first["id"])["content"] == content
        for problem in ({"skip": 100_001}, {"select": ["nosuch"]}, {"order_by": ["content"]}, {"facets": ["content"]}):
            with pytest.raises(HttpResponseError) as caught:
                list(client.search("*", **problem))
            assert caught.value.status_code == 400
        _write(client)


def _write(client: SearchClient) -> None:
    missing, made = (
        client.merge_documents([{"id": "none", "year": 1}]),
        client.merge_or_upload_documents([{"id": "a", "year": 1}]),
    )
    assert [(item.status_code, item.succeeded) for item in (*missing, *made)] == [(404, False), (201, True)]
    assert [item.status_code for item in client.delete_documents([{"id": "a"}, {"id": "never"}])] == [200, 200]
    bad: list[dict[str, Any]] = [
        {"id": "white space"},
        {"id": "_a"},
        {"id": "a", "nosuch": 1},
        {"id": "a", "year": "1"},
        {"id": "a", "embedding": [1.0]},
    ]
    for document in bad:
        with pytest.raises(HttpResponseError) as caught:
            client.upload_documents([document])
        assert caught.value.status_code == 400
    with pytest.raises(HttpResponseError):
        client.delete_documents([{"id": f"a{n}"} for n in range(1001)])
    (long,) = client.upload_documents([{"id": "a", "file_name": "x" * 40_000}])
    assert (long.status_code, "too large" in str(long.error_message)) == (400, True)


async def test_an_exporter_serves_one_event_loop_after_another(emulator: AzureAISearchEmulator) -> None:
    bench = Bench(AzureAISearchUnderTest(AzureAISearchSettings(endpoint=emulator.url), ()))
    await bench.open().provision()
    await bench.exporter.close()
    exporter = bench.exporter

    async def work() -> None:
        await exporter.replace_files([bench.file("dfl-1")])
        await exporter.close()

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, work())
    await bench.assert_holds(bench.file("dfl-1"))
    await exporter.close()
