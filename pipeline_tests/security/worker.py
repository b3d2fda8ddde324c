"""A process that syncs an export as ``indexport sync`` does, with every logger of every library turned up.

``python -m pipeline_tests.security.worker SETTINGS COMMANDS [LOGGER...]``: the export's settings as JSON, commands that are run
after it, each a list of arguments, and loggers that are left as they are; everything else from the environment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress

import dagster as dg

from pipeline import cli
from pipeline.components.index_export import export_definitions
from pipeline.errors import IndexportError
from pipeline.home import Home
from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.launcher import sync
from pipeline.orchestration.resources import EXPORTS
from pipeline.stages.export import Export
from pipeline.stages.search import records
from pipeline.stages.settings import ExportSettings


def main(written: str, commands: str, *quiet: str) -> None:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.INFO)
    settings = ExportSettings.model_validate_json(written)
    with open_instance(Home.from_environment()) as instance:
        try:
            report = sync(settings, instance)
        except IndexportError as error:
            sys.stdout.write(f"failed: {error}\n")
        else:
            sys.stdout.write(f"{report}\n")
        asyncio.run(_show(EXPORTS.open(settings, instance)))
        _tick(settings, instance)
    for command in json.loads(commands):
        sys.argv[1:] = command
        with suppress(SystemExit):
            cli.main()
        sys.stdout.write(f"ended: {' '.join(command)}\n")


async def _show(export: Export) -> None:
    """What the first sink holds."""
    async for record in records(export, next(iter(export.settings.sinks))):
        sys.stdout.write(f"held: {record}\n")


def _tick(settings: ExportSettings, instance: dg.DagsterInstance) -> None:
    """One look of the sensor, for its cursor."""
    definitions = export_definitions(settings)
    assert definitions.resources is not None
    resources = {"indexport": definitions.resources["indexport"]}
    context = dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources)
    answer = definitions.resolve_sensor_def(f"{settings.name}_directory_changes")(context)
    sys.stdout.write(f"cursor: {context.cursor}\nanswer: {answer}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
