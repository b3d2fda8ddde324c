"""The partitioned-by-file assets of an export: thin faces of the stages.

Every asset reads its partition keys once, fails on an empty or unexpected set, and carries the same backfill policy, so
that people can backfill any selection and Dagster never splits a run by policy.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator
from pydantic import Field

from pipeline.documents.arrow import CHUNK_FIELDS, PAGE_FIELDS
from pipeline.documents.chunking import chunker_versions
from pipeline.errors import ConfigError, LakeError, Unavailable
from pipeline.lake.lake import Dataset
from pipeline.orchestration.event_batches import FILE
from pipeline.orchestration.interrupts import run_work
from pipeline.orchestration.metadata import column_schema, report_metadata
from pipeline.orchestration.partitions import FILES_TAG, files_partitions
from pipeline.orchestration.pools import embedding_pool, pool_of
from pipeline.orchestration.resources import Exports
from pipeline.sinks.records import RECORD_VERSION, record_schema
from pipeline.sinks.registry import import_sdk
from pipeline.stages.chunk import chunk
from pipeline.stages.embed import embed
from pipeline.stages.export import Export
from pipeline.stages.fetch import fetch
from pipeline.stages.load import load
from pipeline.stages.report import StageReport
from pipeline.stages.settings import ExportSettings
from pipeline.stages.sink_vectors import of_former_use
from pipeline.stages.work import while_kept

OWNERS = ["team:data-platform"]
DIRECTORY_FILES = "directory_files"

RECORD_FIELDS = tuple(record_schema(1))
VECTOR_FIELDS = (pa.field("embedding_digest", pa.binary(16)), record_schema(1).field("embedding"))

Stage = Callable[..., Awaitable[StageReport]]
"""Given an export, file ids and, by name, ``run_id``."""


class FetchConfig(dg.Config):
    """Launch-time choice of ``parsed_payloads``."""

    refetch: bool = Field(default=False, description="Fetch payloads again even where the listing has not moved.")


def export_assets(settings: ExportSettings) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Every asset of one export, from the external listing to one asset a sink."""
    shared = (_parsed_payloads(settings), _chunks(settings), _embeddings(settings))
    return [_directory_files(settings), *shared, *(_sink_asset(settings, sink) for sink in settings.sinks)]


def asset_key(settings: ExportSettings, asset: str) -> dg.AssetKey:
    """``[<export>, <asset>]``."""
    return dg.AssetKey([settings.name, asset])


def _directory_files(settings: ExportSettings) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(settings, DIRECTORY_FILES),
        description="What the LlamaCloud index lists. Observed by the sensor once a changed look; never materialized by hand.",
        group_name=settings.name,
        kinds={"llamaindex"},
        owners=OWNERS,
    )


def _file_asset(
    settings: ExportSettings,
    name: str,
    compute: Callable[..., Any],
    *,
    deps: str,
    kinds: set[str],
    code: object,
    columns: Sequence[pa.Field],
    pool: str | None = None,
    description: str,
) -> dg.AssetsDefinition:
    """``code``: what decides the rows of a file, as JSON values. A setting that moves no digest of the ledger is not among it:
    Dagster would show as stale what no run would make anew."""
    return dg.asset(
        name=name,
        key_prefix=[settings.name],
        deps=[asset_key(settings, deps)],
        group_name=settings.name,
        kinds=kinds,
        owners=OWNERS,
        pool=pool,
        description=description,
        partitions_def=files_partitions(settings.name),
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=settings.detection.files_per_run),
        code_version=hashlib.sha256(json.dumps(code, sort_keys=True, default=str).encode()).hexdigest()[:12],
        metadata={"dagster/column_schema": column_schema(columns)},
    )(compute)


def _parsed_payloads(settings: ExportSettings) -> dg.AssetsDefinition:
    def compute(context: dg.AssetExecutionContext, indexport: Exports, config: FetchConfig) -> dg.MaterializeResult[Any]:
        return _run(context, indexport, settings, partial(fetch, refetch=config.refetch), "parsed_payloads")

    return _file_asset(
        settings,
        "parsed_payloads",
        compute,
        deps=DIRECTORY_FILES,
        kinds={"llamaindex", "parquet"},
        code=None,  # settings choose the files, and none of them what LlamaCloud has parsed of one
        columns=PAGE_FIELDS,
        description="One row a page: text, header, footer, items, attachments, as LlamaCloud parsed the file.",
    )


def _chunks(settings: ExportSettings) -> dg.AssetsDefinition:
    def compute(context: dg.AssetExecutionContext, indexport: Exports) -> dg.MaterializeResult[Any]:
        return _run(context, indexport, settings, chunk, "chunks")

    return _file_asset(
        settings,
        "chunks",
        compute,
        deps="parsed_payloads",
        kinds={"python", "parquet"},
        code=(chunker_versions(), settings.chunking.model_dump(mode="json"), settings.embedding.deciding_chunks()),
        columns=CHUNK_FIELDS,
        description="One row a chunk: an exact slice of the document with its pages, tokens and context.",
    )


def _embeddings(settings: ExportSettings) -> dg.AssetsDefinition:
    def compute(context: dg.AssetExecutionContext, indexport: Exports) -> dg.MaterializeResult[Any]:
        async def stage(export: Export, keys: list[str], *, run_id: str) -> StageReport:
            held = await asyncio.to_thread(of_former_use, export)
            for kind in _sinks_of_the_run(context, settings):  # while the model computes: LanceDB's takes half a second
                asyncio.get_running_loop().run_in_executor(None, import_sdk, kind)
            return await embed(export, keys, run_id=run_id, held=held)

        return _run(context, indexport, settings, stage, "embeddings")

    return _file_asset(
        settings,
        "embeddings",
        compute,
        deps="chunks",
        kinds={"python", "parquet"},
        code=settings.embedding.deciding_vectors(),
        columns=[*CHUNK_FIELDS, *VECTOR_FIELDS],
        pool=embedding_pool(settings),
        description="Chunk rows with their vectors; a text embedded before under the same model is not embedded again.",
    )


def _sinks_of_the_run(context: dg.AssetExecutionContext, settings: ExportSettings) -> set[str]:
    """The kinds of the sinks this run loads."""
    chosen = context.run.asset_selection
    return {pool_of(settings, sink) for sink in settings.sinks if not chosen or asset_key(settings, sink) in chosen}


def _sink_asset(settings: ExportSettings, sink: str) -> dg.AssetsDefinition:
    def compute(context: dg.AssetExecutionContext, indexport: Exports) -> dg.MaterializeResult[Any]:
        return _run(context, indexport, settings, lambda export, keys, run_id: load(export, sink, keys, run_id=run_id))

    kind = pool_of(settings, sink)
    return _file_asset(
        settings,
        sink,
        compute,
        deps="embeddings",
        kinds={kind},
        code=(RECORD_VERSION, settings.sinks[sink]),  # one that is set up otherwise may be another place
        columns=RECORD_FIELDS,
        pool=kind,
        description=f"The records of every file in {sink}, replaced file by file.",
    )


def _run(
    context: dg.AssetExecutionContext, indexport: Exports, settings: ExportSettings, stage: Stage, dataset: Dataset | None = None
) -> dg.MaterializeResult[Any]:
    keys = _partition_keys(context)
    export = indexport.open(settings, context.instance)
    try:
        report = run_work(while_kept(export, context.run.run_id, stage(export, keys, run_id=context.run.run_id)))
    except (Unavailable, ConfigError, LakeError) as error:
        raise dg.Failure(str(error), allow_retries=isinstance(error, Unavailable)) from error
    left_out = report.left_out
    if len(left_out) == len(keys):
        raise dg.Failure(report.told(left_out), metadata=report_metadata(report), allow_retries=False)
    for file_id, reason in left_out.items():
        context.log.warning("left out of the batch: %s: %s", report.named(file_id), reason)
    _name_files(context, report.names)
    metadata: dict[str, Any] = {"dagster/uri": export.lake.uri(dataset)} if dataset else {}
    if len(keys) == 1:
        metadata |= report_metadata(report)
    else:
        # A result's metadata is repeated on the event of every file: what is said of the run goes on one observation.
        metadata["files_in_run"] = len(keys)
        context.log_event(dg.AssetObservation(context.asset_key, metadata=report_metadata(report)))
    return dg.MaterializeResult(metadata=metadata)


def _name_files(context: dg.AssetExecutionContext, names: Mapping[str, str]) -> None:
    """Have the event of every file name it, for whoever looks at its partition: as Dagster's ``add_asset_metadata`` does, which
    asks the database for all partitions at each call, 3 ms a file and asset."""
    step = context.get_step_execution_context()
    told = dict(step._metadata_accumulator.per_output_metadata)
    for file_id, name in names.items():
        told[AssetMetadataHandle(asset_key=context.asset_key, partition_key=file_id)] = {FILE: name}
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=told)


def _partition_keys(context: dg.AssetExecutionContext) -> list[str]:
    """The run's keys, read once: each access asks the database. Fails where there are none to read, and where reordering has
    emptied or changed a range."""
    if not (context.has_partition_key or context.has_partition_key_range):
        raise dg.Failure(
            "this run carries no files: choose partitions of the export's assets to materialize", allow_retries=False
        )
    keys = list(context.partition_keys)
    expected = context.run.tags.get(FILES_TAG)
    if not keys or (expected is not None and len(keys) != int(expected)):
        raise dg.Failure(
            f"this run was asked for {expected or 'some'} files but its range now holds {len(keys)}; "
            "the next look at the directory asks for them again",
            allow_retries=False,
        )
    return keys
