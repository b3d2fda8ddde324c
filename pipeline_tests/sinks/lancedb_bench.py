"""What the LanceDB sink's tests share: the table as others see it, and exporters of some settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb

from pipeline.sinks.base import MetadataType, SinkContext
from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings
from pipeline_tests.conformance.harness import MODEL

TABLE = f"indexport_{MODEL.slug}"


async def raw_table(tmp_path: Path) -> Any:
    """The table as another program opens it."""
    return await (await lancedb.connect_async(str(tmp_path))).open_table(TABLE)


def exporter_with(tmp_path: Path, fields: dict[str, MetadataType], tenant: str = "prj-1", **settings: Any) -> LanceDBExporter:
    return LanceDBExporter(LanceDBSettings(uri=str(tmp_path), **settings), SinkContext(tenant, MODEL, fields))
