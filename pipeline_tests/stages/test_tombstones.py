"""Tombstones in two places: a loss of either is made good, and a release is none, whenever a look falls into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.home import Home
from pipeline.lake.lake import Lake
from pipeline.ledger.register import Register
from pipeline.stages.export import Export
from pipeline.stages.settings import ExportSettings
from pipeline.stages.tombstones import entomb, lift_tombstones, restore_tombstones

ERASED = ["dfl-1", "dfl-2"]
STEPS = (
    (Lake, "partitions"),
    (Lake, "metadata"),
    (Lake, "delete"),
    (Lake, "write_many"),
    (Register, "tombstones"),
    (Register, "entomb"),
    (Register, "lift"),
)
"""What a release and a look ask of lake and ledger."""


@pytest.fixture
def export(tmp_path: Path) -> Export:
    opened = Export(ExportSettings(name="default"), Home(tmp_path))
    entomb(opened, ERASED)
    return opened


def tombstones(export: Export) -> tuple[set[str], set[str]]:
    return set(export.lake.partitions("tombstones")), set(export.ledger.register.tombstones())


def lose(export: Export, place: str) -> None:
    if place == "ledger":
        export.ledger.register.lift(ERASED)
    if place == "lake":
        for file_id in ERASED:
            export.lake.delete(file_id, ["tombstones"])


def cut_into(patch: pytest.MonkeyPatch, step: int, other: Callable[[], object]) -> list[str]:
    """``other`` runs after this step, counted from 0, of what is done next; answers the names of the steps, as they come."""
    done: list[str] = []

    def counted(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def asked(*given: Any, **named: Any) -> Any:
            answer = real(*given, **named)
            done.append(name)
            if len(done) == step + 1:
                with pytest.MonkeyPatch.context() as whole:
                    for owner, method in STEPS:
                        whole.setattr(owner, method, real_steps[method])
                    other()
            return answer

        return asked

    real_steps = {method: getattr(owner, method) for owner, method in STEPS}
    for owner, method in STEPS:
        patch.setattr(owner, method, counted(real_steps[method], method))
    return done


@pytest.mark.parametrize("step", range(4))
def test_a_look_at_any_moment_of_a_release_does_not_undo_it(export: Export, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        done = cut_into(patch, step, lambda: restore_tombstones(export))
        lift_tombstones(export, ERASED)
    assert done == ["lift", "delete", "delete", "lift"]
    assert restore_tombstones(export) == 0
    assert tombstones(export) == (set(), set())


@pytest.mark.parametrize("lost", ["ledger", "lake", "nothing"])
@pytest.mark.parametrize("step", range(9))
def test_a_release_at_any_moment_of_a_look_is_not_undone(
    export: Export, lost: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(export, lost)
    with monkeypatch.context() as patch:
        done = cut_into(patch, step, lambda: lift_tombstones(export, ERASED))
        restore_tombstones(export)
    if step < len(done):
        restore_tombstones(export)
        assert tombstones(export) == (set(), set()), done


@pytest.mark.parametrize("lost", ["ledger", "lake"])
def test_what_one_place_has_lost_the_other_gives_back(export: Export, lost: str) -> None:
    lose(export, lost)
    assert restore_tombstones(export) == 2
    assert tombstones(export) == (set(ERASED), set(ERASED))
