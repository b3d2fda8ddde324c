"""Files that are to be worked on again because a person says so."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.ledger.asker import asker
from pipeline.stages.export import Export
from pipeline.stages.known_files import KnownFiles


def release(export: Export, files: Sequence[str], *, refetch: bool = False, run_id: str | None = None) -> dict[str, str]:
    """Give those of these files, named by id or name, that have failed or are parked a fresh start at the next look; with
    ``refetch`` it asks for all of them, and their payloads are fetched again. Answers their names by their ids.

    Raises ConfigError, before anything is changed, for what no file is called, and for an erased one.
    """
    known, tombstones = KnownFiles(export), export.ledger.register.tombstones()
    found = list(dict.fromkeys(file_id for name in files for file_id in known.unerased_ids_of(name, tombstones)))
    released = {file_id: row.display_name for file_id, row in export.ledger.files(found).items() if refetch or row.is_failing}
    if refetch:
        export.ledger.update_files([{"file_id": file_id, "refetch": True} for file_id in released])
    export.ledger.release(list(released))
    by = {} if run_id else {"by": asker()}
    export.ledger.log([(file_id, "released", by) for file_id in released], run_id=run_id)
    return released
