"""``indexport demo``: the whole journey on one machine, with no account and no key.

What belongs here: the story and what is printed. Every step is what a user would do: the real CLI functions, a real
Dagster run, the real SDK against the local cloud.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline.cli_output import SyncView, print_hits, print_sync
from pipeline.errors import ConfigError, IndexportError
from pipeline.home import Home, packaged
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import SyncReport, sync
from pipeline.stages.detect import refresh
from pipeline.stages.export import Export
from pipeline.stages.search import records, search
from pipeline.stages.settings import ExportSettings, RemovalSettings
from pipeline.urls import as_stored

SAMPLES = packaged("samples")
QUESTIONS = (
    "How often must the level sensor be calibrated?",
    "Who approves a business trip abroad?",
    "What does fault code E01 mean?",
)
_EDITED = Path("handbook/onboarding.md")
_ADDED = Path("support/field-notes.md")
_REMOVED = Path("support/opening-hours.txt")
_SETTINGS = ExportSettings(name="demo", removal=RemovalSettings(grace_period_seconds=0))
"""No account and no key, whatever the project's own exports ask for."""
_UI = "make dev" if (Path(__file__).parents[1] / "Makefile").is_file() else "indexport dev"
"""A wheel brings no Makefile along."""
_MARKER = ".made-by-indexport-demo"


def run_demo(out: Console, err: Console, documents: str | None) -> bool:
    """Sync a folder, search it, and, over the samples, change it and sync again; answers whether both syncs were whole.

    Raises ConfigError for a missing folder, and where the demo's own folder may hold what is not the demo's.
    """
    home = Home(Home.from_environment().root / "demo")
    if documents is not None and not (documents and Path(documents).is_dir()):
        raise ConfigError(f"{documents!r} is no folder; give --documents (make demo DOCS=...) a folder of documents")
    if documents is not None and as_stored(Path(documents)).is_relative_to(as_stored(home.root)):
        raise ConfigError(f"{documents!r} is in {home.root}, which every demo begins anew; give --documents a folder elsewhere")
    _empty(home.root)
    home.move_in()
    folder = Path(documents) if documents else home.root / "documents"
    if documents is None:
        _copy_samples(folder)
    with local_cloud_environment(str(folder), home.local_cloud):
        export = Export(_SETTINGS, home)
        out.rule(f"1. A local LlamaCloud parses {escape(str(folder))}; one Dagster run exports it")
        ok = _sync(out, err, export).ok
        out.rule("2. Search, with citations")
        for question in QUESTIONS if documents is None else asyncio.run(_headings(export)):
            out.print()
            out.print(f"[bold cyan]{escape(question)}[/bold cyan]", highlight=False)
            print_hits(out, asyncio.run(search(export, next(iter(export.settings.sinks)), question, k=3)))
        if documents is None:
            _change(out, folder)
        out.rule("3. Sync again: only what changed is worked on")
        ok = _sync(out, err, export).ok and ok
    out.print()
    out.print(
        f"Everything is in {escape(str(home.root))}. Next: [bold]{_UI}[/bold], the Dagster UI over the samples.",
        highlight=False,
    )
    return ok


def _empty(root: Path) -> None:
    """A new folder in place of the last demo's; one that no demo has made is left alone."""
    marker = root / _MARKER
    if root.exists() and not marker.is_file():
        raise ConfigError(f"{root} was not made by a demo; move it away, or set INDEXPORT_HOME to another folder")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    marker.touch()


def _copy_samples(folder: Path) -> None:
    """Raises IndexportError naming the first file that cannot be written, of many that most often fail for one reason."""
    try:
        shutil.copytree(SAMPLES, folder)
    except shutil.Error as error:
        raise IndexportError(f"{folder}: {error.args[0][0][2]}; check its space and rights") from error


def _sync(out: Console, err: Console, export: Export) -> SyncReport:
    asyncio.run(refresh(export))
    with SyncView(err) as view, open_instance(export.home) as instance:
        report = sync(export.settings, instance, progress=view.progress)
    print_sync(out, export, report)
    names = export.file_names()
    for file_id in report.ingested:
        out.print(f"  worked on {names.get(file_id, file_id)}", markup=False, highlight=False)
    if report.removed:
        out.print(f"  removed {len(report.removed)}", highlight=False)
    return report


async def _headings(export: Export) -> list[str]:
    """A heading each of three of the user's own documents, as questions nobody had to write."""
    found: dict[str, str] = {}
    async with aclosing(records(export, next(iter(export.settings.sinks)))) as held:
        async for record in held:
            lines = (record.context.strip() or record.content.strip()).splitlines()
            found.setdefault(record.file_name, lines[0].rsplit(" > ", 1)[-1].lstrip("# ")[:80])
            if len(found) == len(QUESTIONS):
                break
    return list(found.values())


def _change(out: Console, folder: Path) -> None:
    """One paragraph more, one file more, one file less."""
    edited = folder / _EDITED
    edited.write_text(
        edited.read_text(encoding="utf-8") + "\n\nNew colleagues get their river boots on the first day.\n", encoding="utf-8"
    )
    (folder / _ADDED).write_text("# Field notes\n\nStation 7 was moved upstream after the flood.\n", encoding="utf-8")
    (folder / _REMOVED).unlink()
    out.print()
    out.print(f"edited {_EDITED}, added {_ADDED}, removed {_REMOVED}", highlight=False)
    out.print()
