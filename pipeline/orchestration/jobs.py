"""Jobs of an export: the ingest of any partitions, the verification of its sinks, the removal of files that are gone, the repair
of its sinks, the approval of removals that the fuse has stopped, and another try of files that a person names."""

from dataclasses import asdict
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import MAX_RETRIES_TAG
from pydantic import Field

from pipeline.clock import when
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.lake.lake import DATASETS
from pipeline.orchestration.assets import DIRECTORY_FILES, asset_key
from pipeline.orchestration.checks import sink_checks, verification_metadata
from pipeline.orchestration.interrupts import run_work
from pipeline.orchestration.liveness import marking_executor
from pipeline.orchestration.metadata import report_metadata, table
from pipeline.orchestration.partitions import EXPORT_TAG, LANE_TAG
from pipeline.orchestration.resources import Exports
from pipeline.stages.release import release
from pipeline.stages.remove import pending_removals, remove
from pipeline.stages.repair import repair
from pipeline.stages.settings import ExportSettings
from pipeline.stages.work import while_kept

NOT_RETRIED = {MAX_RETRIES_TAG: "0"}
"""Of runs of every job here: the next look asks for what failed, with its back-off. An instance that retries runs would use up
all attempts of a file at once."""


class RemovalConfig(dg.Config):
    """Which files to remove."""

    file_ids: list[str] = Field(
        description="Ids of files (dfl-..., the partition keys), not their names. Only those that the ledger has marked for "
        "removal, because the index does not list them any more, are touched; `indexport erase` removes any."
    )


def removal_config(settings: ExportSettings, file_ids: tuple[str, ...]) -> dict[str, Any]:
    """Run config of the removal job."""
    return {"ops": {_remove_files(settings): {"config": {"file_ids": list(file_ids)}}}}


def removal_tags(settings: ExportSettings) -> dict[str, str]:
    """Tags of a run of the removal job."""
    return {EXPORT_TAG: settings.name, LANE_TAG: "removal"}


def _remove_files(settings: ExportSettings) -> str:
    """The op's name."""
    return f"{settings.name}_remove_files"


class RepairConfig(dg.Config):
    """What to repair, and how closely to look."""

    sink: str | None = Field(default=None, description="The sink to repair; every sink by default.")
    deep: bool = Field(default=True, description="Read every record instead of snapshots alone.")
    allow_deletes: int = Field(
        default=0,
        ge=0,
        description="How many orphans may be deleted beyond the fuse (max_delete_fraction): all that wait, or none go.",
    )


class ApprovalConfig(dg.Config):
    """What a person has approved."""

    count: int = Field(
        ge=0,
        description="How many files may be deleted at the next look, beyond the fuse (max_delete_fraction): as many as wait, or "
        "none goes. 0 is a dry run: it lists what waits, and takes back an approval given before.",
    )


class ReleaseConfig(dg.Config):
    """Which files to try again."""

    files: list[str] = Field(
        description="Names of files, or their ids (dfl-..., the partition keys), which may lie anywhere among the others. "
        "Those that have failed or are parked get a fresh start."
    )
    refetch: bool = Field(
        default=False,
        description="Have the payloads of all of them fetched again, also where nothing has failed or the listing has not moved.",
    )


def ingest_job(settings: ExportSettings) -> UnresolvedAssetJobDefinition:
    """Every partitioned asset of the export, without the checks: they are of the whole export, not of a run's files. The sensor
    tells and asks for them."""
    assets = [asset_key(settings, asset) for asset in (*DATASETS, *settings.sinks)]
    return dg.define_asset_job(
        f"{settings.name}_ingest",
        selection=dg.AssetSelection.assets(*assets).without_checks(),
        executor_def=marking_executor,
        tags=NOT_RETRIED,
        description="Payload, chunks, embeddings and sinks of the files in the run's partition range.",
    )


def verification_job(settings: ExportSettings) -> UnresolvedAssetJobDefinition:
    """Every sink compared with its source, by snapshots."""
    return dg.define_asset_job(
        f"{settings.name}_verification",
        selection=dg.AssetSelection.checks(*sink_checks(settings)),
        executor_def=marking_executor,
        tags=NOT_RETRIED,
        description="Proves that every sink holds the current version of every file and nothing else.",
    )


def removal_job(settings: ExportSettings) -> dg.JobDefinition:
    """Deletes the records of files the index no longer lists; partition-free, idempotent."""

    @dg.op(name=_remove_files(settings))
    def remove_files(context: dg.OpExecutionContext, indexport: Exports, config: RemovalConfig) -> None:
        """Delete from every sink and the lake, then log one observation with what went, and one a sink: nothing is materialized
        by which what is made of a sink would hear of it."""
        export = indexport.open(settings, context.instance)
        try:
            report = run_work(while_kept(export, context.run_id, remove(export, config.file_ids, run_id=context.run_id)))
        except SinkUnavailable as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        # A file that the sensor has asked for may have come back since; a person is told that nothing was done.
        left_out = report.failures if context.has_tag(LANE_TAG) else report.left_out
        if left_out and left_out.keys() == set(config.file_ids):
            raise dg.Failure(report.told(left_out), metadata=report_metadata(report), allow_retries=False)
        context.log_event(
            dg.AssetObservation(
                asset_key(settings, DIRECTORY_FILES), metadata={"removed": report.worked, **report_metadata(report)}
            )
        )
        for sink in settings.sinks:
            context.log_event(dg.AssetObservation(asset_key(settings, sink), metadata={"removed": report.worked}))

    return _job_of(remove_files, f"{settings.name}_removal", "Removes files that the index no longer lists from every sink.")


def repair_job(settings: ExportSettings) -> dg.JobDefinition:
    """Replaces the files of a sink that differ from their source, and no other."""

    @dg.op(name=f"{settings.name}_repair_sinks")
    def repair_sinks(context: dg.OpExecutionContext, indexport: Exports, config: RepairConfig) -> None:
        """Repair, verify again, and log one observation a sink; fails while something still differs."""
        export = indexport.open(settings, context.instance)
        left: list[str] = []
        for sink in [config.sink] if config.sink else list(settings.sinks):
            try:
                report = run_work(
                    repair(export, sink, run_id=context.run_id, deep=config.deep, allow_deletes=config.allow_deletes)
                )
            except ConfigError as error:
                raise dg.Failure(str(error), allow_retries=False) from error
            metadata = {
                "found": len(report.before.findings),
                "replaced": len(report.replaced),
                "orphans_deleted": len(report.deleted),
                "orphans_kept": len(report.kept),
                **verification_metadata(export, report.after),
            }
            context.log_event(dg.AssetObservation(asset_key(settings, sink), metadata=metadata))
            left += [] if report.ok else [sink]
        if left:
            raise dg.Failure(f"not all is repaired in {', '.join(left)}; the observations say what is left", allow_retries=False)

    description = "Replaces the files of a sink that differ from their source from the lake; embeds nothing it has."
    return _job_of(repair_sinks, f"{settings.name}_repair", description)


def approval_job(settings: ExportSettings) -> dg.JobDefinition:
    """Lets deletes through that the fuse has stopped."""

    @dg.op(name=f"{settings.name}_approve")
    def approve(context: dg.OpExecutionContext, indexport: Exports, config: ApprovalConfig) -> None:
        """Note the approval for the sensor's next look, and what waits for it; fails where it lets nothing through."""
        export = indexport.open(settings, context.instance)
        export.ledger.update_state(allowed_deletes=config.count)
        waiting = pending_removals(export)
        rows = [{**asdict(removal), "missing_since": when(removal.missing_since)} for removal in waiting]
        metadata = {"approved": config.count, "waiting": len(waiting)}
        listed = {"files": table(rows)} if rows else {}
        context.log_event(dg.AssetObservation(asset_key(settings, DIRECTORY_FILES), metadata={**metadata, **listed}))
        held_back = sum(removal.waits_for == "approval" for removal in waiting)
        if config.count and held_back:
            export.ledger.update_state(allowed_deletes=0)
            told = f"{held_back} files wait for approval: approve {held_back}; {config.count} lets none of them go"
            raise dg.Failure(told, allow_retries=False)

    description = (
        "Approves the removal of more files than max_delete_fraction lets through; the run shows which wait, and with a count "
        "of 0 does nothing else."
    )
    return _job_of(approve, f"{settings.name}_approve_removals", description)


def release_job(settings: ExportSettings) -> dg.JobDefinition:
    """Has files tried again that people choose."""

    @dg.op(name=f"{settings.name}_release_files")
    def release_files(context: dg.OpExecutionContext, indexport: Exports, config: ReleaseConfig) -> None:
        """Note for the next look which files to ask for, and log them in one observation; fails where there are none."""
        export = indexport.open(settings, context.instance)
        try:
            released = release(export, config.files, refetch=config.refetch, run_id=context.run_id)
        except ConfigError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        if not released:
            told = "none of these files has failed; `refetch: true` has them fetched again all the same"
            raise dg.Failure(told, allow_retries=False)
        rows = [{"file": name, "file_id": file_id} for file_id, name in released.items()]
        metadata: dict[str, Any] = {"released": len(released), "files": table(rows)}
        context.log_event(dg.AssetObservation(asset_key(settings, DIRECTORY_FILES), metadata=metadata))

    description = (
        "Gives failed and parked files a fresh start, as `indexport release` does: the sensor's next look asks for them, in few "
        "runs wherever they lie."
    )
    return _job_of(release_files, f"{settings.name}_release", description)


def _job_of(op: dg.OpDefinition, name: str, description: str) -> dg.JobDefinition:
    """A job of one op."""

    @dg.job(name=name, executor_def=marking_executor, tags=NOT_RETRIED, description=description)
    def job() -> None:
        op()

    return job
