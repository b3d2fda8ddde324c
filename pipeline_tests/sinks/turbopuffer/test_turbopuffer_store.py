"""Turbopuffer's back-pressure, lost answers, keys and addresses."""

from __future__ import annotations

import time

import pytest

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks import backoff
from pipeline.sinks import turbopuffer_store as store
from pipeline.sinks.base import SinkContext
from pipeline.sinks.turbopuffer import TurbopufferExporter, TurbopufferSettings
from pipeline_tests.conformance.harness import MODEL, Bench
from pipeline_tests.conformance.turbopuffer_harness import TurbopufferUnderTest
from pipeline_tests.emulators.turbopuffer import TurbopufferEmulator


@pytest.mark.parametrize("status", [202, 409, 429])
async def test_a_busy_store_is_asked_again(bench: Bench, emulator: TurbopufferEmulator, status: int) -> None:
    emulator.fail("query", status, times=2, retry_after="0.001")
    emulator.fail("write", status, times=2, retry_after="0.001")
    file = bench.file("dfl-1")
    await bench.replace(file)
    assert (emulator.count("query"), emulator.count("write")) == (3, 3)
    await bench.assert_holds(file)


async def test_back_pressure_that_does_not_end_makes_the_sink_unavailable(bench: Bench, emulator: TurbopufferEmulator) -> None:
    emulator.fail("write", 429, times=100, retry_after="0.001", message="too much unindexed data")
    with pytest.raises(SinkUnavailable, match=r"replace files: 429, too much unindexed data"):
        await bench.replace(bench.file("dfl-1"))
    assert emulator.count("write") == 10
    emulator.heal()
    await bench.assert_holds()


async def test_the_wait_a_store_asks_for_is_kept(bench: Bench, emulator: TurbopufferEmulator) -> None:
    emulator.fail("write", 429, retry_after="0.3")
    started = time.monotonic()
    await bench.replace(bench.file("dfl-1"))
    assert time.monotonic() - started >= 0.3


async def test_a_write_whose_answer_is_lost_is_done_once_more_to_the_same_end(
    bench: Bench, emulator: TurbopufferEmulator
) -> None:
    await bench.replace(bench.file("dfl-1", 8))
    emulator.lose_answer("write", times=2)
    changed = bench.file("dfl-1", 3, version="v2")
    report = await bench.replace(changed)
    assert report.records_written == 3
    await bench.assert_holds(changed)
    emulator.lose_answer("write")
    await bench.delete("dfl-1")
    await bench.assert_holds()


async def test_a_store_that_never_answers_is_unavailable(bench: Bench, emulator: TurbopufferEmulator) -> None:
    emulator.lose_answer("write", times=100)
    with pytest.raises(SinkUnavailable, match="cannot be reached to replace files"):
        await bench.replace(bench.file("dfl-1"))
    assert emulator.count("write") == 3


async def test_a_store_that_is_busy_and_then_never_answers_is_unavailable(
    bench: Bench, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(backoff, "LONGEST_WAIT", 0.001)
    emulator.fail("write", 503, times=3)
    emulator.lose_answer("write", times=30)
    with pytest.raises(SinkUnavailable, match="cannot be reached to replace files"):
        await bench.replace(bench.file("dfl-1"))
    assert emulator.count("write") == 6


async def test_a_slow_answer_is_waited_for_only_so_long(
    bench: Bench, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_TIMEOUT", 0.2)
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.01)
    slow = bench.open()
    released = emulator.hold("write")
    with pytest.raises(SinkUnavailable, match="did not answer in time"):
        await slow.replace_files([bench.file("dfl-1")])
    released.set()


async def test_a_refused_key_is_named_by_its_variable_and_never_shown(
    bench: Bench, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBOPUFFER_API_KEY", "tpuf-wrong-key")
    with pytest.raises(SinkUnavailable, match=r"401.*check the key in TURBOPUFFER_API_KEY") as caught:
        await bench.open().provision()
    assert "tpuf-wrong-key" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert emulator.count("metadata") == 0


@pytest.mark.parametrize(
    ("environment", "settings", "told"),
    [
        ({}, {"region": "gcp-us-central1"}, "TURBOPUFFER_API_KEY"),
        ({"TURBOPUFFER_API_KEY": "k-secret"}, {}, "TURBOPUFFER_REGION"),
        ({"TURBOPUFFER_API_KEY": "k-secret"}, {"base_url": "http://k-secret@host:port"}, "TURBOPUFFER_BASE_URL"),
    ],
)
async def test_a_missing_key_or_address_is_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], settings: dict[str, str], told: str
) -> None:
    for name in ("TURBOPUFFER_API_KEY", "TURBOPUFFER_REGION", "TURBOPUFFER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exporter = TurbopufferExporter(TurbopufferSettings(**settings), SinkContext("prj-1", MODEL))
    with pytest.raises(ConfigError, match=told) as caught:
        await exporter.provision()
    assert "k-secret" not in str(caught.value)
    await exporter.close()


async def test_the_address_may_come_from_the_environment(
    running: TurbopufferUnderTest, emulator: TurbopufferEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBOPUFFER_BASE_URL", emulator.url)
    exporter = TurbopufferExporter(TurbopufferSettings(), SinkContext("prj-1", MODEL))
    await exporter.provision()
    await exporter.close()
    assert exporter.namespace in emulator.engine.namespaces


@pytest.mark.parametrize(
    ("environment", "settings", "address"),
    [
        ({"REGION": "eu"}, {}, "https://eu.turbopuffer.com"),
        ({"REGION": "eu"}, {"region": "us"}, "https://us.turbopuffer.com"),
        ({"REGION": "eu"}, {"base_url": "http://own"}, "http://own"),
        ({"BASE_URL": "http://own"}, {"region": "us"}, "https://us.turbopuffer.com"),
        ({"BASE_URL": "http://own", "REGION": "eu"}, {}, "http://own"),
        ({"BASE_URL": "https://{region}.own"}, {"region": "us"}, "https://us.own"),
        ({"REGION": "eu"}, {"base_url": "https://{region}.own"}, "https://eu.own"),
    ],
)
async def test_settings_count_before_the_environment_and_an_address_before_a_region(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], settings: dict[str, str], address: str
) -> None:
    monkeypatch.setenv("TURBOPUFFER_API_KEY", "key")
    for name in ("REGION", "BASE_URL"):
        monkeypatch.delenv(f"TURBOPUFFER_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"TURBOPUFFER_{name}", value)
    exporter = TurbopufferExporter(TurbopufferSettings(**settings), SinkContext("prj-1", MODEL))
    assert exporter._store._shown_url == address
    await exporter.close()


async def test_a_query_the_store_refuses_is_a_conflict_with_its_own_words(bench: Bench, emulator: TurbopufferEmulator) -> None:
    emulator.fail("query", 400, message="attribute 'x' does not exist")
    with pytest.raises(SinkConflict, match="attribute 'x' does not exist"):
        await bench.snapshots()
    emulator.fail("query", 402, message="payment required")
    with pytest.raises(SinkUnavailable, match="402, payment required"):
        await bench.snapshots()


async def test_something_that_is_not_turbopuffer_is_told_apart(bench: Bench, emulator: TurbopufferEmulator) -> None:
    emulator.garble("query")
    with pytest.raises(SinkUnavailable, match="check the address"):
        await bench.snapshots()
