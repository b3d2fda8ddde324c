"""``/api/v1/indexes`` and their syncs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.indexes import NewIndex, delete_index, insert_index
from pipeline.local_cloud.routes_directories import directory_row
from pipeline.local_cloud.settings import AttachmentKind
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.sync_runner import SyncConflict
from pipeline.local_cloud.wire import CloudPart, PagingPart, SyncsPart, answer, index_json, not_found, page_answer

router = APIRouter(prefix="/api/v1/indexes")


class Product(BaseModel):
    product_type: Literal["parse"]
    product_config_id: str | None = None


class IndexCreate(BaseModel):
    """This server parses and exports nothing: only the vector target ``DISABLED`` and the product ``parse`` exist."""

    source_directory_id: str
    name: str | None = Field(default=None, min_length=1)
    description: str | None = None
    products: list[Product] | None = None
    store_attachments: list[AttachmentKind] | None = None
    sync_frequency: Literal["manual"] | None = None
    vector_target: Literal["DISABLED"] | None = None


@router.post("")
async def create_index(cloud: CloudPart, syncs: SyncsPart, body: IndexCreate) -> Response:
    """Creates the index and its output directory, and starts the first sync."""
    source = directory_row(cloud, body.source_directory_id)
    if source["type"] == "index":
        raise HTTPException(400, "an index's output directory cannot be a source")
    name = body.name or source["name"]
    new = NewIndex.random(name, body.description, source["id"], tuple(body.store_attachments or ()))
    await asyncio.to_thread(insert_index, cloud, new)
    return answer(index_json(await asyncio.to_thread(syncs.start, new.id), with_progress=False))


@router.get("")
async def list_indexes(cloud: CloudPart, syncs: SyncsPart, asked: PagingPart, source_directory_id: str | None = None) -> Response:
    rows = cloud.state.query(
        'SELECT * FROM "index" WHERE seq > ? AND (? IS NULL OR source_directory_id = ?) ORDER BY seq LIMIT ?',
        asked.cursor.after,
        source_directory_id,
        source_directory_id,
        asked.size + 1,
    )
    return page_answer([index_json(syncs.shown(row), with_progress=False) for row in rows[: asked.size]], rows, asked)


@router.get("/{index_id}")
async def get_index(
    cloud: CloudPart,
    syncs: SyncsPart,
    index_id: str,
    expand: Annotated[list[Literal["sync_in_progress"]] | None, Query()] = None,
) -> Response:
    return answer(index_json(syncs.shown(_row(cloud, index_id)), with_progress=bool(expand)))


@router.delete("/{index_id}", status_code=204)
async def remove_index(cloud: CloudPart, syncs: SyncsPart, index_id: str) -> None:
    row = _row(cloud, index_id)
    if syncs.shown(row)["sync_in_progress"]:
        await _guarded(syncs.cancel, row["id"])
    await asyncio.to_thread(delete_index, cloud, row)


@router.post("/{index_id}/sync")
async def sync_index(cloud: CloudPart, syncs: SyncsPart, index_id: str) -> Response:
    return answer(index_json(await _guarded(syncs.start, _row(cloud, index_id)["id"]), with_progress=True))


@router.post("/{index_id}/sync/cancel")
async def cancel_sync(cloud: CloudPart, syncs: SyncsPart, index_id: str) -> Response:
    return answer(index_json(await _guarded(syncs.cancel, _row(cloud, index_id)["id"]), with_progress=True))


def _row(cloud: Cloud, index_id: str) -> Row:
    """The index by the ids that are accepted. Raises 404."""
    mode = cloud.faults.current.id_mode
    row = cloud.state.one('SELECT * FROM "index" WHERE ? IN (id, export_config_id)', index_id)
    if row is None or (mode != "both" and row[mode] != index_id):
        raise not_found("index")
    return row


async def _guarded(action: Callable[[str], Row], index_id: str) -> Row:
    try:
        return await asyncio.to_thread(action, index_id)
    except SyncConflict as conflict:
        raise HTTPException(409, str(conflict)) from conflict
