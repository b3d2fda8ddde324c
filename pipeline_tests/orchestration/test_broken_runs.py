"""A run that breaks half way: once the files stand, Dagster shows no partition of them as failed or missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import EmbedderUnavailable, LakeError, SinkUnavailable, SourceUnavailable
from pipeline.lake import Lake
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline_tests.soak.crash import Killed, dies_at_write
from pipeline_tests.world import World, open_world

FILES = 6


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Every stage keeps what it has done file by file, so that it can break between two of them."""
    monkeypatch.setattr("pipeline.stages.work.GROUP_CHUNKS", 1)
    monkeypatch.setattr(LanceDBExporter, "chunks_at_once", 1)
    monkeypatch.setattr("pipeline.stages.fetch._STORE_AT_ONCE", 1)
    monkeypatch.setattr("pipeline.stages.chunk._AT_ONCE", 1)
    with open_world(tmp_path) as opened:
        write(opened, "first")
        yield opened


def write(world: World, version: str) -> None:
    for n in range(FILES):
        world.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the {version} version of document {n}.\n")


def breaks_after(method: Callable[..., Awaitable[Any]], calls: int, error: Exception) -> Callable[..., Awaitable[Any]]:
    left = calls

    async def call(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return await method(*arguments, **named)

    return call


def break_fetch(patch: pytest.MonkeyPatch) -> None:
    real = LlamaCloudSource.fetch_payloads

    async def half(self: LlamaCloudSource, files: Any) -> Any:
        given = 0
        async for pair in real(self, files):
            if given == FILES // 2:
                raise SourceUnavailable("LlamaCloud went away")
            yield pair
            given += 1

    patch.setattr(LlamaCloudSource, "fetch_payloads", half)


def break_chunk(patch: pytest.MonkeyPatch) -> None:
    real, written = Lake.write, 0

    def half(self: Lake, dataset: Any, *arguments: Any) -> int:
        nonlocal written
        written += dataset == "chunks"
        if written > FILES // 2:
            raise LakeError("the lake went away")
        return real(self, dataset, *arguments)

    patch.setattr(Lake, "write", half)


def break_embed(patch: pytest.MonkeyPatch) -> None:
    error = EmbedderUnavailable("the model went away")
    patch.setattr(ConstantEmbedder, "embed", breaks_after(ConstantEmbedder.embed, FILES // 2, error))


def break_load(patch: pytest.MonkeyPatch) -> None:
    error = SinkUnavailable("the store went away")
    patch.setattr(LanceDBExporter, "replace_files", breaks_after(LanceDBExporter.replace_files, FILES // 2, error))


@pytest.mark.parametrize("breaks", [break_fetch, break_chunk, break_embed, break_load])
@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_stage_that_breaks_half_way_leaves_no_partition_failed_once_all_stands(
    world: World, monkeypatch: pytest.MonkeyPatch, breaks: Callable[[pytest.MonkeyPatch], None], loaded_before: bool
) -> None:
    if loaded_before:
        assert world.sync().ok
        write(world, "second")
    with monkeypatch.context() as patch:
        breaks(patch)
        report = world.sync()
    assert not report.ok
    assert report.failed_runs
    world.export.ledger.record_sink_state("lancedb", error=None, backoff=lambda _: 0.0)
    assert world.sync().ok
    world.assert_settled()
    world.assert_no_partition_is_behind()
    assert world.sync().runs == 0


@pytest.mark.parametrize("after", [60, 120, 130])
def test_a_killed_run_leaves_no_partition_failed_once_all_stands(world: World, after: int) -> None:
    with dies_at_write(after), pytest.raises(Killed):
        world.sync()
    assert world.sync().ok
    assert {row.status for row in world.export.ledger.files().values()} == {"done"}
    world.assert_settled()
    world.assert_no_partition_is_behind()
