"""What a sink says of its collection as a whole: whose records it holds, and that it can be dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import SinkConflict, SinkUnavailable
from pipeline.sinks.base import Exporter
from pipeline_tests.conformance.harness import MODEL, Bench


async def test_scopes_are_every_tenant_and_config_with_records_and_no_other(bench: Bench) -> None:
    assert await bench.exporter.list_scopes() in (None, frozenset())
    tenant = f"{bench.tenant}-b"
    other = bench.open(tenant=tenant)
    await bench.replace(bench.file("dfl-1"), bench.file("dfl-2"), bench.file("dfl-1", config=f"{bench.config}-b"))
    await other.replace_files([bench.file("dfl-9", tenant=tenant)])
    await bench.sink.settle(other)
    expected = {(bench.tenant, bench.config), (bench.tenant, f"{bench.config}-b"), (tenant, bench.config)}
    assert await bench.exporter.list_scopes() in (None, expected)
    await bench.delete("dfl-1", "dfl-2")
    assert await bench.exporter.list_scopes() in (None, expected - {(bench.tenant, bench.config)})


async def test_a_dropped_collection_is_empty_when_it_is_provisioned_again(bench: Bench) -> None:
    file = bench.file("dfl-1")
    await bench.replace(file)
    if type(bench.exporter).drop_collection is Exporter.drop_collection:
        with pytest.raises(SinkConflict, match="cannot drop"):
            await bench.exporter.drop_collection()
        await bench.assert_holds(file)
        return
    await bench.exporter.drop_collection()
    again = bench.open()
    await again.provision()
    await bench.assert_holds(exporter=again)


async def test_a_collection_that_does_not_exist_yet_is_told_from_an_empty_one(bench: Bench) -> None:
    new = bench.open(model=replace(MODEL, fingerprint="conformance/new"))
    with pytest.raises(SinkUnavailable, match=r"provision the sink first \(a sync does\)"):
        await new.check_provisioned()
    await new.provision()
    await new.check_provisioned()
