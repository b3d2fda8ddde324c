"""Commands that prove, restore and clear away: verify, repair, rebuild, removals, erase, retire, prune.

What belongs here: arguments, output and exit codes, as in ``cli``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli_common import (
    EverySinkOption,
    ExportOption,
    JsonOption,
    defined_exports,
    err,
    opened_with_instance,
    out,
    sinks_of,
)
from pipeline.errors import ConfigError
from pipeline.stages.known_files import KnownFiles

if TYPE_CHECKING:
    from pipeline.stages.erase import Retired
    from pipeline.stages.export import Export

trust_app = typer.Typer(no_args_is_help=True)
rebuild_app = typer.Typer(no_args_is_help=True, help="Make what was lost from what is left.")
trust_app.add_typer(rebuild_app, name="rebuild")

_LATELY_SECONDS = 2 * 86_400.0
"""An export that is live is listed completely every six hours, unless its settings say otherwise."""
_FILE_ID = re.compile(r"dfl-[0-9A-Za-z-]+")


@trust_app.command()
def verify(
    export: ExportOption = "default",
    sink: EverySinkOption = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every record and vector instead of snapshots alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove that a sink holds its source, file by file and chunk by chunk. Exit code 1 when something differs."""
    from pipeline.cli_output import print_verification, verification_json
    from pipeline.stages.verify import verify as run_verify

    with opened_with_instance(export) as (opened, _):
        found = [asyncio.run(run_verify(opened, name, deep=deep)) for name in sinks_of(opened, sink)]
    if as_json:
        out.print_json(data=[verification_json(one) for one in found])
    else:
        names = opened.file_names()
        for one in found:
            print_verification(out, one, names)
    if not all(one.ok for one in found):
        raise typer.Exit(1)


@trust_app.command()
def repair(
    export: ExportOption = "default",
    sink: EverySinkOption = None,
    shallow: Annotated[bool, typer.Option("--shallow", help="Trust snapshots instead of reading every record.")] = False,
    allow_deletes: Annotated[int, typer.Option(min=0, help="Approve so many deletes beyond the fuse; if more wait, none.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Replace the files that differ, and no other, from the lake; ends with a verification."""
    from pipeline.cli_output import print_repair, repair_json
    from pipeline.orchestration.liveness import command_run
    from pipeline.stages.repair import repair as run_repair

    with opened_with_instance(export) as (opened, _), command_run("repair") as run_id:
        names = opened.file_names()
        reports = [
            asyncio.run(run_repair(opened, name, run_id=run_id, deep=not shallow, allow_deletes=allow_deletes))
            for name in sinks_of(opened, sink)
        ]
    if as_json:
        out.print_json(data=[repair_json(report) for report in reports])
    else:
        for report in reports:
            print_repair(out, report, names)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@rebuild_app.command("ledger")
def rebuild_ledger(export: ExportOption = "default", as_json: JsonOption = False) -> None:
    """From a complete listing, the lake and the sinks' snapshots; embeds nothing and writes to no sink."""
    from pipeline.cli_output import print_ledger_rebuild
    from pipeline.stages.rebuild import rebuild_ledger as run_rebuild

    with opened_with_instance(export) as (opened, _):
        rebuilt = asyncio.run(run_rebuild(opened))
    if as_json:
        out.print_json(data=asdict(rebuilt))
    else:
        print_ledger_rebuild(out, rebuilt)
    if rebuilt.unreachable:
        raise typer.Exit(1)


@rebuild_app.command("lake")
def rebuild_lake(export: ExportOption = "default", sink: EverySinkOption = None, as_json: JsonOption = False) -> None:
    """Payloads are fetched and cut again; vectors are read back from a sink, and embedded only where none has them."""
    from pipeline.cli_output import SyncView, lake_rebuild_json, print_lake_rebuild
    from pipeline.orchestration.liveness import command_run
    from pipeline.stages.rebuild import rebuild_lake as run_rebuild

    with opened_with_instance(export) as (opened, _), SyncView(err) as view, command_run("rebuild") as run_id:
        opened.progress = view.progress
        rebuilt = asyncio.run(run_rebuild(opened, run_id=run_id, sinks=sinks_of(opened, sink)))
    if as_json:
        out.print_json(data=lake_rebuild_json(rebuilt))
    else:
        print_lake_rebuild(out, rebuilt, opened.file_names())
    if rebuilt.failures:
        raise typer.Exit(1)


@rebuild_app.command("sink")
def rebuild_sink(name: str, export: ExportOption = "default", as_json: JsonOption = False) -> None:
    """Fill a sink that was lost, damaged or half restored from the lake; files that stand there already are not written again,
    except those of a llama_index sink."""
    from pipeline.cli_output import SyncView, print_sync, sync_summary
    from pipeline.orchestration.launcher import sync
    from pipeline.stages.rebuild import renew_sink

    with opened_with_instance(export) as (opened, instance), SyncView(err) as view:
        opened.check_sink(name)
        asyncio.run(renew_sink(opened, name))
        report = sync(opened.settings, instance, progress=view.progress)
    if as_json:
        out.print_json(data=sync_summary(report))
    else:
        print_sync(out, opened, report)
    if not report.ok:
        raise typer.Exit(1)


@trust_app.command()
def removals(export: ExportOption = "default", as_json: JsonOption = False) -> None:
    """Which files would be deleted from the sinks, and what each waits for."""
    from pipeline.cli_output import print_removals
    from pipeline.stages.remove import pending_removals

    with opened_with_instance(export) as (opened, _):
        waiting = pending_removals(opened)
    if as_json:
        out.print_json(data=[asdict(removal) for removal in waiting])
    else:
        print_removals(out, waiting)


@trust_app.command()
def erase(
    files: Annotated[list[str], typer.Argument(help="Files by id or name; those that have left the directory by id.")],
    export: ExportOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Remove files from every sink, old versions and old models included, and from the lake, for good; prints the proof.

    `indexport release FILE_ID` lifts the tombstone.
    """
    from pipeline.cli_output import print_erasure
    from pipeline.orchestration.liveness import command_run
    from pipeline.stages.erase import erase as run_erase

    with opened_with_instance(export) as (opened, _), command_run("erase") as run_id:
        report = asyncio.run(run_erase(opened, _erasable(opened, files), run_id=run_id))
    if as_json:
        out.print_json(data={**asdict(report), "proved": report.proved})
    else:
        print_erasure(out, report)
    if not report.done:
        raise typer.Exit(1)


@trust_app.command()
def retire(
    export: Annotated[
        str | None, typer.Option("--export", help="Which export, by its name; 'default' with an option below.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Slug of a model that is no longer used.")] = None,
    sink: Annotated[str | None, typer.Option(help="A sink that has left the export's YAML.")] = None,
    allow_deletes: Annotated[
        int, typer.Option(min=0, help="Approve so many deletes of an export that was looked at lately; if it has more, none.")
    ] = 0,
) -> None:
    """Remove an old model's records, or those of a sink that is no longer used; without either all of an export that is in no
    definitions any more."""
    from pipeline.stages.erase import retire as run_retire

    if model is None and sink is None:
        if export is None:
            raise ConfigError("say what to retire: --model SLUG, --sink NAME, or --export NAME of one that is in no definitions")
        _end(export, allow_deletes)
        return
    with opened_with_instance(export or "default") as (opened, _):
        _print_retired(asyncio.run(run_retire(opened, model=model, sink=sink)))


def _end(name: str, allow_deletes: int) -> None:
    from pipeline.home import Home
    from pipeline.orchestration.instance import open_instance
    from pipeline.orchestration.partitions import delete_keys, is_quiet, key_order
    from pipeline.orchestration.resources import without_sinks
    from pipeline.stages.erase import end

    if name in defined_exports():
        raise ConfigError(
            f"say what to retire: --model SLUG or --sink NAME; to end the export {name!r}, take it out of the definitions first"
        )
    with open_instance(Home.from_environment()) as instance:
        ending = without_sinks(name, instance)
        if not is_quiet(instance, name):
            raise ConfigError(f"a run or backfill of {name!r} is unfinished in Dagster; end the export when that has ended")
        _check_that_nobody_looks_at(ending, allow_deletes)
        # The keys first: once the ledger has forgotten the export, it cannot be ended again.
        delete_keys(instance, name, key_order(instance, name))
        _print_retired(asyncio.run(end(ending)))
    out.print(f"{name} has ended: its lake and what the ledger knew of it are gone, but for its erasures", highlight=False)


def _check_that_nobody_looks_at(ending: Export, allow_deletes: int) -> None:
    """Raises ConfigError for an export that may be live in a project whose definitions are not seen here."""
    from pipeline.clock import is_due, when
    from pipeline.home import defs_folder

    looked_at, files = ending.ledger.state().complete_at, len(ending.ledger.files())
    if files > allow_deletes and not is_due(looked_at, _LATELY_SECONDS):
        raise ConfigError(
            f"{ending.name!r} was looked at {when(looked_at)} and may be defined elsewhere than in {defs_folder()}: name that "
            f"folder by INDEXPORT_DEFS; if nothing defines it any more, approve its {files} deletes with --allow-deletes {files}"
        )


def _print_retired(retired: Iterable[Retired]) -> None:
    for done in retired:
        what = "collection dropped" if done.kept is None else f"collection kept: {done.kept}"
        out.print(f"{done.slug} in {done.sink}: {done.files} files removed; {what}", highlight=False)


@trust_app.command()
def prune(
    older_than_days: Annotated[float, typer.Option(min=0, help="Runs made longer ago than this.")],
    export: ExportOption = "default",
) -> None:
    """Delete finished Dagster runs of an export with their logs and events. What is materialized stays shown so."""
    from pipeline.cli_output import SyncView
    from pipeline.orchestration.old_runs import delete_old_runs

    try:
        before = datetime.now(UTC) - timedelta(days=older_than_days)
    except OverflowError as error:
        raise ConfigError(f"--older-than-days {older_than_days}: no date is so many days ago") from error
    with opened_with_instance(export) as (opened, instance), SyncView(err) as view:
        deleted = delete_old_runs(instance, opened.settings, before=before, progress=view.progress)
    out.print(f"{deleted} runs deleted", highlight=False)


def _erasable(opened: Export, names: Iterable[str]) -> list[str]:
    """Also files that are gone, by their ids: a former model's collection may still hold them, or their erasure is to be
    proved again. What has the form of an id is looked for everywhere, known or not: the ledger may have been lost."""
    known, tombstones = KnownFiles(opened), opened.ledger.register.tombstones()
    found = ([name] if _FILE_ID.fullmatch(name) or name in tombstones else known.ever_known(name) for name in names)
    return list(chain.from_iterable(found))
