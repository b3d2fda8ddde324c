"""What a wheel holds beside the package's modules, without building one."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pipeline.home import packaged

ROOT = Path(__file__).parents[1]


def test_a_wheel_brings_along_what_the_code_looks_for_beside_its_modules() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {name: f"pipeline/{name}" for name in ("dagster.yaml", "samples")}
    for name in wheel["force-include"]:
        assert packaged(name) == ROOT / name
        assert packaged(name).exists()
