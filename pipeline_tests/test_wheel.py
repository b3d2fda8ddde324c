"""What a wheel holds beside the package's modules, without building one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from dagster.components.core.package_entry import discover_entry_point_package_objects

from pipeline.home import packaged

ROOT = Path(__file__).parents[1]


def test_a_wheel_brings_along_what_the_code_looks_for_beside_its_modules() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {
        name: f"pipeline/{name}" for name in ("dagster.yaml", "dg.toml", "samples", "workspace.yaml")
    }
    for name in wheel["force-include"]:
        assert packaged(name) == ROOT / name
        assert packaged(name).exists()


def test_dg_finds_the_component_of_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = "dagster_dg_cli.registry_modules"
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group]
    installed = tmp_path / "indexport-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: indexport\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text("\n".join([f"[{group}]", *(f"{name} = {of}" for name, of in points.items())]))
    monkeypatch.syspath_prepend(tmp_path)
    assert [point.value for point in entry_points(group=group) if point.dist and point.dist.name == "indexport"] == [
        *points.values()
    ]
    assert "pipeline.components.IndexExport" in {key.to_typename() for key in discover_entry_point_package_objects()}


def test_a_dagster_loads_the_definitions_of_an_installed_wheel(tmp_path: Path) -> None:
    """Of a copy that lies as a wheel lays it out, where no project is around it."""
    site = tmp_path / "site-packages"
    copied = shutil.copytree(ROOT / "pipeline", site / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dagster.yaml", "dg.toml", "workspace.yaml"):
        shutil.copy(ROOT / name, copied)
    environment = {**os.environ, "PYTHONPATH": str(site), "DAGSTER_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(copied / "workspace.yaml")]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert outcome.returncode == 0, outcome.stderr
    assert "Validation successful for code location pipeline" in outcome.stdout + outcome.stderr
    assert "does not match the name" not in outcome.stdout + outcome.stderr
