"""Asset checks over the whole export: they read the ledger and the sinks' snapshots, so the next clean batch cannot hide a
parked file or a damaged one. None loads the lake."""

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

import dagster as dg

from pipeline.ledger.models import ExportState, FileRow
from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.interrupts import run_work
from pipeline.orchestration.metadata import table
from pipeline.orchestration.resources import Exports
from pipeline.stages.export import Export
from pipeline.stages.needs import awaiting_approval
from pipeline.stages.settings import ExportSettings
from pipeline.stages.verify import SinkVerification, verify

INDEX_CHECK = "index_is_healthy"
FILES_CHECK = "no_file_is_left_behind"
SINK_CHECK = "holds_its_source"

_LEFT_BEHIND = 20
"""Files the check names: it is told anew whenever one more fails or files are loaded. `indexport status` names all."""


def export_checks(settings: ExportSettings) -> list[dg.AssetChecksDefinition]:
    """The checks of one export."""
    held = [_holds_its_source(settings, sink) for sink in settings.sinks]
    return [_index_is_healthy(settings), _no_file_is_left_behind(settings), *held]


def sink_checks(settings: ExportSettings) -> list[dg.AssetCheckKey]:
    """The checks that compare a sink with its source."""
    return [dg.AssetCheckKey(asset_key(settings, sink), SINK_CHECK) for sink in settings.sinks]


def index_check(settings: ExportSettings, state: ExportState) -> dg.AssetCheckEvaluation:
    """Whether the index was healthy at the last look, outside of any run."""
    unusable = state.index_status in ("failed", "empty")
    told = "directory" if state.index_status == "empty" else "vendor_message"
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(settings, DIRECTORY_FILES),
        check_name=INDEX_CHECK,
        passed=not unusable and not state.index_error,
        severity=dg.AssetCheckSeverity.ERROR if unusable else dg.AssetCheckSeverity.WARN,
        metadata={"status": state.index_status or "unknown", **({told: state.index_error} if state.index_error else {})},
    )


def _index_is_healthy(settings: ExportSettings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(settings, DIRECTORY_FILES),
        name=INDEX_CHECK,
        description="The index has not failed (LlamaCloud's own message says why) and is not empty while files are known; a "
        "warning while it names documents that it could not parse.",
    )
    def check(context: dg.AssetCheckExecutionContext, indexport: Exports) -> dg.AssetCheckResult:
        found = index_check(settings, indexport.open(settings, context.instance).ledger.state())
        return dg.AssetCheckResult(passed=found.passed, severity=found.severity, metadata=found.metadata)

    return check


def _no_file_is_left_behind(settings: ExportSettings) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(settings, "parsed_payloads"),
        name=FILES_CHECK,
        description="No file of the directory is failing or parked.",
    )
    def check(context: dg.AssetCheckExecutionContext, indexport: Exports) -> dg.AssetCheckResult:
        export = indexport.open(settings, context.instance)
        found = files_check(settings, export.ledger.files(failing=True))
        return dg.AssetCheckResult(passed=found.passed, severity=found.severity, metadata=found.metadata)

    return check


def files_check(settings: ExportSettings, failing: Mapping[str, FileRow]) -> dg.AssetCheckEvaluation:
    """Whether a file is left behind. Reported by the sensor or a sync after its runs: a check inside a run is evaluated before
    that run's files have failed."""
    rows = [
        {"file": row.display_name, "file_id": row.file_id, "status": row.status, "reason": row.last_error or ""}
        for row in islice(failing.values(), _LEFT_BEHIND)
    ]
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(settings, "parsed_payloads"),
        check_name=FILES_CHECK,
        passed=not failing,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"files": len(failing), **({"left_behind": table(rows)} if rows else {})},
    )


def _holds_its_source(settings: ExportSettings, sink: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_key(settings, sink),
        name=SINK_CHECK,
        description="The sink holds the current version of every file of the directory and nothing else, by its snapshots; a "
        "warning while files that have left the directory wait for approval to be deleted.",
    )
    def check(context: dg.AssetCheckExecutionContext, indexport: Exports) -> dg.AssetCheckResult:
        export = indexport.open(settings, context.instance)
        found = run_work(verify(export, sink))
        waiting = len(awaiting_approval(export, export.ledger.files()))
        return dg.AssetCheckResult(
            passed=found.ok and not waiting,
            severity=dg.AssetCheckSeverity.WARN if found.ok else dg.AssetCheckSeverity.ERROR,
            metadata=verification_metadata(export, found) | ({"awaiting_approval": waiting} if waiting else {}),
        )

    return check


def verification_metadata(export: Export, found: SinkVerification) -> dict[str, Any]:
    """What a verification found, with the findings as a table."""
    metadata: dict[str, Any] = {
        "files": found.files,
        "records": found.records,
        "unsettled": found.unsettled,
        "findings": len(found.findings),
        "seconds": dg.MetadataValue.float(round(found.seconds, 3)),
    }
    metadata |= {f"findings_{kind}": count for kind, count in sorted(Counter(f.kind for f in found.findings).items())}
    if found.findings:
        names = export.file_names()
        metadata["differences"] = table(
            {
                "kind": finding.kind,
                "file": names.get(finding.file_id or "", ""),
                "file_id": finding.file_id or "",
                "chunk": "" if finding.chunk_index is None else str(finding.chunk_index),
                "detail": finding.detail,
            }
            for finding in found.findings
        )
    if found.unchecked:
        metadata["not_checked"] = "; ".join(found.unchecked)
    return metadata
