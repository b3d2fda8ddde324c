"""The resource that opens exports: where the installation lives, read from the environment when a run starts."""

from __future__ import annotations

from functools import lru_cache, partial

import dagster as dg

from pipeline.errors import ConfigError
from pipeline.home import Home
from pipeline.ledger import Ledger
from pipeline.orchestration.liveness import run_is_live
from pipeline.orchestration.pools import limit_pools
from pipeline.stages.export import Export, Progress, silent
from pipeline.stages.settings import ExportSettings


class Exports(dg.ConfigurableResource):  # type: ignore[type-arg]  # dagster's own annotation leaves it open
    """Opens exports by their settings; each is opened once a process, so a model is loaded once."""

    def open(self, settings: ExportSettings, instance: dg.DagsterInstance, progress: Progress = silent) -> Export:
        """The working parts of one export, asking this instance which runs are live; its pools have their limits."""
        limit_pools(settings, instance)
        export = _open(settings.model_dump_json(), Home.from_environment())
        export.run_is_live = partial(run_is_live, instance)
        if progress is not silent:
            export.progress = progress
        return export


EXPORTS = Exports()
"""The one resource every export's definitions share: Dagster merges definitions only when they carry the same object."""


def without_sinks(name: str, instance: dg.DagsterInstance) -> Export:
    """An export of which the ledger alone knows: it is in no definitions any more, and has no sinks at present.

    Raises ConfigError when the ledger does not know it either.
    """
    home = Home.from_environment()
    if not Ledger(home.ledger_url, name).register.is_known():
        raise ConfigError(f"the ledger knows no export {name!r}; check its name")
    settings = ExportSettings(name=name).model_copy(update={"sinks": {}})
    return Export(settings, home, run_is_live=partial(run_is_live, instance))


@lru_cache(maxsize=32)
def _open(settings: str, home: Home) -> Export:
    return Export(ExportSettings.model_validate_json(settings), home)
