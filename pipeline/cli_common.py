"""What every command needs: the two consoles, the options they share, and opening an export.

What belongs here: no commands. Imports of the pipeline are inside functions, so that ``--help`` stays quick.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from pipeline.errors import ConfigError
from pipeline.printable import printable

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from pipeline.stages.export import Export
    from pipeline.stages.settings import ExportSettings


class PlainConsole(Console):
    """Shows text as it is: what a terminal would obey is escaped, and ``:boat:`` stays five letters. A string is one line."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **{**how, "emoji": False})


out = PlainConsole(soft_wrap=True)
"""Lines stay whole: a pipe has no width."""
err = PlainConsole(stderr=True)


ExportOption = Annotated[str, typer.Option("--export", help="Which export, by its name.")]
SinkOption = Annotated[str | None, typer.Option("--sink", help="Which sink; the export's first by default.")]
EverySinkOption = Annotated[str | None, typer.Option("--sink", help="Which sink; every one by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def fail(label: str, text: str) -> None:
    """One line on stderr, whatever it names."""
    err.print(Text.assemble((f"{label}:", "red"), " ", printable(text)), highlight=False, soft_wrap=True)


def escape_what_the_output_cannot_show() -> None:
    """What stdout's encoding has no bytes for is written as JSON escapes it: what is JSON stays so."""
    codecs.register_error("json_escapes", _json_escapes)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="json_escapes")


def _json_escapes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def defined_exports() -> dict[str, ExportSettings]:
    """The settings of every export of the defs folder by name. Raises ConfigError."""
    from pipeline.home import defs_folder
    from pipeline.stages.settings import load_exports

    return load_exports(defs_folder())


def open_export(name: str) -> Export:
    """An export of the defs folder by its name. Raises ConfigError."""
    from pipeline.home import Home, defs_folder
    from pipeline.stages.export import Export
    from pipeline.stages.settings import why_none

    exports = defined_exports()
    if name not in exports:
        folder = defs_folder()
        held = ", ".join(sorted(exports)) or f"none; {why_none(folder)}"
        raise ConfigError(
            f"there is no export {name!r} in {folder}; it has: {held}; INDEXPORT_DEFS names the defs folder of a project"
        )
    return Export(exports[name], Home.from_environment())


@contextmanager
def opened_with_instance(name: str) -> Iterator[tuple[Export, DagsterInstance]]:
    """An export that knows which runs are live, and the Dagster instance that knows it: killed ones have ended there."""
    from pipeline.orchestration.instance import open_instance
    from pipeline.orchestration.liveness import end_dead_runs
    from pipeline.orchestration.resources import EXPORTS

    opened = open_export(name)
    with open_instance(opened.home) as instance:
        end_dead_runs(instance, name)
        yield EXPORTS.open(opened.settings, instance), instance


def sinks_of(opened: Export, name: str | None) -> list[str]:
    """The sink named, or every one. Raises ConfigError for one the export does not have."""
    if name is None:
        return list(opened.settings.sinks)
    opened.check_sink(name)
    return [name]


def filters_of(conditions: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Conditions as typed, all of them together: key -> operator -> value. Raises ConfigError."""
    filters: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        key, separator, text = condition.partition("=")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            if text.startswith(("{", "[")):
                quoted = f"{key}={json.dumps(text, ensure_ascii=False)}"
                raise ConfigError(f"filter {condition!r}: that is no JSON; a text that begins so is quoted: {quoted}") from None
            value = text
        operations = value if isinstance(value, dict) else {"eq": value}
        if not separator or not operations:
            raise ConfigError(f'a filter reads key=value or key={{"gte": 5}}, not {condition!r}')
        if twice := filters.setdefault(key, {}).keys() & operations.keys():
            raise ConfigError(f"filter on {key!r}: {', '.join(sorted(twice))} is given twice; `in` takes a list of values")
        filters[key] |= operations
    return filters
