"""``indexport``: a thin face over the stages and the same Dagster assets the UI runs.

What belongs here: arguments, output and exit codes. 0: everything stands; 1: something is left over or failed; 2: the
question or the configuration is wrong. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from contextlib import aclosing
from dataclasses import asdict
from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli_common import (
    ExportOption,
    JsonOption,
    SinkOption,
    err,
    escape_what_the_output_cannot_show,
    fail,
    filters_of,
    open_export,
    opened_with_instance,
    out,
    sinks_of,
)
from pipeline.cli_local import DocumentsOption, cloud_over, local_app
from pipeline.cli_trust import trust_app
from pipeline.errors import DISK_ERRORS, ConfigError, IndexportError, disk_remedy
from pipeline.interpreter import look_for_garbage_less
from pipeline.stages.known_files import KnownFiles

if TYPE_CHECKING:
    from llama_cloud.types.index_create_params import Product

    from pipeline.llama_cloud.models import IndexState

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="LlamaCloud indexes in databases you own.")
index_app = typer.Typer(no_args_is_help=True, help="The LlamaCloud index itself.")
app.add_typer(index_app, name="index")
app.add_typer(local_app)
app.add_typer(trust_app)


class Mode(StrEnum):
    """How to search."""

    vector = "vector"
    text = "text"
    hybrid = "hybrid"


class Attachment(StrEnum):
    """What an index can keep of a file beside its text."""

    screenshots = "screenshots"
    items = "items"


def _print_version(asked: bool) -> None:
    if asked:
        out.print(f"indexport {version('indexport')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    """Options of no command."""


def main() -> None:
    """Run the command line; known errors become one line and an exit code."""
    look_for_garbage_less()
    escape_what_the_output_cannot_show()
    try:
        app()
    except ConfigError as error:
        fail("configuration", str(error))
        sys.exit(2)
    except IndexportError as error:
        fail("error", str(error))
        sys.exit(1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = error.filename or f"standard output, or {os.environ.get('INDEXPORT_HOME') or '.indexport'}"
        fail("error", f"{where}: {error.strerror}; {disk_remedy(error) or 'check its space and rights'}")
        sys.exit(1)


@app.command()
def sync(
    export: ExportOption = "default",
    documents: DocumentsOption = None,
    ask: Annotated[bool, typer.Option("--refresh", help="Ask LlamaCloud to sync the index first, and wait.")] = False,
    allow_deletes: Annotated[int, typer.Option(min=0, help="Approve so many deletes beyond the fuse; if more wait, none.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """One shot, for cron and CI: detect, materialize, remove."""
    from pipeline.cli_output import SyncView, print_sync, sync_summary
    from pipeline.orchestration.instance import open_instance
    from pipeline.orchestration.launcher import sync as run_sync
    from pipeline.stages.detect import refresh, wait_until_ready

    opened = open_export(export)
    with cloud_over(documents) as cloud:
        if allow_deletes:
            opened.ledger.update_state(allowed_deletes=allow_deletes)
        if ask:
            asyncio.run(refresh(opened))
        elif documents:
            asyncio.run(wait_until_ready(opened))
        with SyncView(err) as view, open_instance(opened.home) as instance:
            report = run_sync(opened.settings, instance, progress=view.progress)
        skipped = {"skipped": cloud.skipped()} if cloud else {}
    if as_json:
        out.print_json(data=sync_summary(report) | skipped)
    else:
        print_sync(out, opened, report, documents)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def plan(export: ExportOption = "default", documents: DocumentsOption = None, as_json: JsonOption = False) -> None:
    """What a sync would do: files, chunks and tokens after reuse. Embeds nothing and touches no sink. Exit code 1 when that is
    not all: another run holds files, some cannot be fetched or cut, or the directory could not be read whole."""
    from pipeline.cli_output import plan_summary, print_plan
    from pipeline.orchestration.liveness import command_run
    from pipeline.stages.detect import wait_until_ready
    from pipeline.stages.plan import make_plan

    with opened_with_instance(export) as (opened, _), cloud_over(documents), command_run("plan") as run_id:
        if documents:
            asyncio.run(wait_until_ready(opened))
        made = asyncio.run(make_plan(opened, run_id=run_id))
    if as_json:
        out.print_json(data=plan_summary(made))
    else:
        print_plan(out, export, made)
    if not made.whole:
        raise typer.Exit(1)


@app.command()
def status(export: ExportOption = "default", as_json: JsonOption = False) -> None:
    """What is known of the index, its files and its sinks since the last sync or run; `indexport plan` tells what has changed."""
    from pipeline.cli_output import print_awaiting_approval
    from pipeline.clock import when
    from pipeline.ledger.models import MODEL
    from pipeline.stages.needs import awaiting_approval

    opened = open_export(export)
    state, rows = opened.ledger.state(), opened.ledger.files()
    hashes = opened.ledger.sink_hashes()
    down = {name: known.last_error for name, known in opened.ledger.sink_states().items()}
    by_status = Counter(row.status for row in rows.values())
    current = {
        sink: sum(hashes.get(sink, {}).get(f) == row.record_set_hash is not None for f, row in rows.items())
        for sink in opened.settings.sinks
    }
    waiting = awaiting_approval(opened, rows)
    behind = {f: row.last_error or "" for f, row in rows.items() if row.is_failing}
    if as_json:
        out.print_json(
            data={
                "index": asdict(state),
                "files": by_status,
                "model": {"down": down.get(MODEL)},
                "sinks": {sink: {"files": count, "down": down.get(sink)} for sink, count in current.items()},
                "left_behind": behind,
                "awaiting_approval": waiting,
            }
        )
        return
    out.print(f"index {state.index_status or 'never looked at'}; last complete listing {when(state.complete_at)}")
    table = Table("files", "count")
    for name, count in sorted(by_status.items()):
        table.add_row(name, str(count))
    if reason := down.get(MODEL):
        table.add_row("embedded", f"[red](down: {escape(reason)})[/red]")
    for sink, count in current.items():
        reason = down.get(sink)
        table.add_row(f"in {sink}", f"{count}" + (f" [red](down: {escape(reason)})[/red]" if reason else ""))
    out.print(table, soft_wrap=False)
    print_awaiting_approval(out, len(waiting))
    for file_id, reason in behind.items():
        out.print(f"[yellow]{rows[file_id].status}[/yellow] {escape(f'{rows[file_id].display_name} ({file_id}): {reason}')}")


@app.command()
def search(
    query: str,
    export: ExportOption = "default",
    sink: SinkOption = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many results.")] = 5,
    mode: Annotated[Mode, typer.Option(help="vector, text or hybrid.")] = Mode.vector,
    where: Annotated[
        list[str] | None, typer.Option(help='Filter as key=value or key={"gte": 5}; may be repeated, and all hold.')
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search a sink; every hit cites its file and pages."""
    from pipeline.cli_output import print_hits, record_json
    from pipeline.stages.search import not_loaded
    from pipeline.stages.search import search as run_search

    opened = open_export(export)
    searched = sinks_of(opened, sink)[0]
    try:
        hits = asyncio.run(run_search(opened, searched, query, mode=mode.value, k=k, filters=filters_of(where or [])))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        out.print_json(data=[{"score": hit.score, **record_json(hit.record)} for hit in hits])
        return
    print_hits(out, hits)
    if not hits:
        told = "nothing found"
        if lacking := not_loaded(opened, searched):
            told += f"; files that are not in {searched} yet: {lacking} (`indexport sync` loads them)"
        elif not opened.ledger.files():
            told += f"; {opened.nothing_exported}"
        err.print(escape(told), soft_wrap=True, highlight=False)


@app.command()
def records(
    export: ExportOption = "default",
    sink: SinkOption = None,
    file: Annotated[str | None, typer.Option(help="Only this file, by its id or its name.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a sink holds: one line a record, as JSON lines with --json."""
    from pipeline.cli_output import pages, record_json, snippet
    from pipeline.stages.search import records as held

    opened = open_export(export)
    wanted = None if file is None else KnownFiles(opened).ids_of(file)

    async def show() -> None:
        async with aclosing(held(opened, sinks_of(opened, sink)[0], wanted)) as found:
            async for record in found:
                if as_json:
                    sys.stdout.write(json.dumps(record_json(record), ensure_ascii=False) + "\n")
                else:
                    line = f"{record.file_name} #{record.chunk_index} {pages(record)}: {snippet(record.content)}"
                    out.print(line, markup=False)

    asyncio.run(show())


@app.command()
def history(file: str, export: ExportOption = "default", as_json: JsonOption = False) -> None:
    """Everything that happened to a file, by its id or its name; by its id also when it is gone."""
    from pipeline.clock import when

    opened = open_export(export)
    for file_id in KnownFiles(opened).ever_known(file):
        for event in opened.ledger.history(file_id):
            if as_json:
                sys.stdout.write(json.dumps(asdict(event)) + "\n")
            else:
                out.print(f"{when(event.at)}  {event.event}  {event.details}  run {event.run_id or '-'}", markup=False)


@app.command()
def release(files: list[str], export: ExportOption = "default") -> None:
    """Give failed or parked files a fresh start at the next look; an erased file, by its id, may return."""
    from pipeline.ledger.asker import asker
    from pipeline.stages.release import release as run_release
    from pipeline.stages.tombstones import lift_tombstones

    opened = open_export(export)
    erased = [name for name in files if name in opened.ledger.register.tombstones()]
    # First, for it refuses what is not known: a command that is refused has lifted nothing.
    released = run_release(opened, [name for name in files if name not in erased])
    lift_tombstones(opened, erased)
    opened.ledger.log([(file_id, "released", {"by": asker()}) for file_id in erased], run_id=None)
    out.print(f"{len(released) + len(erased)} files released")


@index_app.command("create")
def index_create(
    source_directory_id: Annotated[str, typer.Argument(help="The directory that holds your documents (dir-...).")],
    name: Annotated[str, typer.Option(help="Name of the new index.")],
    attachment: Annotated[
        list[Attachment] | None, typer.Option(help="Keep page screenshots, or items with their boxes; may be repeated.")
    ] = None,
    product: Annotated[
        list[str] | None,
        typer.Option(help="parse=cfg-... or extract=cfg-...; may be repeated. None: LlamaCloud's default way to parse."),
    ] = None,
    export: ExportOption = "default",
) -> None:
    """Create the index (or find it by name) with vector_target=DISABLED."""
    products = [_product(given) for given in product or []]
    opened = open_export(export)

    async def create() -> IndexState:
        async with opened.source() as source:
            return await source.create_index(source_directory_id, name, products=products, store_attachments=attachment or ())

    index = asyncio.run(create())
    out.print_json(data={"index_id": index.index_id, "export_config_id": index.export_config_id, "status": index.status})


def _product(given: str) -> Product:
    kind, _, config_id = given.partition("=")
    if kind not in ("parse", "extract") or not config_id:
        raise ConfigError(f"a product reads parse=ID or extract=ID of its configuration, not {given!r}")
    return {"product_type": kind, "product_config_id": config_id}


@index_app.command("sync")
def index_sync(
    export: ExportOption = "default",
    wait: Annotated[bool, typer.Option(help="Wait until the index is ready.")] = False,
) -> None:
    """Ask LlamaCloud to sync its index."""
    from pipeline.stages.detect import refresh

    started = asyncio.run(refresh(open_export(export), wait=wait))
    out.print("sync started" if started else "a sync is already running")


@index_app.command("status")
def index_status(export: ExportOption = "default", as_json: JsonOption = False) -> None:
    """What LlamaCloud says of the index now."""
    opened = open_export(export)

    async def get() -> IndexState:
        async with opened.source() as source:
            return await source.get_index()

    index = asyncio.run(get())
    if as_json:
        out.print_json(data=asdict(index))
    else:
        syncing = ", syncing" if index.sync_in_progress else ""
        message = f": {index.error_message}" if index.error_message else ""
        out.print(f"{index.name} ({index.index_id}): {index.status}{syncing}{message}", markup=False)
    if index.status == "failed":
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
