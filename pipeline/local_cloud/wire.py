"""How things look on the wire: JSON objects from database rows, cursors, and small answers built without a model."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from fastapi import Depends, HTTPException, Query, Request, Response

from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.identity import PROJECT_ID, timestamp
from pipeline.local_cloud.sources import merged_metadata
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.sync_runner import SyncRunner

MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 50


async def cloud_of(request: Request) -> Cloud:
    """The server's parts, as put on the application at start-up. Async, or it would be called in a thread."""
    return cast(Cloud, request.app.state.cloud)


async def syncs_of(request: Request) -> SyncRunner:
    return cast(SyncRunner, request.app.state.syncs)


CloudPart = Annotated[Cloud, Depends(cloud_of)]
SyncsPart = Annotated[SyncRunner, Depends(syncs_of)]


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a listing: which page this is (from 1) and the sequence number it starts after."""

    page: int = 1
    after: int = 0

    def token(self) -> str:
        return base64.urlsafe_b64encode(f"{self.page}:{self.after}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Paging:
    """What a listing was asked for."""

    cursor: Cursor
    size: int


async def paging(
    cloud: CloudPart,
    page_size: Annotated[int | None, Query(ge=1)] = None,
    page_token: str | None = None,
) -> Paging:
    """Larger pages than allowed are cut, as the vendor does. A token that is not ours answers 422."""
    cap = cloud.faults.current.page_size_cap or MAX_PAGE_SIZE
    return Paging(read_cursor(page_token), min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, cap))


PagingPart = Annotated[Paging, Depends(paging)]


def not_found(what: str) -> HTTPException:
    return HTTPException(404, f"{what} not found")


def answer(value: object) -> Response:
    """A JSON response; plain ``dumps`` is several times faster than a response model."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(content, media_type="application/json")


def page_answer(items: Sequence[dict[str, Any]], rows: Sequence[Row], asked: Paging, total: int | None = None) -> Response:
    """One page; ``rows`` holds one row more than the page if there is another page, ``items`` only what is shown."""
    more = len(rows) > asked.size
    token = Cursor(asked.cursor.page + 1, rows[asked.size - 1]["seq"]).token() if more else None
    page: dict[str, Any] = {"items": items, "next_page_token": token}
    if total is not None:
        page["total_size"] = total
    return answer(page)


def base_url(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def wire_moment(moment: datetime) -> str:
    """A time from a query as the database writes it; a time without a zone is UTC."""
    return timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def directory_json(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "project_id": PROJECT_ID,
        "type": row["type"],
        "description": row["description"],
        "system_metadata": json.loads(row["system_metadata"]) if row["system_metadata"] else None,
        "connector_subscription_id": row["connector_subscription_id"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "deleted_at": None,
        "expires_at": None,
    }


def directory_file_json(row: Row, download_url: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "directory_id": row["directory_id"],
        "display_name": row["display_name"],
        "project_id": PROJECT_ID,
        "unique_id": row["unique_id"],
        "file_id": row["file_id"],
        "metadata": merged_metadata(row),
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "deleted_at": row["deleted_at"],
        "download_url": download_url,
    }


def file_json(row: Row, download_url: dict[str, Any] | None = None) -> dict[str, Any]:
    suffix = row["name"].rpartition(".")[2] if "." in row["name"] else None
    return {
        "id": row["id"],
        "name": row["name"],
        "project_id": PROJECT_ID,
        "download_url": download_url,
        "expires_at": None,
        "external_file_id": row["external_file_id"],
        "file_type": suffix,
        "last_modified_at": row["last_modified_at"],
        "purpose": row["purpose"],
    }


def index_json(row: Row | Mapping[str, Any], *, with_progress: bool) -> dict[str, Any]:
    value = {
        "id": row["id"],
        "export_config_id": row["export_config_id"],
        "name": row["name"],
        "project_id": PROJECT_ID,
        "source_directory_id": row["source_directory_id"],
        "output_directory_id": row["output_directory_id"],
        "sync_config_id": row["sync_config_id"],
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "last_synced_at": row["last_synced_at"],
        "last_exported_at": row["last_exported_at"],
        "metadata": json.loads(row["metadata"]),
        "description": row["description"],
    }
    if with_progress:
        value["sync_in_progress"] = bool(row["sync_in_progress"])
    return value


def read_cursor(token: str | None) -> Cursor:
    """The place a token stands for, the start without one. Raises 422 for a token that is not ours."""
    if not token:
        return Cursor()
    try:
        page, after = base64.urlsafe_b64decode(token).decode().split(":")
        return Cursor(int(page), int(after))
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "page_token is not one of this server") from error
