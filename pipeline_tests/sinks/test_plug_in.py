"""A class with only the reference protocol's four methods works as a sink of a whole export."""

from __future__ import annotations

import asyncio
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks.base import Exporter, SearchRequest, SinkContext
from pipeline.sinks.plug_in import PlugInExporter, PlugInSettings, plug_in_class
from pipeline.sinks.records import ChunkRecord, FileRecords, to_records
from pipeline_tests.conformance.harness import MODEL, Bench
from pipeline_tests.sinks.reference_exporter import BareJsonExporter, JsonExporter
from pipeline_tests.world import World, open_world

KINDS = [JsonExporter, BareJsonExporter]
LONG = "\n\n".join(f"## Part {n}\n\n" + f"Sentence {n} about rivers and their gauges. " * 20 for n in range(5))


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind = f"{request.param.__module__}:{request.param.__name__}"
    with open_world(tmp_path, sinks={"mine": {"type": kind, "path": str(tmp_path / "rows.json")}}) as opened:
        opened.write("a.md", "# A\n\nFirst text.\n")
        opened.write("long.md", LONG)
        yield opened


def contents(world: World) -> dict[str, list[str]]:
    """File name -> contents, as the plugged-in store holds them."""
    names = {file_id: row.display_name for file_id, row in world.export.ledger.files().items()}
    found: dict[str, list[str]] = {}
    for row in JsonExporter(str(world.root / "rows.json")).rows().values():
        found.setdefault(names.get(row["file"], row["file"]), []).append(row["content"])
    return found


def test_it_is_filled_skipped_when_current_and_follows_edits_shrinks_and_removals(world: World) -> None:
    assert world.sync().ok
    assert contents(world)["a.md"] == ["# A\n\nFirst text."]
    assert len(contents(world)["long.md"]) > 1
    assert world.sync().runs == 0
    world.write("long.md", "Short now.\n")
    world.ingest()
    assert contents(world)["long.md"] == ["Short now."]
    world.remove("a.md")
    assert world.sync().ok
    assert set(contents(world)) == {"long.md"}
    world.write("long.md", "")
    world.ingest()
    assert contents(world) == {}


async def fail(*_: Any, **__: Any) -> None:
    raise ConnectionError("no answer from https://user:the-secret@store.example")


def test_one_that_is_down_backs_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JsonExporter, "export", fail)
    assert not world.sync().ok
    assert world.export.ledger.sink_states()["mine"].down_until is not None
    assert {row.attempts for row in world.export.ledger.files().values()} == {0}


def test_what_it_lacks_is_said_and_not_imitated(world: World) -> None:
    world.ingest()
    exporter = world.export.sink("mine", "project")
    assert exporter.search_modes == frozenset()
    with pytest.raises(SinkConflict, match="cannot be read back"):
        exporter.fetch_records(export_config_id="config")
    with pytest.raises(ValueError, match="no search"):
        asyncio.run(exporter.search(SearchRequest("config")))


@dataclass
class PluggedIn:
    """A JsonExporter as a SinkUnderTest for ``Bench``."""

    path: Path
    kind: type[JsonExporter] = JsonExporter
    vector_tolerance: float = 0.0
    max_content_bytes: int | None = None
    secrets: tuple[str, ...] = ()

    def make_exporter(self, context: SinkContext) -> Exporter:
        return PlugInExporter(self.kind, PlugInSettings.model_validate({"path": str(self.path)}), context)

    def make_unreachable_exporter(self, context: SinkContext) -> Exporter:
        raise AssertionError("a file always answers")

    async def settle(self, exporter: Exporter) -> None:
        """A written file is visible to every reader."""


class PlugInBench(Bench):
    """A Bench whose store is looked at past the adapter, which cannot read records back."""

    sink: PluggedIn

    async def assert_keeps(self, *files: FileRecords, config: str | None = None) -> None:
        """Exactly these files of the config: by the snapshots, and by the rows of the store itself."""
        config = config or self.config
        kept = [file for file in files if file.table.num_rows]
        snapshots = await self.snapshots(config=config)
        assert snapshots.keys() == {file.file_id for file in kept}
        rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in JsonExporter(str(self.sink.path)).rows().values():
            if row["config"] == config:
                rows[row["file"]].append(row)
        assert {name: sorted(found, key=lambda row: row["chunk"]) for name, found in rows.items()} == {
            file.file_id: [self._row(record) for record in to_records(file.table)] for file in kept
        }

    def _row(self, record: ChunkRecord) -> dict[str, Any]:
        return {
            "config": record.export_config_id,
            "file": record.parsed_directory_file_id,
            "chunk": record.chunk_index,
            "file_name": record.file_name,
            "metadata": dict(record.metadata),
            "content": record.content,
            "tenant": self.tenant,
            "model": self.model.name,
            "dimension": self.model.dimension,
        }


@pytest.fixture(params=KINDS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[PlugInBench]:
    made = PlugInBench(PluggedIn(tmp_path / "rows.json", request.param))
    await made.open().provision()
    yield made
    for exporter in made.opened:
        await exporter.close()


async def test_exporting_again_changes_nothing(bench: PlugInBench) -> None:
    files = [bench.file("dfl-1"), bench.file("dfl-2", 8)]
    assert (await bench.replace(*files)).records_written == 11
    await bench.replace(*files)
    await bench.assert_keeps(*files)


@pytest.mark.parametrize(("before", "after"), [(9, 2), (2, 9), (5, 5), (1, 0), (0, 1), (0, 0)])
async def test_a_changed_file_leaves_nothing_of_its_old_version(bench: PlugInBench, before: int, after: int) -> None:
    neighbour = bench.file("dfl-neighbour")
    await bench.replace(neighbour, bench.file("dfl-1", before))
    changed = bench.file("dfl-1", after, version="v2")
    await bench.replace(changed)
    await bench.assert_keeps(neighbour, changed)


async def test_a_new_name_or_new_metadata_alone_reaches_every_record(bench: PlugInBench) -> None:
    await bench.replace(bench.file("dfl-1", name="draft.pdf", metadata={"year": 2023}))
    for changed in (
        bench.file("dfl-1", name="final.pdf", metadata={"year": 2023}),
        bench.file("dfl-1", name="final.pdf", metadata={"year": 2024, "extra": None}),
    ):
        await bench.replace(changed)
        await bench.assert_keeps(changed)


async def test_deleting_takes_the_named_files_and_no_other(bench: PlugInBench) -> None:
    files = [bench.file(f"dfl-{n}") for n in range(6)]
    await bench.replace(*files)
    await bench.exporter.delete_file(parsed_directory_file_id="dfl-0", export_config_id=bench.config)
    await bench.delete("dfl-1", "dfl-2", "dfl-never-there")
    await bench.delete()
    await bench.assert_keeps(*files[3:])


async def test_two_configs_keep_the_same_file_side_by_side(bench: PlugInBench) -> None:
    second = f"{bench.config}-b"
    one, other = bench.file("dfl-1", 4), bench.file("dfl-1", 2, version="v2", config=second)
    for _ in range(2):
        await bench.replace(one, other)
        await bench.assert_keeps(one)
        await bench.assert_keeps(other, config=second)
    shrunk = bench.file("dfl-1", 1, version="v3", config=second)
    await bench.replace(one, shrunk)
    await bench.assert_keeps(one)
    await bench.assert_keeps(shrunk, config=second)
    await bench.delete("dfl-1")
    await bench.assert_keeps()
    await bench.assert_keeps(shrunk, config=second)


@pytest.mark.parametrize("method", ["export", "delete_file", "delete_files", "list_snapshots", "close"])
async def test_whatever_it_raises_makes_the_sink_unavailable_and_its_text_is_never_shown(
    bench: PlugInBench, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    exporter = bench.open()
    monkeypatch.setattr(JsonExporter, method, fail, raising=False)
    uses: dict[str, Callable[[], Awaitable[Any]]] = {
        "export": lambda: bench.replace(bench.file("dfl-1")),
        "delete_file": lambda: exporter.delete_file(parsed_directory_file_id="dfl-1", export_config_id=bench.config),
        "delete_files": lambda: bench.delete("dfl-1"),
        "list_snapshots": bench.snapshots,
        "close": exporter.close,
    }
    with pytest.raises(SinkUnavailable, match=f"JsonExporter: {method} raised ConnectionError") as caught:
        await uses[method]()
    assert "the-secret" not in "".join(traceback.format_exception(caught.value))


def test_what_its_constructor_raises_is_told_apart_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, context = PlugInSettings.model_validate({"pfad": "the-secret"}), SinkContext("prj-1", MODEL)
    with pytest.raises(ConfigError, match="JsonExporter does not take the settings pfad"):
        PlugInExporter(JsonExporter, settings, context)

    def refuse(self: JsonExporter, **_: Any) -> None:
        raise ConnectionError("the-secret")

    monkeypatch.setattr(JsonExporter, "__init__", refuse)
    with pytest.raises(SinkUnavailable, match="JsonExporter: its constructor raised ConnectionError") as caught:
        PlugInExporter(JsonExporter, settings, context)
    assert "the-secret" not in "".join(traceback.format_exception(caught.value))


def test_a_class_without_the_protocol_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="lacks export, delete_file, delete_files, list_snapshots"):
        plug_in_class("pathlib:Path")
    with pytest.raises(ConfigError, match="cannot be imported"):
        plug_in_class("no.such.module:Thing")
