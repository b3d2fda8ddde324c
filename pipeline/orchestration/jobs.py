"""Jobs of an export: the ingest of any partitions, the verification of its sinks, the removal of files that are gone."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.checks import sink_checks
from pipeline.orchestration.liveness import mark_run
from pipeline.orchestration.metadata import report_metadata
from pipeline.orchestration.resources import Exports
from pipeline.orchestration.waves import SHARED_ASSETS
from pipeline.stages.remove import remove
from pipeline.stages.settings import ExportSettings


class RemovalConfig(dg.Config):
    """Which files to remove; only those the ledger has marked are touched."""

    file_ids: list[str]


def ingest_job(settings: ExportSettings) -> UnresolvedAssetJobDefinition:
    """Every partitioned asset of the export. Sinks are verified when all runs are through, not once a run."""
    assets = [asset_key(settings, asset) for asset in (*SHARED_ASSETS, *settings.sinks)]
    return dg.define_asset_job(
        f"{settings.name}_ingest",
        selection=dg.AssetSelection.assets(*assets) - dg.AssetSelection.checks(*sink_checks(settings)),
        executor_def=dg.in_process_executor,
        description="Payload, chunks, embeddings and sinks of the files in the run's partition range.",
    )


def verification_job(settings: ExportSettings) -> UnresolvedAssetJobDefinition:
    """Every sink compared with its source, by snapshots."""
    return dg.define_asset_job(
        f"{settings.name}_verification",
        selection=dg.AssetSelection.checks(*sink_checks(settings)),
        executor_def=dg.in_process_executor,
        description="Proves that every sink holds the current version of every file and nothing else.",
    )


def removal_job(settings: ExportSettings) -> dg.JobDefinition:
    """Deletes the records of files the index no longer lists; partition-free, idempotent."""

    @dg.op(name=f"{settings.name}_remove_files")
    async def remove_files(context: dg.OpExecutionContext, exports: Exports, config: RemovalConfig) -> None:
        """Delete from every sink and the lake, then log one observation with what went."""
        mark_run(context.instance, context.run)
        export = exports.open(settings, context.instance)
        report = await remove(export, config.file_ids, run_id=context.run_id)
        context.log_event(
            dg.AssetObservation(
                asset_key(settings, DIRECTORY_FILES), metadata={"removed": report.worked, **report_metadata(report)}
            )
        )

    @dg.job(
        name=f"{settings.name}_removal",
        executor_def=dg.in_process_executor,
        description="Removes files that the index no longer lists from every sink.",
    )
    def removal() -> None:
        remove_files()

    return removal
