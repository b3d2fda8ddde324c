from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_tests.local_cloud.harness import Harness, MovableClock, running

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with two documents, one of them in a subfolder."""
    folder = tmp_path / "documents"
    (folder / "guides").mkdir(parents=True)
    (folder / "hello.md").write_text("# Hello\n\nA first page.")
    (folder / "guides" / "boats.txt").write_text("Boats float.\fOars push.")
    return folder


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def cloud(documents: Path, state_dir: Path, clock: MovableClock) -> Iterator[Harness]:
    with running(documents, state_dir, clock=clock) as harness:
        yield harness
