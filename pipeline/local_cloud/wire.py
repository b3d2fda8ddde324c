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
        **_values(row, "id", "name", "type", "description", "connector_subscription_id", "created_at", "updated_at"),
        "project_id": PROJECT_ID,
        "system_metadata": json.loads(row["system_metadata"]) if row["system_metadata"] else None,
        "deleted_at": None,
        "expires_at": None,
    }


def directory_file_json(row: Row, download_url: dict[str, Any] | None = None) -> dict[str, Any]:
    names = ("id", "directory_id", "display_name", "unique_id", "file_id", "created_at", "updated_at", "deleted_at")
    return {
        **_values(row, *names),
        "project_id": PROJECT_ID,
        "metadata": merged_metadata(row),
        "download_url": download_url,
    }


def file_json(row: Row, download_url: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        **_values(row, "id", "name", "external_file_id", "last_modified_at", "purpose"),
        "project_id": PROJECT_ID,
        "download_url": download_url,
        "expires_at": None,
        "file_type": row["name"].rpartition(".")[2] if "." in row["name"] else None,
    }


def index_json(row: Row | Mapping[str, Any], *, with_progress: bool) -> dict[str, Any]:
    ids = ("id", "export_config_id", "source_directory_id", "output_directory_id", "sync_config_id")
    times = ("created_at", "updated_at", "last_synced_at", "last_exported_at")
    value = {
        **_values(row, *ids, "name", "description", *times),
        "project_id": PROJECT_ID,
        "metadata": json.loads(row["metadata"]),
    }
    return value | ({"sync_in_progress": bool(row["sync_in_progress"])} if with_progress else {})


def _values(row: Row | Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Columns that clients see as they are."""
    return {name: row[name] for name in names}


def read_cursor(token: str | None) -> Cursor:
    """The place a token stands for, the start without one. Raises 422 for a token that is not ours."""
    if not token:
        return Cursor()
    try:
        page, after = base64.urlsafe_b64decode(token).decode().split(":")
        return Cursor(int(page), int(after))
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "page_token is not one of this server") from error
