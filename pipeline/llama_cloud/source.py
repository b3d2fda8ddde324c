"""The source: one LlamaCloud index and the payloads of its files.

What belongs here: the face of this package. Everything else in the project reads LlamaCloud through ``LlamaCloudSource``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Self

import httpx
from llama_cloud import DEFAULT_MAX_RETRIES
from llama_cloud.types.index_create_params import Product
from pydantic import SecretStr

from pipeline.errors import (
    ConfigError,
    IndexportError,
    PayloadError,
    PayloadOutOfReach,
    SourceUnavailable,
    SyncFailed,
    Throttled,
)
from pipeline.llama_cloud.addresses import AddressPolicy
from pipeline.llama_cloud.api import CloudApi, KeyRefused, Rejected, ServerFailed
from pipeline.llama_cloud.bulk import batches_with_urls, in_completion_order
from pipeline.llama_cloud.decoding import GZIP_MAGIC
from pipeline.llama_cloud.download import PayloadDownloader, RetryPolicy
from pipeline.llama_cloud.indexes import IndexClient
from pipeline.llama_cloud.listing import FileEntry, directory_pages
from pipeline.llama_cloud.models import DirectoryFile, IndexState, ListingPage, Payload
from pipeline.llama_cloud.normalise import normalise_payload
from pipeline.llama_cloud.settings import LlamaCloudSettings
from pipeline.llama_cloud.wire import PresignedUrl, read_url

_NORMALISED_INLINE_BYTES = 128 * 1024
"""Below this a thread costs more than the parsing it takes off the event loop (a millisecond or two)."""
_FIRST_PAUSE = 1 / 32
"""Seconds; each pause of a wait is twice the one before. The sync of a small folder is over in a moment."""
_LONGEST_PAUSE = 5.0
"""LlamaCloud's free tier takes 20 requests a minute."""
_LONGEST_LOCAL_PAUSE = 0.5
_SHOWS_WITHIN_SECONDS = 30.0
"""From LlamaCloud's yes to a sync until the index shows it."""


class LlamaCloudSource:
    """An async context manager, for one event loop.

    ``api_key`` and ``base_url`` default to the environment (``LLAMA_CLOUD_API_KEY``, ``LLAMA_CLOUD_BASE_URL``).
    ``max_retries`` is for API requests, ``download_retries`` for presigned URLs.
    ``transport`` replaces the network of both the API and the downloads, and with it the guard on addresses.

    Every method may raise ``SourceUnavailable`` (unreachable, throttled, key refused) and ``ConfigError`` (a setting names
    something that does not exist).
    """

    def __init__(
        self,
        settings: LlamaCloudSettings,
        *,
        api_key: SecretStr | None = None,
        base_url: str | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        download_retries: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self._api = CloudApi(
            api_key=api_key,
            base_url=base_url,
            project_id=settings.project_id,
            requests_per_second=settings.requests_per_second,
            max_retries=max_retries,
            transport=transport,
        )
        self._index = IndexClient(self._api, settings)
        self._downloader = PayloadDownloader(
            self._presigned_url,
            addresses=AddressPolicy(settings.allow_private_addresses, trusted_host=self._api.host),
            max_payload_bytes=settings.max_payload_bytes,
            max_concurrent=settings.max_concurrent_downloads,
            retries=download_retries,
            transport=transport,
        )
        self._directory_id: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._downloader.__aexit__(exc_type, exc, traceback)
        await self._api.close()

    async def get_index(self) -> IndexState:
        """The index as it is now (one request). Listings made after it use the directory it names."""
        return self._settle_directory(await self._index.get())

    async def create_index(
        self,
        source_directory_id: str,
        name: str,
        *,
        products: Sequence[Product] = (),
        store_attachments: Sequence[str] = (),
    ) -> IndexState:
        """The index of that name over that directory; made, without the vendor's vector export, unless it exists.

        ``store_attachments``: any of ``screenshots`` and ``items``. The vendor starts the first sync by itself. The source
        reads this index from then on.
        """
        state = await self._index.create(source_directory_id, name, products=products, store_attachments=store_attachments)
        return self._settle_directory(state)

    async def start_sync(self) -> bool:
        """Ask for a sync of the index; ``False``: one is running already. Raises ``Throttled`` if it is refused and none is."""
        before = await self.get_index()
        started = await self._index.start_sync()
        if not started:
            _check_running(before, await self.get_index())
        return started

    async def sync(self, timeout: float) -> bool:  # noqa: ASYNC109 - a limit on LlamaCloud
        """Ask for a sync and wait for its end, ``timeout`` seconds at most; ``False``: it was another's that began meanwhile.

        A sync that is running already may have read the directory before its last change: its end is waited for, and a sync
        is asked for once more. Raises as ``start_sync`` and ``wait_until_ready``.
        """
        before = await self.get_index()
        started = await self._index.start_sync()
        if not started:
            before = await self._wait_until_idle(timeout, since=before)
            started = await self._index.start_sync()
        after = await self._wait_until_idle(timeout, since=before)
        if not started:
            _check_running(before, after)
        _check_ready(after)
        return started

    async def wait_until_ready(self, timeout: float) -> IndexState:  # noqa: ASYNC109 - a limit on LlamaCloud
        """Poll until the index is ready and not syncing.

        Raises ``SyncFailed`` with the vendor's message when it reports ``failed``, ``SourceUnavailable`` after ``timeout``
        seconds.
        """
        return _check_ready(await self._wait_until_idle(timeout))

    async def _wait_until_idle(
        self,
        timeout: float,  # noqa: ASYNC109 - a limit on LlamaCloud
        since: IndexState | None = None,
    ) -> IndexState:
        """Poll, soon at first, then ever later. An index that is as it was before a sync was asked for (``since``) has not
        begun with it; it is given half a minute to."""
        clock = asyncio.get_running_loop().time
        began = clock()
        pause = _FIRST_PAUSE
        while True:
            state = await self.get_index()
            waited = clock() - began
            moved = since is None or state.change_key != since.change_key
            if state.idle and (moved or waited >= _SHOWS_WITHIN_SECONDS):
                return state
            if waited >= timeout:
                raise SourceUnavailable(f"index {state.name!r} is not ready after {timeout:g} seconds (status {state.status})")
            await asyncio.sleep(min(pause, timeout - waited))
            pause = min(2 * pause, _LONGEST_LOCAL_PAUSE if self._api.is_local else _LONGEST_PAUSE)

    async def list_files(
        self, *, updated_since: datetime | None = None, page_token: str | None = None
    ) -> AsyncGenerator[ListingPage]:
        """Page after page of the payload directory; resumable from the token of the last page seen.

        ``updated_since`` is inclusive. Soft-deleted files are left out. The API gives no snapshot and no order: a file may be on
        two pages, of which the later one counts, and one that moves meanwhile on none. Raises ``IncompleteListing`` when it
        stops half way, also when LlamaCloud no longer accepts ``page_token``.
        """
        pages = directory_pages(
            self._api,
            await self._directory(),
            page_size=self._settings.page_size,
            page_token=page_token,
            updated_from=updated_since,
        )
        async for entries, following in pages:
            yield ListingPage(files=tuple(entry.file for entry in entries), next_page_token=following)

    async def fetch_payloads(
        self, files: Sequence[DirectoryFile]
    ) -> AsyncGenerator[tuple[DirectoryFile, Payload | PayloadError]]:
        """The payloads of many files, in the order they arrive; what is wrong with one file takes its payload's place.

        At most ``max_concurrent_downloads`` are in flight. ``SourceUnavailable`` (key refused, throttled) ends it: no other file
        would fare better. Whose fault ``PayloadOutOfReach`` is, is for the caller to tell, who sees how many of them come.
        """

        async def outcome(entry: FileEntry) -> tuple[DirectoryFile, Payload | PayloadError]:
            try:
                return entry.file, await self._fetch(entry)
            except PayloadError as error:
                return entry.file, error

        batches = batches_with_urls(files, self._pages_with_urls)
        async with aclosing(in_completion_order(batches, outcome, limit=self._settings.max_concurrent_downloads)) as pairs:
            async for pair in pairs:
                yield pair

    async def _pages_with_urls(self, start: datetime | None, end: datetime | None) -> AsyncGenerator[list[FileEntry]]:
        """Only saves requests, so that it ends where it fails; but throttling, like a refused key, meets single requests too."""
        pages = directory_pages(
            self._api,
            await self._directory(),
            page_size=self._settings.page_size,
            updated_from=start,
            updated_to=end,
            with_urls=True,
        )
        try:
            async for entries, _ in pages:
                yield entries
        except (Rejected, SourceUnavailable) as error:
            if _meets_every_request(error):
                raise

    async def _fetch(self, entry: FileEntry) -> Payload:
        body = await self._downloader.download(entry.file, entry.url)
        limit = self._settings.max_payload_bytes
        if len(body) <= _NORMALISED_INLINE_BYTES and not body.startswith(GZIP_MAGIC):
            return normalise_payload(body, entry.file, max_bytes=limit)
        return await asyncio.to_thread(normalise_payload, body, entry.file, max_bytes=limit)

    async def _presigned_url(self, file: DirectoryFile) -> PresignedUrl:
        """A fresh URL of one file's payload."""
        if file.file_id is None:
            raise PayloadError(
                file.id, f"the payload of {file.display_name!r} is not stored yet: LlamaCloud lists it without a file_id"
            )
        request = self._api.client.files.with_raw_response.content(file.file_id, project_id=self._api.project_id)
        try:
            url = await self._api.call(request, read_url, doing="asking for a download URL")
        except (Rejected, SourceUnavailable) as error:
            if _meets_every_request(error):
                raise
            kind = PayloadError if isinstance(error, Rejected) else PayloadOutOfReach
            raise kind(file.id, f"the payload of {file.display_name!r} cannot be downloaded: {error}") from None
        if url is None:
            raise PayloadError(file.id, f"LlamaCloud answered without a download URL for {file.display_name!r}")
        return url

    async def _directory(self) -> str:
        if self._directory_id is None:
            self._settle_directory(await self._index.get())
        if self._directory_id is None:
            raise ConfigError(
                "the index has no output directory (yet): wait for its first sync, or set payload_directory to 'source'"
            )
        return self._directory_id

    def _settle_directory(self, state: IndexState) -> IndexState:
        match self._settings.payload_directory:
            case "output":
                self._directory_id = state.output_directory_id
            case "source":
                self._directory_id = state.source_directory_id
            case "auto":
                self._directory_id = state.output_directory_id or state.source_directory_id
        return state


def _meets_every_request(error: IndexportError) -> bool:
    """Whether it is the key or the number of requests that LlamaCloud refuses, whatever was asked for."""
    throttled = isinstance(error, ServerFailed) and error.status == httpx.codes.TOO_MANY_REQUESTS
    return throttled or isinstance(error, KeyRefused)


def _check_running(before: IndexState, after: IndexState) -> None:
    """Raises ``Throttled`` unless between these looks a sync was running, which is why another one was refused."""
    if after.idle and after.change_key == before.change_key:
        raise Throttled(
            f"LlamaCloud refuses a sync of index {after.name!r} though none is running: it throttles; try again later"
        )


def _check_ready(state: IndexState) -> IndexState:
    if state.status == "failed":
        raise SyncFailed(f"index {state.name!r} failed: {state.error_message or 'LlamaCloud gives no reason'}")
    return state
