"""What tests look at in the folder of a storage_context sink with one config, and how they get in its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SinkUnavailable
from pipeline.sinks.storage_context_files import FolderStore


def config_folder(tmp_path: Path) -> Path:
    (current,) = tmp_path.rglob("CURRENT")
    return current.parent


def current_generation(tmp_path: Path) -> Path:
    folder = config_folder(tmp_path)
    return folder / (folder / "CURRENT").read_text().strip()


def fail_when(monkeypatch: pytest.MonkeyPatch, method: str, concerns: Callable[[str], bool]) -> None:
    original = getattr(FolderStore, method)

    def failing(self: FolderStore, relative: str, *rest: Any) -> Any:
        if concerns(relative):
            raise SinkUnavailable(f"no {method} of {relative}")
        return original(self, relative, *rest)

    monkeypatch.setattr(FolderStore, method, failing)


def fail_once_when(monkeypatch: pytest.MonkeyPatch, method: str, concerns: Callable[[str], bool]) -> None:
    def fail() -> None:
        raise SinkUnavailable(f"no {method} this time")

    before_first(monkeypatch, method, concerns, fail)


def before_first(
    monkeypatch: pytest.MonkeyPatch, method: str, concerns: Callable[[str], bool], meanwhile: Callable[[], None]
) -> None:
    """The first time a store does this, it is stopped before, and ``meanwhile`` happens."""
    original = getattr(FolderStore, method)
    waiting = [meanwhile]

    def stopping(self: FolderStore, relative: str, *rest: Any) -> Any:
        if waiting and concerns(relative):
            waiting.pop()()
        return original(self, relative, *rest)

    monkeypatch.setattr(FolderStore, method, stopping)
