"""The demo's own folder is begun anew; nothing else ever goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

import pipeline.demo
from pipeline.demo import run_demo
from pipeline.errors import ConfigError
from pipeline.home import Home


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


def demo(documents: Path | None = None) -> None:
    """The demo, up to where it would start the local cloud."""
    run_demo(Console(quiet=True), Console(quiet=True), str(documents) if documents else None)


def test_an_empty_variable_is_a_home_of_the_default_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INDEXPORT_HOME", "")
    assert Home.from_environment().root == tmp_path / ".indexport"


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
