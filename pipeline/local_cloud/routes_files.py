"""``/api/v1/beta/files``: stored files, uploaded or produced."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Literal

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response, UploadFile

from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.sync import forget_files
from pipeline.local_cloud.uploads import record_upload, store_upload
from pipeline.local_cloud.wire import CloudPart, PagingPart, answer, base_url, file_json, not_found, page_answer

router = APIRouter(prefix="/api/v1/beta/files")

Purpose = Literal["user_data", "parse", "extract", "classify", "split", "sheet", "agent_app"]
OrderBy = Literal["name", "id", "created_at"]
Expand = Annotated[list[Literal["download_url"]] | None, Query()]

_PLACES: dict[OrderBy | None, str] = {
    None: "seq",
    "name": "row_number() OVER (ORDER BY name, seq)",
    "id": "row_number() OVER (ORDER BY id)",
    "created_at": "row_number() OVER (ORDER BY seq DESC)",
}
"""Where a file stands in a listing. What comes or goes between two pages moves the others, but in the order of creation."""


@router.post("")
async def create_file(
    cloud: CloudPart,
    file: UploadFile,
    purpose: Annotated[Purpose, Form()],
    external_file_id: Annotated[str | None, Form()] = None,
) -> Response:
    stored = await asyncio.to_thread(store_upload, cloud, file.file)

    def record() -> None:
        with cloud.state.transaction() as write:
            name = file.filename or "upload"
            record_upload(write, cloud.now, stored, name=name, purpose=purpose, external_file_id=external_file_id)

    await asyncio.to_thread(record)
    return answer(file_json(file_row(cloud, stored.id)))


@router.get("")
async def list_files(
    request: Request,
    cloud: CloudPart,
    asked: PagingPart,
    file_name: str | None = None,
    file_ids: Annotated[list[str] | None, Query()] = None,
    external_file_id: str | None = None,
    order_by: OrderBy | None = None,
    expand: Expand = None,
) -> Response:
    placed = f"id, name, external_file_id, last_modified_at, purpose, {_PLACES[order_by]} AS seq"
    rows = cloud.state.query(
        f"WITH listed AS (SELECT {placed} FROM file"  # noqa: S608  # our own literals
        " WHERE (? IS NULL OR name = ?) AND (? IS NULL OR external_file_id = ?)"
        " AND (? IS NULL OR id IN (SELECT value FROM json_each(?))))"
        " SELECT * FROM listed WHERE seq > ? ORDER BY seq LIMIT ?",
        file_name,
        file_name,
        external_file_id,
        external_file_id,
        *[json.dumps(file_ids) if file_ids else None] * 2,
        asked.cursor.after,
        asked.size + 1,
    )
    url = base_url(request) if expand else None
    return page_answer([_item(cloud, row, url) for row in rows[: asked.size]], rows, asked)


@router.get("/{file_id}")
async def get_file(request: Request, cloud: CloudPart, file_id: str, expand: Expand = None) -> Response:
    return answer(_item(cloud, file_row(cloud, file_id), base_url(request) if expand else None))


@router.delete("/{file_id}", status_code=204)
async def delete_file(cloud: CloudPart, file_id: str) -> None:
    if file_row(cloud, file_id)["origin"] != "upload":
        raise HTTPException(409, "the file belongs to a directory; delete it there")
    await asyncio.to_thread(_delete, cloud, file_id)


def file_row(cloud: Cloud, file_id: str) -> Row:
    """Raises 404."""
    row = cloud.state.one("SELECT * FROM file WHERE id = ?", file_id)
    if row is None:
        raise not_found("file")
    return row


def _item(cloud: Cloud, row: Row, url: str | None) -> dict[str, object]:
    return file_json(row, cloud.presigned(url, row["id"]) if url is not None else None)


def _delete(cloud: Cloud, file_id: str) -> None:
    with cloud.state.transaction() as write:
        write.execute("UPDATE directory_file SET file_id = NULL, updated_at = ? WHERE file_id = ?", (cloud.now, file_id))
        blobs = forget_files(write, [file_id])
    cloud.blobs.remove(blobs)
