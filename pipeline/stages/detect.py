"""Detection: what the index lists, compared with nothing yet, taken into the ledger.

Level-triggered: every look records what is there now. A lost look, a failed run or a restart heals at the next one.
A listing is evidence of absence only when it is complete, not empty, and the index was settled and the same before and
after it.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pipeline.clock import is_due
from pipeline.errors import ConfigError, IncompleteListing
from pipeline.ledger.models import ExportState
from pipeline.llama_cloud.models import IndexState, ListingPage
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.stages.export import LEASE_SECONDS, Export
from pipeline.stages.tombstones import restore_tombstones

_CHEAP_FILES = 10_000
"""Up to this many known files a complete listing (ten pages) is taken instead of an incremental one, so that removals
show at once."""
_REFETCH_PART = 100
"""A reconcile fetches one payload in so many again, in case a re-parse does not move the listing's tokens."""

_SYNC_SECONDS = 6 * 3600.0
"""A first sync parses the whole directory."""

_EMPTY = (
    "the listing is empty while {files} known, so nothing is deleted: bring the documents back (is their folder mounted, is it "
    "the right index?) or, if they are to go, `indexport erase` them"
)

Look = Literal["unchanged", "building", "failed", "incomplete", "empty", "incremental", "complete"]


@dataclass(frozen=True, slots=True)
class Detection:
    """What one look at the index found; look ``empty``: the listing shows no file though the ledger knows some. ``cursor``
    resumes a listing that ran out of time; ``None`` when there is none. ``unread`` is why the directory was not read whole;
    ``None`` when it was, or has not moved since."""

    look: Look
    index: IndexState
    new: int = 0
    changed: int = 0
    missing: int = 0
    cursor: str | None = None
    unread: str | None = None
    unsynced: str | None = None
    """Why LlamaCloud was asked for a sync before the look and began none."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """A listing under way; what the cursor holds."""

    listing_id: int
    change_key: str
    token: str | None = None
    since: float | None = None
    seen: int = 0

    def cursor(self) -> str:
        return json.dumps([self.listing_id, self.change_key, self.token, self.since, self.seen])


async def refresh(export: Export, *, wait: bool = True) -> bool:
    """Ask LlamaCloud to sync the index and, with ``wait``, wait for the end; ``False`` when another's sync was running already.

    Raises SyncFailed with the vendor's message, Throttled when LlamaCloud refuses though no sync is running.
    """
    async with _source(export) as source:
        started = await (source.sync(_SYNC_SECONDS) if wait else source.start_sync())
    await asyncio.to_thread(export.ledger.update_state, sync_requested_at=time.time())
    return started


async def wait_until_ready(export: Export) -> None:
    """Wait for the end of a sync that somebody else has asked for. Raises SyncFailed with the vendor's message."""
    async with export.source() as source:
        await source.wait_until_ready(_SYNC_SECONDS)


async def detect(
    export: Export, *, cursor: str | None = None, complete: bool = False, budget_seconds: float = math.inf
) -> Detection:
    """Look at the index and take what it lists into the ledger.

    An unchanged index costs one request unless a complete listing is asked for (``complete``) or due. Whoever is called with a
    limit of his own, as sensors are, gives ``budget_seconds``: a listing that outlasts it goes on from the answer's cursor.
    Raises SourceUnavailable; what was listed until then is kept.
    """
    async with _source(export) as source:
        index = await source.get_index()
        export.index_id = index.index_id
        state = await asyncio.to_thread(_leave_former_index, export, index)
        emptied = state.index_status == "empty" and index.status == "ready"  # until a listing shows files
        await asyncio.to_thread(
            export.ledger.update_state,
            tenant_id=index.project_id,
            export_config_id=index.export_config_id,
            **({} if emptied else _told(index)),
        )
        if index.status != "ready":
            return Detection(index.status, index, unread=_unready(index))
        known = list(await asyncio.to_thread(export.ledger.files)) if _reconcile_is_due(export, state) else []
        listing = _resumed(cursor, index)
        if listing is None:
            wanted = await asyncio.to_thread(_wanted, export, index, state, complete)
            if wanted is None:
                return Detection("unchanged", index)
            await asyncio.to_thread(restore_tombstones, export)
            since = state.listed_at if wanted == "incremental" else None
            listing = _Listing(await asyncio.to_thread(export.ledger.begin_listing), index.change_key, since=since)
        found = await _list(export, source, index, listing, time.monotonic() + budget_seconds)
        if found.look == "complete" and known:
            await asyncio.to_thread(_refetch_some, export, state, known)
        return found


@asynccontextmanager
async def _source(export: Export) -> AsyncIterator[LlamaCloudSource]:
    """The export's source; the next one looks the index up again when this one's is gone."""
    try:
        async with export.source() as source:
            yield source
    except ConfigError:
        export.index_id = None
        raise


def _told(index: IndexState) -> dict[str, str | None]:
    """What LlamaCloud says of the index, as columns of the export's own row."""
    return {"index_status": index.status, "index_error": index.error_message}


def _unready(index: IndexState) -> str:
    if index.status == "failed":
        return f"the index {index.name!r} has failed: {index.error_message or 'no reason given'}"
    return f"the index {index.name!r} is being built or synced"


def _leave_former_index(export: Export, index: IndexState) -> ExportState:
    """Keep in mind under which ids the index was exported before, if it has been made anew or is another one; it is then listed
    from its first file on. Answers what is known of the export."""
    state = export.ledger.state()
    if state.tenant_id and state.export_config_id and (state.tenant_id, state.export_config_id) != index.scope:
        export.ledger.register.leave_scope(state.tenant_id, state.export_config_id)
        export.ledger.update_state(listed_at=None)  # the former one's newest file may be newer than all of this one's
        return export.ledger.state()
    return state


def _resumed(cursor: str | None, index: IndexState) -> _Listing | None:
    if not cursor:
        return None
    listing = _Listing(*json.loads(cursor))
    return listing if listing.change_key == index.change_key else None


def _wanted(export: Export, index: IndexState, state: ExportState, complete: bool) -> Literal["complete", "incremental"] | None:
    """Nearly every look finds nothing to list: rows of files, however many there are, are counted and not read."""
    moved = index.change_key != state.change_key
    if complete or _reconcile_is_due(export, state) or _awaits_evidence(export, state):
        return "complete"
    if moved and export.ledger.count_files() <= _CHEAP_FILES:
        return "complete"
    return "incremental" if moved else None


def _reconcile_is_due(export: Export, state: ExportState) -> bool:
    return is_due(state.complete_at, export.settings.detection.reconcile_interval_seconds)


def _awaits_evidence(export: Export, state: ExportState) -> bool:
    """The grace period of a missing file is over, but no complete listing has been taken since."""
    now, grace = time.time(), export.grace_period(state)
    return any((state.complete_at or 0.0) < since + grace <= now for since in export.ledger.missing_since())


def _refetch_some(export: Export, state: ExportState, ids: list[str]) -> None:
    after = [file_id for file_id in ids if file_id > (state.refetch_cursor or "")]
    chosen = (after or ids)[: -(-len(ids) // _REFETCH_PART)]
    export.ledger.update_files([{"file_id": file_id, "refetch": True} for file_id in chosen])
    export.ledger.update_state(refetch_cursor=chosen[-1])


async def _list(export: Export, source: LlamaCloudSource, index: IndexState, listing: _Listing, deadline: float) -> Detection:
    new = changed = 0
    newest = listing.since or 0.0
    try:
        async for page in source.list_files(updated_since=_moment(listing.since), page_token=listing.token):
            added, moved = await asyncio.to_thread(export.ledger.record_listing, page.files, listing.listing_id)
            new, changed = new + added, changed + moved
            newest = max([newest, *(file.updated_at.timestamp() for file in page.files if file.updated_at)])
            listing = _advance(listing, page)
            if page.next_page_token and time.monotonic() > deadline:
                unread = "the listing goes on at the next look"
                return Detection("incomplete", index, new, changed, cursor=listing.cursor(), unread=unread)
    except IncompleteListing as error:
        return Detection("incomplete", index, new, changed, unread=str(error))
    if listing.since is None and not listing.seen and (known := await asyncio.to_thread(_staying, export)):
        # The next look lists everything again, however long the index stays as it is.
        unread = _EMPTY.format(files="1 file is" if known == 1 else f"{known} files are")
        emptied = {"index_status": "empty", "index_error": unread}
        await asyncio.to_thread(export.ledger.update_state, change_key=None, listed_at=None, **emptied)
        return Detection("empty", index, unread=unread)
    after = await source.get_index()
    same = after.change_key == index.change_key
    steady = same and index.settled
    # What changed after it was listed may be older than the newest file: then the next listing begins where this one did.
    watermark = {"listed_at": newest or None} if steady else {}
    change_key = index.change_key if same else None
    await asyncio.to_thread(export.ledger.update_state, change_key=change_key, **watermark, **_told(index))
    if listing.since is not None or not (steady and listing.seen):
        return Detection("incremental", index, new, changed)
    missing = await asyncio.to_thread(export.ledger.complete_listing, listing.listing_id)
    await asyncio.to_thread(export.lake.sweep, older_than=LEASE_SECONDS)
    return Detection("complete", index, new, changed, missing)


def _staying(export: Export) -> int:
    """How many files are known that nobody has erased or removed."""
    return sum(not row.is_leaving for row in export.ledger.files().values())


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _advance(listing: _Listing, page: ListingPage) -> _Listing:
    seen = listing.seen + len(page.files)
    return _Listing(listing.listing_id, listing.change_key, page.next_page_token, listing.since, seen)
