"""What Dagster is told of a look at the directory, outside of any run: what was found, and whether the index is healthy."""

from __future__ import annotations

import dagster as dg

from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.checks import INDEX_CHECK, index_check
from pipeline.stages.detect import Detection
from pipeline.stages.export import Export
from pipeline.stages.needs import Needs

DirectoryEvent = dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation


def directory_events(
    instance: dg.DagsterInstance, export: Export, detection: Detection, needs: Needs | None = None, *, runs: int = 0
) -> list[DirectoryEvent]:
    """Nothing where the look found nothing new and Dagster knows of the index what the ledger does.

    The check is compared with what Dagster was told last, by whomever: a sensor and commands look at one index in turn, and a
    look may die before its events are stored. ``needs`` is missing where a failed index leaves nothing to decide.
    """
    check = index_check(export.settings, export.ledger.state())
    if not (detection.new or detection.changed or detection.missing or _is_news(instance, check)):
        return []
    found = {
        "look": detection.look,
        "new": detection.new,
        "changed": detection.changed,
        "missing": detection.missing,
        "runs": runs,
    }
    if needs:
        found |= {"parked": len(needs.parked), "awaiting_approval": len(needs.awaiting_approval)}
    return [dg.AssetObservation(asset_key(export.settings, DIRECTORY_FILES), metadata=found), check]


def _is_news(instance: dg.DagsterInstance, check: dg.AssetCheckEvaluation) -> bool:
    key = dg.AssetCheckKey(check.asset_key, INDEX_CHECK)
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    told = record.evaluation if record else None
    return told is None or (told.passed, told.metadata) != (check.passed, check.metadata)
