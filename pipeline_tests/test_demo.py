"""The demo tells what it says, and its own folder is begun anew; nothing else ever goes."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

import pipeline.demo
from pipeline.cli_local import local_app
from pipeline.demo import run_demo
from pipeline.errors import ConfigError, IndexportError
from pipeline.home import Home
from pipeline.local_cloud.environment import local_cloud_environment


class _Begun(Exception):
    """The demo has emptied its folder and begins."""


@pytest.fixture(autouse=True)
def _stops_before_the_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def begin(*_: object) -> None:
        raise _Begun

    monkeypatch.setattr(pipeline.demo, "local_cloud_environment", begin)
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.chdir(tmp_path)


def demo(documents: Path | str | None = None) -> None:
    """The demo, up to where it would start the local cloud."""
    run_demo(Console(quiet=True), Console(quiet=True), None if documents is None else str(documents))


def test_the_demo_cites_the_right_pages_and_works_again_on_what_it_changed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.demo, "local_cloud_environment", local_cloud_environment)
    out = Console(file=StringIO(), width=300)
    assert run_demo(out, Console(quiet=True), None)
    assert isinstance(out.file, StringIO)
    first, found, second = re.split(r"─ \d\. .*─", out.file.getvalue())[1:]
    assert len(_worked_on(first)) == 11
    for question, citation in {
        "How often must the level sensor be calibrated?": "manuals/ts-400-field-manual.pdf, page 2",
        "Who approves a business trip abroad?": "handbook/travel-and-expenses.md, page 1",
        "What does fault code E01 mean?": "manuals/ts-400-field-manual.pdf, page 2",
    }.items():
        assert f"{question}\n1. {citation} " in found
    assert "edited handbook/onboarding.md, added support/field-notes.md, removed support/opening-hours.txt\n" in found
    assert _worked_on(second) == {"handbook/onboarding.md", "support/field-notes.md"}
    assert "\n  removed 1\n" in second


def _worked_on(told: str) -> set[str]:
    return set(re.findall(r"^  worked on (.*)$", told, re.MULTILINE))


def test_an_empty_variable_is_a_home_of_the_default_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", "")
    assert Home.from_environment().root == tmp_path / ".indexport"


def test_the_demo_keeps_to_its_own_folder_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DAGSTER_HOME", "INDEXPORT_LAKE_URI", "INDEXPORT_LANCEDB_URI", "INDEXPORT_STORAGE_CONTEXT_URI"):
        monkeypatch.setenv(name, str(tmp_path / "deployment" / name))
    monkeypatch.setenv("INDEXPORT_LEDGER_URL", f"sqlite:///{tmp_path}/deployment/ledger.sqlite")
    with pytest.raises(_Begun):
        demo()
    home = Home.from_environment()
    assert home.root == tmp_path / "home" / "demo"
    places = [home.lake_uri, home.ledger_url, home.dagster_home, home.sink_uri("lancedb"), home.sink_uri("storage_context")]
    assert all(str(home.root) in str(place) for place in places)


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_every_sync_went_well(monkeypatch: pytest.MonkeyPatch, ok: bool, code: int) -> None:
    syncs = iter([SimpleNamespace(ok=ok), SimpleNamespace(ok=True)])
    monkeypatch.setattr(pipeline.demo, "local_cloud_environment", lambda *_: nullcontext())
    monkeypatch.setattr(pipeline.demo, "_sync", lambda *_: next(syncs))
    monkeypatch.setattr(pipeline.demo, "search", _nothing)
    assert CliRunner().invoke(local_app, ["demo"]).exit_code == code
    assert next(syncs, None) is None


async def _nothing(*_: object, **__: object) -> list[object]:
    return []


def test_documents_in_the_demos_own_folder_are_refused_and_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(_Begun):
        demo()
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    own = tmp_path / "home" / "demo" / "documents"
    (own / "thesis.txt").write_text("precious")
    for folder in (own, own.parent):
        with pytest.raises(ConfigError, match="elsewhere"):
            demo(folder)
    assert (own / "thesis.txt").read_text() == "precious"


@pytest.mark.usefixtures("ignores_spelling")
def test_documents_in_the_demos_own_folder_are_refused_in_every_case_that_finds_it(tmp_path: Path) -> None:
    (tmp_path / "home" / "demo" / "Thesis").mkdir(parents=True)
    with pytest.raises(ConfigError, match="elsewhere"):
        demo(tmp_path / "HOME" / "demo" / "thesis")


def test_a_folder_that_no_demo_has_made_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "home" / "demo" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    with pytest.raises(ConfigError, match="was not made by a demo"):
        demo()
    assert precious.read_text() == "precious"


def test_the_folder_of_the_last_demo_is_begun_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(_Begun):
        demo()
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    left = tmp_path / "home" / "demo" / "left"
    left.touch()
    with pytest.raises(_Begun):
        demo()
    assert not left.exists()


@pytest.mark.parametrize("documents", ["", "/nope", __file__])
def test_what_is_no_folder_is_refused_before_anything_goes(tmp_path: Path, documents: str) -> None:
    with pytest.raises(_Begun):
        demo()
    with pytest.raises(ConfigError, match="is no folder"):
        demo(documents)
    assert (tmp_path / "home" / "demo" / "documents").is_dir()


def test_a_full_disk_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(source: Path, target: Path) -> None:
        raise shutil.Error([(str(source), str(target), f"[Errno 28] No space left on device: {target}")] * 20)

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(IndexportError, match=rf"{tmp_path}/home/demo/documents: .*No space left on device") as told:
        demo()
    assert len(str(told.value)) < 500
