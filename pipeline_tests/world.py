"""A whole installation for a test: a folder, a local cloud over it, an export, a Dagster instance.

Everything is real; only the model may be the constant one, so that a test pays for what it is about.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import dagster as dg
import httpx

from pipeline.documents.arrow import chunks_to_table
from pipeline.documents.chunking import chunk_document
from pipeline.documents.document import build_document
from pipeline.embedding.settings import EmbeddingSettings
from pipeline.home import Home
from pipeline.lake.lake import DATASETS
from pipeline.local_cloud.faults import Faults
from pipeline.local_cloud.server import RunningLocalCloud
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.orchestration.launcher import SyncReport, sync
from pipeline.orchestration.partitions import files_partitions
from pipeline.orchestration.resources import EXPORTS
from pipeline.sinks.records import HASHED_FIELDS, ChunkRecord
from pipeline.stages.chunk import chunk
from pipeline.stages.detect import detect, refresh
from pipeline.stages.embed import embed
from pipeline.stages.export import Export
from pipeline.stages.fetch import fetch
from pipeline.stages.load import load
from pipeline.stages.needs import Needs, needs_of
from pipeline.stages.remove import remove
from pipeline.stages.search import records
from pipeline.stages.settings import ExportSettings
from pipeline.stages.sink_vectors import of_former_use
from pipeline.stages.work import kept

CONSTANT: dict[str, Any] = {"provider": "constant"}


class CloudServer(Protocol):
    """What answers as LlamaCloud on this machine."""

    @property
    def base_url(self) -> str: ...

    @property
    def api_key(self) -> str: ...


class World:
    """One folder of documents and everything that exports it."""

    def __init__(self, root: Path, cloud: CloudServer, instance: dg.DagsterInstance, settings: ExportSettings) -> None:
        self.root = root
        self.cloud = cloud
        self.instance = instance
        self.settings = settings

    @property
    def documents(self) -> Path:
        return self.root / "documents"

    @property
    def export(self) -> Export:
        return EXPORTS.open(self.settings, self.instance)

    def write(self, name: str, text: str) -> None:
        path = self.documents / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def remove(self, name: str) -> None:
        (self.documents / name).unlink()

    def faults(self, **faults: Any) -> None:
        """Set the cloud's faults; none given clears them."""
        answer = httpx.put(
            f"{self.cloud.base_url}/_admin/faults",
            json=Faults(**faults).model_dump(mode="json"),
            headers={"Authorization": f"Bearer {self.cloud.api_key}"},
        )
        answer.raise_for_status()

    def refresh(self) -> None:
        """LlamaCloud takes in the folder as it is now."""
        asyncio.run(refresh(self.export))

    def change(self, **changes: Any) -> None:
        """Other settings from now on, as after an edit of defs.yaml."""
        values = {**self.settings.model_dump(mode="json"), **changes}
        self.settings = ExportSettings.model_validate(values)

    def sync(self) -> SyncReport:
        """Refresh, then one shot."""
        self.refresh()
        return sync(self.settings, self.instance)

    def ingest(self) -> Needs:
        """Refresh, then all that a sync does to ledger, lake and sinks when nothing fails, without Dagster, which takes most of a
        sync's time. Answers what there was to do; fails unless all of it is done."""
        self.refresh()
        return asyncio.run(self._ingest(self.export, str(uuid.uuid4())))

    async def _ingest(self, export: Export, run_id: str) -> Needs:
        detection = await detect(export, complete=True)
        scope = (detection.index.project_id, detection.index.export_config_id)
        export.ledger.register.end_waits()
        needs = needs_of(export, scope)
        made, gone = [*needs.ingest, *needs.alone], [*needs.removing, *needs.removable]
        export.settle(needs.standing, scope)
        export.ledger.mark_removing(needs.removable)
        export.ledger.request(needs.wanted, run_id)
        async with kept(export, run_id):
            if made:
                await fetch(export, made, run_id=run_id)
                await chunk(export, made, run_id=run_id)
                await embed(export, made, run_id=run_id, held=of_former_use(export))
            for sink, lagging in needs.lagging.items():
                if made or lagging:
                    await load(export, sink, [*made, *lagging], run_id=run_id)
            if gone:
                await remove(export, gone, run_id=run_id)
        export.ledger.forget([*needs.removed, *gone], run_id=None)
        assert SyncReport(detection, needs=needs_of(export, scope)).ok
        return needs

    def release_failed(self) -> None:
        """No failed file waits for its next attempt."""
        ledger = self.export.ledger
        ledger.release([file_id for file_id, row in ledger.files().items() if row.status == "failed"])

    def held(self, sink: str = "lancedb") -> list[ChunkRecord]:
        """Every record the sink holds, in order."""

        async def read() -> list[ChunkRecord]:
            return [record async for record in records(self.export, sink)]

        found = asyncio.run(read())
        return sorted(found, key=lambda record: (record.parsed_directory_file_id, record.chunk_index))

    def names(self, sink: str = "lancedb") -> set[str]:
        return {record.file_name for record in self.held(sink)}

    def file_id(self, name: str) -> str:
        return next(file_id for file_id, row in self.export.ledger.files().items() if row.display_name == name)

    def runs(self) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs())

    def numbers(self, asset: str) -> dict[str, Any]:
        """What the last run of an asset said of itself: on its observation, or on the materialization of a lone file."""
        key = dg.AssetKey([self.settings.name, asset])
        materialized = self.instance.fetch_materializations(key, limit=1).records
        observed = self.instance.fetch_observations(key, limit=1).records
        told = [(r.timestamp, r.asset_materialization.metadata) for r in materialized if r.asset_materialization]
        told += [(r.timestamp, r.asset_observation.metadata) for r in observed if r.asset_observation]
        newest = max((each for each in told if "files_worked_on" in each[1]), key=lambda each: each[0])
        return {name: value.value for name, value in newest[1].items()}

    def check_passed(self, asset: str, check: str) -> bool:
        """What Dagster shows of a check that it was told."""
        key = dg.AssetCheckKey(dg.AssetKey([self.settings.name, asset]), check)
        told = self.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key].evaluation
        assert told is not None
        return told.passed

    def partition_statuses(self, asset: str) -> Counter[dg.AssetPartitionStatus | None]:
        """What the UI shows of every known file's partition of an asset."""
        key, files = dg.AssetKey([self.settings.name, asset]), list(self.export.ledger.files())
        return Counter((self.instance.get_status_by_partition(key, files, files_partitions(self.settings.name)) or {}).values())

    def assert_no_partition_is_behind(self) -> None:
        """Dagster shows every partition of every asset as materialized, and no other partitions."""
        rows = self.export.ledger.files()
        assert set(self.instance.get_dynamic_partitions(f"{self.settings.name}_files")) == set(rows)
        shown = {asset: self.partition_statuses(asset) for asset in (*DATASETS, *self.settings.sinks)}
        assert shown == {asset: Counter({dg.AssetPartitionStatus.MATERIALIZED: len(rows)}) for asset in shown}

    def assert_settled(self, sink: str = "lancedb") -> None:
        """The invariant: the sink holds records(payload, chunker, model) of every live file and nothing else."""
        expected = asyncio.run(self._expected())
        held = {
            (record.parsed_directory_file_id, record.chunk_index): {
                name: getattr(record, name) for name in HASHED_FIELDS if name not in ("attachments", "metadata")
            }
            for record in self.held(sink)
        }
        assert held.keys() == expected.keys()
        for key, values in expected.items():
            assert {name: held[key][name] for name in values} == values

    async def _expected(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Computed from the cloud alone, past lake, ledger and sink."""
        export = self.export
        found: dict[tuple[str, int], dict[str, Any]] = {}
        async with export.source() as source:
            files = {file.id: file async for page in source.list_files() for file in page.files}
            async for file, payload in source.fetch_payloads(list(files.values())):
                if isinstance(payload, Exception):
                    raise payload
                document = build_document(payload.pages, payload.attachments)
                chunks = chunk_document(document, self.settings.chunking, export.embedder.tokens, export.embedder.max_tokens)
                for row in chunks_to_table(chunks).drop_columns(["attachments"]).to_pylist():
                    found[file.id, row["chunk_index"]] = {
                        **row,
                        "file_name": file.display_name,
                        "chunk_count": len(chunks),
                        "content_fingerprint_hash": payload.content_fingerprint_hash,
                        "source_modified_at": payload.source_modified_at,
                        "embedding_model": export.embedder.identity.fingerprint,
                    }
        return found


@contextmanager
def open_world(root: Path, **settings: Any) -> Iterator[World]:
    """A world under ``root`` for the time of a test; the environment is put back at the end."""
    (root / "documents").mkdir(parents=True, exist_ok=True)
    cloud_settings = LocalCloudSettings(
        documents=str(root / "documents"), state_dir=root / "cloud", auto_sync_on_start=False, allow_fault_injection=True
    )
    with RunningLocalCloud(cloud_settings) as cloud, world_over(root, cloud, **settings) as world:
        yield world


@contextmanager
def world_over(root: Path, cloud: CloudServer, **settings: Any) -> Iterator[World]:
    """A world whose index is served by ``cloud``; the environment is put back at the end."""
    defaults: dict[str, Any] = {
        "name": "default",
        "embedding": EmbeddingSettings(**CONSTANT),
        "removal": {"grace_period_seconds": 0, "max_delete_fraction": 0.5},
    }
    environment = {
        "INDEXPORT_HOME": str(root / "home"),
        "LLAMA_CLOUD_BASE_URL": cloud.base_url,
        "LLAMA_CLOUD_API_KEY": cloud.api_key,
    }
    with dg.DagsterInstance.ephemeral() as instance, patch.dict(os.environ, environment):
        yield World(root, cloud, instance, ExportSettings(**{**defaults, **settings}))


def home_of(root: Path) -> Home:
    """The installation a world under ``root`` uses."""
    return Home(root / "home")
