"""What the tests set up without Dagster is what a sync leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from pipeline.ledger import schema
from pipeline_tests.trust.conftest import LONG
from pipeline_tests.trust.damage import held_tables
from pipeline_tests.world import World, open_world

_OF_A_RUN = {"wave", "run_id", "lease_until", "at", "complete_at", "change_key", "sync_requested_at"}
_OF_A_RUN |= {"indexport_history.id", "indexport_file_sinks.updated_at"}
"""Also ``change_key``, which every refresh moves. The history of several files has no order among them."""


def left(world: World) -> dict[str, Any]:
    """Ledger, but for what is another of every run, lake and sinks."""
    home = world.export.home
    engine = sa.create_engine(home.ledger_url)
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        for table in schema.metadata.sorted_tables:
            of_a_file = [c for c in table.columns if c.name == "file_id"]
            columns = [c for c in table.columns if not {c.name, str(c)} & _OF_A_RUN]
            rows = connection.execute(sa.select(*columns).order_by(*of_a_file, *table.primary_key))
            found[table.name] = [str(row._asdict()).replace(str(home.root), "home") for row in rows]
    engine.dispose()
    lake = home.root / "lake"
    found |= {str(path.relative_to(lake)): path.read_bytes() for path in lake.rglob("*") if path.is_file()}
    return found | {sink: in_order(held_tables(world, sink)) for sink in world.settings.sinks}


def in_order(tables: list[pa.Table]) -> list[dict[str, Any]]:
    """Records with their vectors."""
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: str(row["id"]))


def test_a_world_ingested_and_a_world_synced_are_the_same(tmp_path: Path) -> None:
    def move_to(home: str) -> None:
        """Where a run is lost that was asked for a file."""
        os.environ["INDEXPORT_HOME"] = str(tmp_path / home)  # which the world puts back
        ledger = world.export.ledger
        ledger.request(list(ledger.files())[:1], "lost")

    def both() -> None:
        move_to("synced")
        report, synced = world.sync(), left(world)
        move_to("ingested")
        needs = world.ingest()
        assert left(world) == synced
        assert report.ok
        assert set(needs.due) == {*report.ingested, *report.removed}

    with open_world(tmp_path, metadata_fields={"team": "string"}) as world:
        for n in range(4):
            world.write(f"doc-{n}.md", f"# Document {n}\n\nThe body of document {n}.\n")
        world.write("doc-0.md.meta.json", '{"team": "gauges"}')
        world.write("long.md", LONG)
        world.write("empty.md", "")
        both()
        world.write("doc-1.md", "# Document 1\n\nEdited.\n")
        world.write("new.md", LONG)
        world.remove("doc-2.md")
        both()
        world.change(sinks={"lancedb": {}, "second": {"type": "storage_context"}})
        both()
        world.change(embedding={"provider": "constant", "constant_dimension": 64})
        world.write("doc-3.md", "# Document 3\n\nEdited.\n")
        both()
        world.change(embedding={"provider": "constant"}, chunking={"max_tokens": 64})
        both()
        both()
        assert world.ingest().due == []
