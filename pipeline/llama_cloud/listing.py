"""Listings of a directory's files.

What belongs here: one page after another of a directory, with or without the files' presigned URLs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from llama_cloud import omit

from pipeline.errors import IncompleteListing
from pipeline.llama_cloud.api import CloudApi
from pipeline.llama_cloud.models import DirectoryFile
from pipeline.llama_cloud.wire import PresignedUrl, UnexpectedAnswer, read_file, read_url


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A listed file and, where asked for, its presigned URL."""

    file: DirectoryFile
    url: PresignedUrl | None


async def directory_pages(
    api: CloudApi,
    directory_id: str,
    *,
    page_size: int,
    page_token: str | None = None,
    updated_from: datetime | None = None,
    updated_to: datetime | None = None,
    with_urls: bool = False,
) -> AsyncIterator[tuple[list[FileEntry], str | None]]:
    """``(entries, token of the next page)``; soft-deleted files are left out. Both time limits are inclusive.

    Raises ``IncompleteListing`` for any failure after the first page, for a file that cannot be read, and for a listing that
    does not end.
    """
    pages = api.pages(
        lambda token: api.client.beta.directories.files.with_raw_response.list(
            directory_id,
            expand=["download_url"] if with_urls else omit,
            page_size=page_size,
            page_token=token,
            project_id=api.project_id,
            updated_at_on_or_after=updated_from,
            updated_at_on_or_before=updated_to,
        ),
        what="directory files",
        setting="payload_directory",
        token=page_token,
    )
    async for items, following in pages:
        try:
            entries = [FileEntry(read_file(item), read_url(item.get("download_url"))) for item in items]
        except UnexpectedAnswer as error:
            raise IncompleteListing(f"the listing of directory files holds {error}") from None
        yield [entry for entry in entries if not entry.file.deleted], following
