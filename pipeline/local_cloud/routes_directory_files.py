"""``/api/v1/beta/directories/{id}/files``: what a directory holds."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request, Response, UploadFile
from pydantic import BaseModel, Field

from pipeline.documents.models import MetadataValue
from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.documents import check_metadata, parse_metadata
from pipeline.local_cloud.faults import Faults, matches
from pipeline.local_cloud.identity import random_uuid
from pipeline.local_cloud.routes_directories import directory_row
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.uploads import record_upload, store_upload
from pipeline.local_cloud.wire import (
    CloudPart,
    Paging,
    PagingPart,
    answer,
    base_url,
    directory_file_json,
    not_found,
    page_answer,
    wire_moment,
)

router = APIRouter(prefix="/api/v1/beta/directories/{directory_id}/files")

Expand = Annotated[list[Literal["download_url"]] | None, Query()]


class FileAdd(BaseModel):
    file_id: str
    display_name: str | None = Field(default=None, min_length=1)
    metadata: dict[str, Any] | None = None
    unique_id: str | None = Field(default=None, min_length=1)


class FileUpdate(BaseModel):
    display_name: str | None = Field(default=None, min_length=1)
    metadata: dict[str, Any] | None = None
    target_directory_id: str | None = None
    unique_id: str | None = Field(default=None, min_length=1)


@dataclass(frozen=True, slots=True)
class _Filter:
    """SQL conditions of a listing and their parameters."""

    conditions: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def sql(self) -> str:
        return " AND ".join(("FROM directory_file WHERE directory_id = ?", *self.conditions))


async def file_filter(
    display_name: str | None = None,
    display_name_contains: str | None = None,
    unique_id: str | None = None,
    file_id: str | None = None,
    include_deleted: bool = False,
    updated_at_on_or_after: datetime | None = None,
    updated_at_on_or_before: datetime | None = None,
) -> _Filter:
    """The filters of a listing; both time limits are inclusive."""
    asked = [
        ("display_name = ?", display_name),
        ("instr(lower(display_name), lower(?)) > 0", display_name_contains),
        ("unique_id = ?", unique_id),
        ("file_id = ?", file_id),
        ("updated_at >= ?", wire_moment(updated_at_on_or_after) if updated_at_on_or_after else None),
        ("updated_at <= ?", wire_moment(updated_at_on_or_before) if updated_at_on_or_before else None),
    ]
    used = [(condition, value) for condition, value in asked if value is not None]
    live = () if include_deleted else ("deleted_at IS NULL",)
    return _Filter((*live, *(condition for condition, _ in used)), tuple(value for _, value in used))


@router.get("")
async def list_files(
    request: Request,
    cloud: CloudPart,
    directory_id: str,
    asked: PagingPart,
    wanted: Annotated[_Filter, Depends(file_filter)],
    expand: Expand = None,
) -> Response:
    directory_row(cloud, directory_id)
    wanted_by = (directory_id, *wanted.parameters)
    faults = cloud.faults.current
    if faults.fail_listing_at_page is not None and asked.cursor.page >= faults.fail_listing_at_page:
        raise HTTPException(500, "the listing broke off")
    rows = cloud.state.query(
        f"SELECT * {wanted.sql} AND seq > ? ORDER BY seq LIMIT ?", *wanted_by, asked.cursor.after, asked.size + 1
    )
    count = cloud.state.query(f"SELECT count(*) {wanted.sql}", *wanted_by)[0][0]
    shown = _with_listing_faults(cloud, rows[: asked.size], asked, faults)
    url = base_url(request) if expand else None
    items = [_item(cloud, row, url, faults) for row in shown]
    return page_answer(items, rows, asked, total=count)


@router.post("")
async def add_file(cloud: CloudPart, directory_id: str, body: FileAdd) -> Response:
    directory_row(cloud, directory_id)
    file = cloud.state.one("SELECT * FROM file WHERE id = ?", body.file_id)
    if file is None:
        raise not_found("file")
    metadata = _checked(body.metadata)
    unique_id = body.unique_id or file["external_file_id"] or file["name"]
    display_name = body.display_name or file["name"]
    created = await asyncio.to_thread(_insert, cloud, directory_id, file["id"], display_name, unique_id, metadata)
    return _answer_file(cloud, directory_id, created)


@router.post("/upload")
async def upload_file(
    cloud: CloudPart,
    directory_id: str,
    upload_file: UploadFile,
    display_name: Annotated[str | None, Form(min_length=1)] = None,
    external_file_id: Annotated[str | None, Form()] = None,
    metadata: Annotated[str | None, Form()] = None,
    unique_id: Annotated[str | None, Form(min_length=1)] = None,
) -> Response:
    directory_row(cloud, directory_id)
    try:
        parsed = parse_metadata(metadata) if metadata else {}
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    name = upload_file.filename or "upload"
    stored = await asyncio.to_thread(store_upload, cloud, upload_file.file)

    def record() -> str:
        with cloud.state.transaction() as write:
            record_upload(write, cloud.now, stored, name=name, purpose="user_data", external_file_id=external_file_id)
            unique = unique_id or external_file_id or name
            return _insert_row(write, cloud.now, directory_id, stored.id, display_name or name, unique, parsed)

    return _answer_file(cloud, directory_id, await asyncio.to_thread(record))


@router.get("/{directory_file_id}")
async def get_file(
    request: Request, cloud: CloudPart, directory_id: str, directory_file_id: str, expand: Expand = None
) -> Response:
    row = _row(cloud, directory_id, directory_file_id)
    return answer(_item(cloud, row, base_url(request) if expand else None, cloud.faults.current))


@router.patch("/{directory_file_id}")
async def update_file(cloud: CloudPart, directory_id: str, directory_file_id: str, body: FileUpdate) -> Response:
    row = _row(cloud, directory_id, directory_file_id)
    if body.target_directory_id is not None:
        directory_row(cloud, body.target_directory_id)
        if row["document_path"] is not None or row["build_key"] is not None:
            raise HTTPException(409, "only uploaded files can be moved; this one follows the folder or an index")
    metadata = _checked(body.metadata) if body.metadata is not None else None
    await asyncio.to_thread(_update, cloud, row, body, metadata)
    return _answer_file(cloud, body.target_directory_id or directory_id, directory_file_id)


@router.delete("/{directory_file_id}", status_code=204)
async def delete_file(cloud: CloudPart, directory_id: str, directory_file_id: str) -> None:
    row = _row(cloud, directory_id, directory_file_id)
    await asyncio.to_thread(_delete, cloud, row["id"])


def _row(cloud: Cloud, directory_id: str, directory_file_id: str) -> Row:
    row = cloud.state.one("SELECT * FROM directory_file WHERE id = ? AND directory_id = ?", directory_file_id, directory_id)
    if row is None:
        raise not_found("directory file")
    return row


def _answer_file(cloud: Cloud, directory_id: str, directory_file_id: str) -> Response:
    return answer(directory_file_json(_row(cloud, directory_id, directory_file_id)))


def _item(cloud: Cloud, row: Row, url: str | None, faults: Faults) -> dict[str, Any]:
    unready = bool(faults.null_file_ids) and matches(row["display_name"], faults.null_file_ids)
    link = cloud.presigned(url, row["file_id"]) if url is not None and row["file_id"] is not None and not unready else None
    item = directory_file_json(row, link)
    if unready:
        item["file_id"] = None
    return item


def _with_listing_faults(cloud: Cloud, rows: Sequence[Row], asked: Paging, faults: Faults) -> Sequence[Row]:
    if faults.repeat_items_across_pages and asked.cursor.page > 1:
        rows = [*cloud.state.query("SELECT * FROM directory_file WHERE seq = ?", asked.cursor.after), *rows]
    if faults.hidden_files:
        rows = [row for row in rows if not matches(row["display_name"], faults.hidden_files)]
    return rows


def _checked(metadata: dict[str, Any] | None) -> dict[str, MetadataValue]:
    try:
        return check_metadata(metadata or {})
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


def _insert(
    cloud: Cloud, directory_id: str, file_id: str, display_name: str, unique_id: str, metadata: dict[str, MetadataValue]
) -> str:
    with cloud.state.transaction() as write:
        return _insert_row(write, cloud.now, directory_id, file_id, display_name, unique_id, metadata)


def _insert_row(
    write: sqlite3.Connection,
    now: str,
    directory_id: str,
    file_id: str,
    display_name: str,
    unique_id: str,
    metadata: dict[str, MetadataValue],
) -> str:
    directory_file_id = f"dfl-{random_uuid()}"
    try:
        write.execute(
            "INSERT INTO directory_file"
            " (id, directory_id, display_name, unique_id, file_id, user_metadata, created_at, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (directory_file_id, directory_id, display_name, unique_id, file_id, json.dumps(metadata), now, now),
        )
    except sqlite3.IntegrityError as error:
        raise HTTPException(409, f"unique_id {unique_id!r} is taken in this directory") from error
    return directory_file_id


def _update(cloud: Cloud, row: Row, body: FileUpdate, metadata: dict[str, MetadataValue] | None) -> None:
    with cloud.state.transaction() as write:
        try:
            write.execute(
                "UPDATE directory_file SET display_name = coalesce(?, display_name), unique_id = coalesce(?, unique_id),"
                " user_metadata = coalesce(?, user_metadata), directory_id = coalesce(?, directory_id), updated_at = ?"
                " WHERE id = ?",
                (
                    body.display_name,
                    body.unique_id,
                    json.dumps(metadata) if metadata is not None else None,
                    body.target_directory_id,
                    cloud.now,
                    row["id"],
                ),
            )
        except sqlite3.IntegrityError as error:
            raise HTTPException(409, "unique_id is taken in this directory") from error


def _delete(cloud: Cloud, directory_file_id: str) -> None:
    """A soft delete. A folder's document stays removed until it changes or leaves the folder and returns."""
    with cloud.state.transaction() as write:
        write.execute(
            "UPDATE directory_file SET deleted_at = ?, updated_at = ?, removed_by_user = document_path IS NOT NULL"
            " WHERE id = ? AND deleted_at IS NULL",
            (cloud.now, cloud.now, directory_file_id),
        )
