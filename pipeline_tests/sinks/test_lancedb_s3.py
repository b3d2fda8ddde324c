"""LanceDB in an S3 bucket, with credentials from the environment alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.errors import SinkUnavailable
from pipeline.sinks.lancedb_store import LanceStore
from pipeline_tests.buckets import deletes_forbidden
from pipeline_tests.conformance.harness import Bench
from pipeline_tests.conformance.lancedb_harness import LanceDBUnderTest


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT"]).create_bucket(Bucket="records")
    yield "s3://records/lance"
    server.stop()


async def test_files_are_replaced_in_a_bucket_and_read_by_another_handle(bucket: str) -> None:
    bench = Bench(LanceDBUnderTest(bucket))
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1", 5), bench.file("dfl-2"))
    changed = bench.file("dfl-1", 2, version="v2")
    await bench.replace(changed)
    await bench.exporter.optimize()
    other = bench.open()
    await bench.assert_holds(changed, bench.file("dfl-2"), exporter=other)
    for exporter in bench.opened:
        await exporter.close()


async def test_a_bucket_that_refuses_deletes_is_told_and_nothing_is_claimed_to_be_gone(bucket: str) -> None:
    bench = Bench(LanceDBUnderTest(bucket))
    await bench.open().provision()
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"))
    await bench.delete("dfl-1")
    told = r"s3://records/lance cannot drop the former versions of the table: \d+ of them still there; .*DeleteObject"
    with deletes_forbidden("records"), pytest.raises(SinkUnavailable, match=told):
        await bench.exporter.purge_history()
    await bench.assert_holds(bench.file("dfl-2"))
    for exporter in bench.opened:
        await exporter.close()


@pytest.mark.parametrize("way", ["call", "commit"])
async def test_a_connection_that_ends_in_the_middle_of_an_answer_is_no_failure(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Lance asks again for objects then, but not for listings."""
    monkeypatch.setattr("pipeline.sinks.lancedb_store._FIRST_WAIT", 0)
    broken = RuntimeError("Error getting list response body: HTTP error: request or response body error")
    answers: list[object] = [broken, broken, "rows"]

    async def attempt() -> object:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    assert await getattr(LanceStore("s3://records/lance", "table"), way)("read", attempt) == "rows"


async def test_a_bucket_that_is_not_there_is_unavailable(bucket: str, tmp_path: Path) -> None:
    bench = Bench(LanceDBUnderTest("s3://no-such-bucket/lance"))
    with pytest.raises(SinkUnavailable) as caught:
        await bench.open().provision()
    assert str(caught.value) == (
        "LanceDB at s3://no-such-bucket/lance cannot open the database: "
        "NoSuchBucket: The specified bucket does not exist; check the store, its credentials and what they may do"
    )
