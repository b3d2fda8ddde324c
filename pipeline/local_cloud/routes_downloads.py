"""Presigned URLs and the bytes behind them: file content, attachments, ``/_blob/{token}``."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from pipeline.local_cloud.blobs import InvalidToken
from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.documents import UnreadableDocument
from pipeline.local_cloud.faults import PayloadFault, matching_value, spoil
from pipeline.local_cloud.routes_files import file_row
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.wire import CloudPart, PagingPart, answer, base_url, not_found, page_answer

router = APIRouter()

_MAX_URL_SECONDS = 7 * 24 * 3600
_FILE = "SELECT id, name, origin, media_type, encoding, document_path FROM file WHERE id = ?"
_ATTACHMENT = (
    "SELECT a.blob_id AS id, f.name AS name, 'attachment' AS origin, a.media_type AS media_type,"
    " NULL AS encoding, NULL AS document_path"
    " FROM attachment a JOIN file f ON f.id = a.file_id WHERE a.blob_id = ?"
)

UrlSeconds = Annotated[int | None, Query(ge=1, le=_MAX_URL_SECONDS)]


@router.get("/api/v1/beta/files/{file_id}/content")
async def get_content(request: Request, cloud: CloudPart, file_id: str, expires_at_seconds: UrlSeconds = None) -> Response:
    return answer(cloud.presigned(base_url(request), file_row(cloud, file_id)["id"], expires_at_seconds))


@router.get("/api/v1/beta/attachments")
async def list_attachments(cloud: CloudPart, source_id: str, asked: PagingPart) -> Response:
    rows = cloud.state.query(
        "SELECT seq, name, size, last_modified FROM attachment WHERE file_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        _file_id(cloud, source_id),
        asked.cursor.after,
        asked.size + 1,
    )
    shown = rows[: asked.size]
    items = [{"name": row["name"], "size": row["size"], "last_modified": row["last_modified"]} for row in shown]
    return page_answer(items, rows, asked)


@router.get("/api/v1/beta/attachments/{attachment_name:path}")
async def get_attachment(request: Request, cloud: CloudPart, attachment_name: str, source_id: str) -> Response:
    file_id = _file_id(cloud, source_id)
    row = cloud.state.one("SELECT blob_id FROM attachment WHERE file_id = ? AND name = ?", file_id, attachment_name)
    if row is None:
        raise not_found("attachment")
    return answer(cloud.presigned(base_url(request), row["blob_id"]))


@router.get("/_blob/{token}")
async def get_blob(request: Request, cloud: CloudPart, token: str) -> Response:
    """The bytes behind a presigned URL: 403 once it is expired, as object stores answer."""
    try:
        grant = cloud.signer.check(token)
    except InvalidToken as error:
        raise HTTPException(403, "the signature does not match") from error
    if cloud.clock().timestamp() >= grant.expires_at or cloud.faults.take("expired_blob_requests"):
        raise HTTPException(403, "the URL has expired")
    row = cloud.state.one(_FILE, grant.blob_id) or cloud.state.one(_ATTACHMENT, grant.blob_id)
    if row is None:
        raise not_found("object")
    faults = cloud.faults.current
    spoiled = matching_value(row["name"], faults.payloads) if row["origin"] == "payload" else None
    response = await _served(cloud, row, accepts_gzip="gzip" in request.headers.get("accept-encoding", ""), spoiled=spoiled)
    seconds = matching_value(row["name"], faults.slow_bodies)
    return response if seconds is None else await _slowed(response, seconds)


async def _served(cloud: Cloud, row: Row, *, accepts_gzip: bool, spoiled: PayloadFault | None) -> Response:
    if row["origin"] == "upload":
        path = cloud.blobs.path(row["id"])
        if not path.exists():
            raise not_found("object")
        return FileResponse(path, media_type=row["media_type"])
    try:
        if row["document_path"] is not None:
            return Response(await asyncio.to_thread(cloud.folder.read, row["document_path"]), media_type=row["media_type"])
        # Payloads are small and just written; reading one takes less time than handing it to a thread.
        content = cloud.blobs.read(row["id"])
    except (FileNotFoundError, UnreadableDocument) as error:
        raise not_found("object") from error
    if spoiled == "missing":
        raise not_found("object")
    compressed = row["encoding"] == "gzip"
    if spoiled is not None:
        content, compressed = spoil(gzip.decompress(content) if compressed else content, spoiled), False
    if compressed and accepts_gzip:
        return Response(content, media_type=row["media_type"], headers={"Content-Encoding": "gzip", "Vary": "Accept-Encoding"})
    return Response(gzip.decompress(content) if compressed else content, media_type=row["media_type"])


async def _slowed(response: Response, seconds: float) -> StreamingResponse:
    if isinstance(response, FileResponse):
        body = await asyncio.to_thread(Path(response.path).read_bytes)
    else:
        body = bytes(response.body)

    async def halves() -> AsyncIterator[bytes]:
        yield body[: len(body) // 2]
        await asyncio.sleep(seconds)
        yield body[len(body) // 2 :]

    headers = {key: value for key, value in response.headers.items() if key != "content-length"}
    return StreamingResponse(halves(), headers=headers)


def _file_id(cloud: Cloud, source_id: str) -> str:
    """Attachments are asked for by directory-file id or by file id."""
    if source_id.startswith("dfl-"):
        row = cloud.state.one("SELECT file_id FROM directory_file WHERE id = ?", source_id)
    else:
        row = cloud.state.one("SELECT id FROM file WHERE id = ?", source_id)
    if row is None:
        raise not_found("source")
    return str(row[0])
