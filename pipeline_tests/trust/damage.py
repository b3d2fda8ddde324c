"""Damage to a world's sink, done behind the pipeline's back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import lancedb
import pyarrow as pa

from pipeline.sinks.base import Exporter
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline_tests.world import World

T = TypeVar("T")


def with_exporter(world: World, work: Callable[[Exporter], Awaitable[T]], sink: str = "lancedb", *, provision: bool = True) -> T:
    """Use the sink's own exporter."""

    async def use() -> T:
        exporter = world.export.sink(sink, (await world.export.scope())[0])
        try:
            if provision:
                await exporter.provision()
            return await work(exporter)
        finally:
            await exporter.close()

    return asyncio.run(use())


def held_tables(world: World, sink: str = "lancedb") -> list[pa.Table]:
    """Everything the sink holds of the export, as it lies."""

    async def read(exporter: Exporter) -> list[pa.Table]:
        config = (await world.export.scope())[1]
        return [table async for table in exporter.fetch_records(export_config_id=config)]

    return with_exporter(world, read, sink)


def drop_rows(world: World, where: str, sink: str = "lancedb") -> None:
    _on_table(world, lambda table: table.delete(where), sink)


def alter(world: World, where: str, values: Mapping[str, str], sink: str = "lancedb") -> None:
    """Set columns to SQL expressions."""
    _on_table(world, lambda table: table.update(where=where, updates_sql=dict(values)), sink)


def alter_filtered(world: World, where: str, values: Mapping[str, Any]) -> None:
    """Set fields of LanceDB's column ``metadata``, which filters read; ``None`` removes one."""

    async def write(table: Any) -> None:
        rows = await table.query().where(where).to_arrow()
        position = rows.schema.get_field_index("metadata")
        altered = [{**held, **values} for held in rows["metadata"].to_pylist()]
        field = rows.schema.field("metadata")
        rows = rows.set_column(position, field, pa.array(altered, field.type))
        await table.merge_insert("id").when_matched_update_all().execute(rows)

    _on_table(world, write, "lancedb")


def duplicate_rows(world: World, file_id: str, values: Mapping[str, pa.Scalar], sink: str = "lancedb") -> None:
    """Add a copy of a file's first record under another id, with other values in some columns."""

    async def add(table: Any) -> None:
        query = table.query().where(f"parsed_directory_file_id = '{file_id}' AND chunk_index = 0")
        rows = await query.to_arrow()
        for name, value in {"id": pa.scalar("a-stray"), **values}.items():
            position = rows.schema.get_field_index(name)
            rows = rows.set_column(position, rows.schema.field(name), pa.repeat(value, rows.num_rows))
        await table.add(rows)

    _on_table(world, add, sink)


def _on_table(world: World, work: Callable[[Any], Awaitable[Any]], sink: str) -> None:
    async def use(exporter: Exporter) -> None:
        assert isinstance(exporter, LanceDBExporter)
        database = await lancedb.connect_async(exporter.settings.uri)
        await work(await database.open_table(exporter.table_name))

    with_exporter(world, use, sink)
