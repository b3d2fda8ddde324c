"""A world that is in its sink, and what is written and embedded from then on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.embedding.constant import ConstantEmbedder
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.records import FileRecords
from pipeline_tests.world import World, open_world

LONG = "# Long\n\n" + "\n\n".join(f"## Part {n}\n\n" + f"Sentence {n} speaks of river gauges. " * 40 for n in range(6))


def write_documents(world: World) -> None:
    for n in range(3):
        world.write(f"doc-{n}.md", f"# Document {n}\n\nThis is the body of document {n}.\n")
    world.write("long.md", LONG)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with open_world(tmp_path) as opened:
        write_documents(opened)
        opened.write("empty.md", "")
        opened.ingest()
        yield opened


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files written to the sink from now on."""
    written: list[str] = []
    real = LanceDBExporter.replace_files

    async def counted(self: LanceDBExporter, files: Sequence[FileRecords]) -> Any:
        written.extend(file.file_id for file in files)
        return await real(self, files)

    monkeypatch.setattr(LanceDBExporter, "replace_files", counted)
    return written


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts embedded from now on."""
    texts: list[str] = []
    real = ConstantEmbedder.embed

    async def counted(self: ConstantEmbedder, given: Sequence[str], counts: Sequence[int]) -> Any:
        texts.extend(given)
        return await real(self, given, counts)

    monkeypatch.setattr(ConstantEmbedder, "embed", counted)
    return texts
