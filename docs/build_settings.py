"""Writes ``settings.md`` from the settings themselves: ``python docs/build_settings.py``. A test keeps the two equal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.errors import ConfigError
from pipeline.sinks.registry import LOCAL_SINKS, SINKS, exporter_class
from pipeline.stages.settings import ExportSettings

TARGET = Path(__file__).with_name("settings.md")
_HEAD = """# Settings of an export

Written by `docs/build_settings.py` from the code. One file `pipeline/defs/<export>/defs.yaml` an export, or under the folder that
`INDEXPORT_DEFS` names; everything below stands under `attributes:`. Secrets are never settings: they come from the environment.
Other values may too, written as in Dagster's components: `"{{ env.NAME }}"`, `"{{ env('NAME') }}"` or `"{{ env('NAME',
'default') }}"`, whole or as a part; a variable that is not set, and any other template, is an error that names the setting. One
file may hold several exports, with a line `---` between them. A running Dagster takes an edit in when its code location is
[reloaded](operations.md#changed-settings).

What is wrong in a file is told in one line that names it, by every command (exit code 2) and when Dagster loads the code
location, which has no export at all until that is mended: also a key that stands twice, a sink that is not known and a setting
that its sink does not have. What the file cannot show (a variable, a package or a class of your own is missing) is told where
the sink is used.
"""
_SHARED = """Exports of one index whose sinks are one place (same store, name and model) share its records:
with other `chunking` they overwrite each other's, and each takes its own for what stands. Give each its own place, such as
another prefix."""


def settings_page() -> str:
    """The page as it should be."""
    parts = [_HEAD, _table(ExportSettings)]
    for name, field in ExportSettings.model_fields.items():
        for model in _models(field):
            parts += [f"## `{name}`\n", _document(model), _table(model)]
            for inner, inner_field in model.model_fields.items():
                for inner_model in _models(inner_field):
                    parts += [f"### `{name}.{inner}`\n", _document(inner_model), _table(inner_model)]
    parts.append(f"## `sinks`\n\nName of the sink -> its settings. {_SHARED}\n")
    for sink in sorted(SINKS):
        parts += [f"### `sinks.{sink}`\n", _sink(sink)]
    return "\n".join(parts)


def _sink(name: str) -> str:
    home = {"uri": f"`INDEXPORT_{name.upper()}_URI`, or a folder of the home"} if name in LOCAL_SINKS else {}
    try:
        return _table(exporter_class(name).settings_type, home)
    except ConfigError as error:
        raise SystemExit(f"settings.md needs every extra installed: {error}") from error


def _models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            yield candidate


def _document(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split()) + "\n"


def _table(model: type[BaseModel], defaults: Mapping[str, str] = MappingProxyType({})) -> str:
    """``defaults`` are those that are not in the model."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        in_model = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
        default = defaults.get(name, in_model)
        rows.append(f"| `{name}` | {default} | {_meaning(field)} |")
    return "\n".join(rows) + "\n"


def _meaning(field: FieldInfo) -> str:
    described = (field.description or "").replace("|", " or ")
    allowed = ", ".join(f"`{value}`" for value in get_args(field.annotation)) if get_origin(field.annotation) is Literal else ""
    return " ".join(filter(None, (described, allowed and f"One of {allowed}.")))


def _shown(default: object) -> str:
    if isinstance(default, BaseModel):
        return "see below"
    return f"`{json.dumps(default, default=str)}`"


if __name__ == "__main__":
    TARGET.write_text(settings_page(), encoding="utf-8")
