"""What the sensor does between an edit of an export's YAML and the reload of the code location."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pipeline.definitions import defs
from pipeline.stages.plan import make_plan
from pipeline_tests.world import World, open_world

LONG = "# Handbook\n\n" + "\n\n".join(f"## Part {part}\n\n" + f"Sentence {part} of the text. " * 20 for part in range(4))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world that stands, and whose settings are a file as well."""
    with open_world(tmp_path) as opened:
        opened.write("handbook.md", LONG)
        opened.sync()
        monkeypatch.setenv("INDEXPORT_DEFS", str(defs_file(opened).parent))
        defs_file(opened).parent.mkdir()
        save(opened)
        yield opened


def defs_file(world: World) -> Path:
    return world.root / "defs" / "defs.yaml"


def save(world: World, **changes: object) -> None:
    """The world's settings with these changes are what its file says."""
    world.change(**changes)
    component = {
        "type": "pipeline.components.IndexExport",
        "attributes": world.settings.model_dump(mode="json", exclude_none=True),
    }
    defs_file(world).write_text(json.dumps(component))


def tick(world: World, location: dg.Definitions) -> dg.SensorResult | dg.SkipReason:
    """A look with the definitions that were loaded."""
    sensor = location.resolve_sensor_def("default_directory_changes")
    assert location.resources is not None
    resources = {"indexport": location.resources["indexport"]}
    answer = sensor(dg.build_sensor_context(instance=world.instance, definitions=location, resources=resources))
    assert isinstance(answer, dg.SensorResult | dg.SkipReason)
    return answer


def ingested(answer: dg.SensorResult | dg.SkipReason) -> int:
    assert isinstance(answer, dg.SensorResult)
    return len([request for request in answer.run_requests or () if request.job_name == "default_ingest"])


def test_the_price_of_an_edit_is_told_and_nothing_is_asked_for_until_the_reload(world: World) -> None:
    location = defs()
    assert ingested(tick(world, location)) == 0
    save(world, chunking={"max_tokens": 40})
    assert asyncio.run(make_plan(world.export, run_id="plan")).chunks > 0
    told = (
        f"{defs_file(world)} was edited or moved after Dagster loaded it: nothing is asked for until its code location is "
        "reloaded (Dagster UI: Deployment > Code locations > Reload)"
    )
    assert [tick(world, location) for _ in range(2)] == [dg.SkipReason(told)] * 2
    assert ingested(tick(world, defs())) == 1


def test_a_sink_that_is_renamed_in_the_file_asks_for_no_run_that_cannot_start(world: World) -> None:
    location = defs()
    save(world, sinks={"two": {"type": "lancedb", "table_prefix": "two"}})
    assert isinstance(tick(world, location), dg.SkipReason)
    assert ingested(tick(world, defs())) == 1


def test_an_edit_that_is_taken_back_needs_no_reload(world: World) -> None:
    location = defs()
    before = defs_file(world).read_bytes()
    defs_file(world).write_text("attributes: [")
    assert isinstance(tick(world, location), dg.SkipReason)
    defs_file(world).write_bytes(before)
    assert ingested(tick(world, location)) == 0
