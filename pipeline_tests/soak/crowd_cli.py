"""``python -m pipeline_tests.soak.crowd_cli ARGUMENTS``: the command line, whose default export has a sink of every kind of
replace: one commit, generations, a transaction, one writer at a time."""

from __future__ import annotations

from pathlib import Path

import pipeline.stages.settings
from pipeline.cli import main
from pipeline.stages.settings import ExportSettings, load_exports

SINKS = ("lancedb", "qdrant", "pgvector", "storage_context")


def exports(folder: Path) -> dict[str, ExportSettings]:
    """As in the folder, with these sinks."""
    return {
        name: export.model_copy(update={"sinks": {sink: {} for sink in SINKS}}) for name, export in load_exports(folder).items()
    }


if __name__ == "__main__":
    pipeline.stages.settings.load_exports = exports
    main()
