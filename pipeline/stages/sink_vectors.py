"""Vectors that sinks hold: for a lake that was lost, and for a model that was used before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.documents.arrow import embedding_texts
from pipeline.embedding.reuse import embedding_digest
from pipeline.errors import SINK_ERRORS
from pipeline.sinks.records import matrix
from pipeline.stages.embed import HeldVectors
from pipeline.stages.export import Export
from pipeline.stages.stamps import is_of_present_model
from pipeline.stages.work import opened_sink, read_whole_or_closed


class SinkVectors:
    """Vectors read back from the records of sinks, the first sink that has a text first."""

    def __init__(self, export: Export, sinks: Sequence[str]) -> None:
        self._export = export
        self._sinks = sinks

    async def __call__(self, file_ids: list[str]) -> dict[bytes, npt.NDArray[np.float32]]:
        tenant_id, config = await self._export.scope()
        found: dict[bytes, npt.NDArray[np.float32]] = {}
        for sink in self._sinks:
            try:
                async with opened_sink(self._export, sink, tenant_id) as exporter:
                    if not exporter.holds_vectors:
                        continue
                    held = exporter.fetch_records(export_config_id=config, parsed_directory_file_ids=file_ids)
                    async with read_whole_or_closed(held) as tables:
                        async for table in tables:
                            found = {**await asyncio.to_thread(self._vectors, table), **found}
            except SINK_ERRORS:
                continue  # another sink may have them; what none has is embedded
        return found

    def _vectors(self, table: pa.Table) -> Mapping[bytes, npt.NDArray[np.float32]]:
        """Those of records that another program has left a text and a vector."""
        model = self._export.embedder.identity
        rows = table.filter(pc.equal(table["embedding_model"], model.fingerprint))
        rows = rows.filter(pc.and_(rows["content"].is_valid(), rows["context"].is_valid()))
        found = zip(embedding_texts(rows), matrix(rows["embedding"]), strict=True)
        return {embedding_digest(text): vector for text, vector in found if np.isfinite(vector).all()}


def of_former_use(export: Export) -> HeldVectors | None:
    """The vectors that the sinks hold of the present model where the lake holds another one's: they stand there if that model
    was used before, perhaps in a sink that had another name then. ``None`` while the export has written no collection of the
    present model, or none of another."""
    model = export.embedder.identity
    written = export.ledger.register.collections()
    named = [
        held.sink if held.sink in export.settings.sinks else export.present_name(held)
        for held in written
        if held.slug == model.slug
    ]
    sinks = [sink for sink in dict.fromkeys(named) if sink]
    if not sinks or all(held.slug == model.slug for held in written):
        return None
    in_sinks = SinkVectors(export, sinks)

    async def held(file_ids: list[str]) -> dict[bytes, npt.NDArray[np.float32]]:
        others = await asyncio.to_thread(_embedded_by_another, export, file_ids)
        return await in_sinks(others) if others else {}

    return held


def _embedded_by_another(export: Export, file_ids: list[str]) -> list[str]:
    """Those of these files whose vectors in the lake are another model's."""
    made = [file_id for file_id, row in export.ledger.files(file_ids).items() if row.vectors_key is not None]
    tables = export.lake.read_many("embeddings", made, [])
    return [file_id for file_id, table in tables.items() if not is_of_present_model(export, table)]
