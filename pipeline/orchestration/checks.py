"""Asset checks over the whole export: they read the ledger, so the next clean batch cannot hide a parked file."""

from typing import Any

import dagster as dg

from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.resources import Exports
from pipeline.stages.settings import ExportSettings

INDEX_CHECK = "index_is_healthy"
_TABLE_ROWS = 200


def export_checks(settings: ExportSettings) -> list[dg.AssetChecksDefinition]:
    """The checks of one export."""
    return [_index_is_healthy(settings), _no_file_is_left_behind(settings)]


def index_metadata(status: str | None, message: str | None) -> dict[str, Any]:
    """What the vendor says of the index."""
    return {"status": status or "unknown", **({"vendor_message": message} if message else {})}


def _index_is_healthy(settings: ExportSettings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(settings, DIRECTORY_FILES),
        name=INDEX_CHECK,
        description="The index has not failed; a failure carries LlamaCloud's own message.",
    )
    def check(context: dg.AssetCheckExecutionContext, exports: Exports) -> dg.AssetCheckResult:
        state = exports.open(settings, context.instance).ledger.state()
        return dg.AssetCheckResult(
            passed=state.index_status != "failed", metadata=index_metadata(state.index_status, state.index_error)
        )

    return check


def _no_file_is_left_behind(settings: ExportSettings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(settings, "parsed_payloads"),
        name="no_file_is_left_behind",
        description="No file of the directory is failing or parked.",
    )
    def check(context: dg.AssetCheckExecutionContext, exports: Exports) -> dg.AssetCheckResult:
        rows = exports.open(settings, context.instance).ledger.files().values()
        behind = [row for row in rows if row.status in ("failed", "parked")]
        table = [
            dg.TableRecord({"file": r.display_name, "file_id": r.file_id, "status": r.status, "reason": r.last_error or ""})
            for r in behind[:_TABLE_ROWS]
        ]
        return dg.AssetCheckResult(
            passed=not behind,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"files": len(behind), **({"left_behind": dg.MetadataValue.table(table)} if table else {})},
        )

    return check
