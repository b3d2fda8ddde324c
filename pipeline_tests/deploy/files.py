"""What stands in ``deploy/``, read as Docker would read it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def instructions(name: str) -> list[str]:
    """What follows every instruction of this name in the Dockerfile, in order, each on one line."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def image_environment() -> dict[str, str]:
    """What the image adds to the environment; a ``$PATH`` in it is left as it is."""
    return dict(pair.split("=", 1) for each in instructions("ENV") for pair in shlex.split(each))


def services() -> dict[str, Any]:
    return dict(read("deploy/compose.yaml")["services"])


def read(name: str) -> Any:
    """A YAML file of the project."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
