"""``/api/v1/beta/directories``: directories themselves."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.identity import random_uuid
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.sync import forget_files
from pipeline.local_cloud.wire import CloudPart, PagingPart, answer, directory_json, not_found, page_answer

router = APIRouter(prefix="/api/v1/beta/directories")

DirectoryType = Literal["user", "index", "ephemeral"]


class DirectoryCreate(BaseModel):
    name: str = Field(min_length=1)
    description: str | None = None
    type: DirectoryType | None = None
    connector_subscription_id: str | None = None
    system_metadata: dict[str, Any] | None = None


class DirectoryUpdate(BaseModel):
    name: str | None = Field(default=None, min_length=1)
    description: str | None = None


def directory_row(cloud: Cloud, directory_id: str) -> Row:
    """Raises 404."""
    row = cloud.state.one("SELECT * FROM directory WHERE id = ?", directory_id)
    if row is None:
        raise not_found("directory")
    return row


@router.post("")
async def create_directory(cloud: CloudPart, body: DirectoryCreate) -> Response:
    directory_id = f"dir-{random_uuid()}"
    await asyncio.to_thread(_insert, cloud, directory_id, body)
    return answer(directory_json(directory_row(cloud, directory_id)))


@router.get("")
async def list_directories(
    cloud: CloudPart,
    asked: PagingPart,
    name: str | None = None,
    of_type: Annotated[DirectoryType | None, Query(alias="type")] = None,
    types: Annotated[list[DirectoryType] | None, Query()] = None,
) -> Response:
    wanted = [*([of_type] if of_type else []), *(types or [])]
    rows = cloud.state.query(
        "SELECT * FROM directory WHERE seq > ? AND (? IS NULL OR name = ?)"
        " AND (? = '[]' OR type IN (SELECT value FROM json_each(?))) ORDER BY seq LIMIT ?",
        asked.cursor.after,
        name,
        name,
        json.dumps(wanted),
        json.dumps(wanted),
        asked.size + 1,
    )
    return page_answer([directory_json(row) for row in rows[: asked.size]], rows, asked)


@router.get("/{directory_id}")
async def get_directory(cloud: CloudPart, directory_id: str) -> Response:
    return answer(directory_json(directory_row(cloud, directory_id)))


@router.patch("/{directory_id}")
async def update_directory(cloud: CloudPart, directory_id: str, body: DirectoryUpdate) -> Response:
    directory_row(cloud, directory_id)
    await asyncio.to_thread(_update, cloud, directory_id, body)
    return answer(directory_json(directory_row(cloud, directory_id)))


@router.delete("/{directory_id}", status_code=204)
async def delete_directory(cloud: CloudPart, directory_id: str) -> None:
    directory_row(cloud, directory_id)
    await asyncio.to_thread(_delete, cloud, directory_id)


def _insert(cloud: Cloud, directory_id: str, body: DirectoryCreate) -> None:
    with cloud.state.transaction() as write:
        if body.connector_subscription_id is not None:
            fed = write.execute(
                "SELECT id FROM directory WHERE connector_subscription_id = ?", (body.connector_subscription_id,)
            ).fetchone()
            if fed is not None:
                message = "the connector subscription feeds another directory"
                raise HTTPException(409, {"message": message, "directory_id": fed["id"]})
        write.execute(
            "INSERT INTO directory"
            " (id, name, type, description, system_metadata, connector_subscription_id, created_at, updated_at)"
            " VALUES (:id, :name, :type, :description, :system_metadata, :connector_subscription_id, :now, :now)",
            {
                **body.model_dump(),
                "id": directory_id,
                "type": body.type or "user",
                "system_metadata": json.dumps(body.system_metadata) if body.system_metadata is not None else None,
                "now": cloud.now,
            },
        )


def _update(cloud: Cloud, directory_id: str, body: DirectoryUpdate) -> None:
    with cloud.state.transaction() as write:
        write.execute(
            "UPDATE directory SET name = coalesce(?, name), description = coalesce(?, description), updated_at = ? WHERE id = ?",
            (body.name, body.description, cloud.now, directory_id),
        )


def _delete(cloud: Cloud, directory_id: str) -> None:
    with cloud.state.transaction() as write:
        used = write.execute(
            'SELECT name FROM "index" WHERE ? IN (source_directory_id, output_directory_id)', (directory_id,)
        ).fetchone()
        if used is not None:
            raise HTTPException(409, f"the directory belongs to index {used['name']!r}; delete the index first")
        payloads = write.execute(
            "SELECT f.id FROM file f JOIN directory_file d ON d.file_id = f.id WHERE d.directory_id = ? AND f.origin = 'payload'",
            (directory_id,),
        ).fetchall()
        blobs = forget_files(write, [row["id"] for row in payloads])
        write.execute("DELETE FROM directory WHERE id = ?", (directory_id,))
    cloud.blobs.remove(blobs)
