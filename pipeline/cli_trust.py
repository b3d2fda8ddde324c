"""Commands that prove and restore: verify, repair, rebuild, removals, erase, retire.

What belongs here: arguments, output and exit codes, as in ``cli``.
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli_common import EverySinkOption, ExportOption, JsonOption, await_now, opened_with_instance, out, sinks_of

trust_app = typer.Typer(no_args_is_help=True)


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
        found = [await_now(run_verify(opened, name, deep=deep)) for name in sinks_of(opened, sink)]
    if as_json:
        out.print_json(data=[verification_json(one) for one in found])
    else:
        names = {file_id: row.display_name for file_id, row in opened.ledger.files().items()}
        for one in found:
            print_verification(out, one, names)
    if not all(one.ok for one in found):
        raise typer.Exit(1)
