"""From the API's JSON to our models.

What belongs here: the reading of single objects of the wire format (index, directory file, presigned URL). The SDK sends the
requests; its response models are by-passed because building them costs 0.4 ms an item, ten times the listing itself, and
validates nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from typing import Any, Literal

from pipeline.documents.models import MetadataValue
from pipeline.llama_cloud.decoding import DecodingError, clean, clean_text
from pipeline.llama_cloud.models import DirectoryFile, IndexState
from pipeline.llama_cloud.normalise import parse_moment
from pipeline.quoting import quoted

_NAMED = 3


class UnexpectedAnswer(ValueError):
    """The API answered with success and something that is not what was asked for."""


@dataclass(frozen=True, slots=True)
class PresignedUrl:
    """A credential: never shown, logged or stored. ``expires_at`` is ``None`` when the API did not say."""

    url: str = field(repr=False)
    expires_at: datetime | None

    def usable(self, margin: timedelta) -> bool:
        """Whether it will still be accepted after ``margin``."""
        return self.expires_at is None or datetime.now(UTC) + margin < self.expires_at


def read_object(answer: object, what: str) -> Mapping[str, Any]:
    """The answer as a JSON object, or ``UnexpectedAnswer``."""
    if not isinstance(answer, dict):
        raise UnexpectedAnswer(f"no JSON object where {what} was expected")
    return answer


def read_items(answer: object, what: str) -> tuple[list[Mapping[str, Any]], str | None]:
    """The items and the next page's token of one page. A page without ``items`` is an ``UnexpectedAnswer``, not an empty page."""
    page = read_object(answer, f"a page of {what}")
    items = page.get("items")
    if not isinstance(items, list):
        raise UnexpectedAnswer(f"a page of {what} without 'items'")
    token = page.get("next_page_token") or None
    if token is not None and not isinstance(token, str):
        raise UnexpectedAnswer(f"a page of {what} with a token that is not a string")
    return [read_object(item, f"one of the {what}") for item in items], token


def read_index(answer: Mapping[str, Any], api_key: str) -> IndexState:
    """An index, with the digest of everything that moves when it changes. What it says of a failure is without
    ``api_key``."""
    metadata = answer.get("metadata")
    build: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    message = build.get("error_message") or _unparsed(build)
    status = build.get("status")
    in_progress = answer.get("sync_in_progress") is True
    moments = [answer.get(key) for key in ("last_exported_at", "last_synced_at", "updated_at")]
    state = json.dumps([status, *moments, in_progress], sort_keys=True)
    return IndexState(
        index_id=_required(answer, "id", "an index"),
        export_config_id=_required(answer, "export_config_id", "an index"),
        project_id=_required(answer, "project_id", "an index"),
        name=clean_text(answer["name"]) if isinstance(answer.get("name"), str) else "",
        status=_stable_status(status),
        error_message=quoted(clean_text(message), api_key) if isinstance(message, str) and message else None,
        sync_in_progress=in_progress,
        source_directory_id=_required(answer, "source_directory_id", "an index"),
        output_directory_id=_optional(answer, "output_directory_id"),
        change_key=hashlib.sha256(state.encode()).hexdigest(),
    )


def _unparsed(build: Mapping[str, Any]) -> str | None:
    """What an index says of documents it could not parse: the local cloud does, and of LlamaCloud it is not known."""
    listed = build.get("failed_files")
    files = [file for file in listed if isinstance(file, dict)] if isinstance(listed, list) else []
    told = [f"{file['name']}: {file['reason']}" for file in files if file.get("name") and file.get("reason")]
    if not told:
        return None
    counted = build.get("failed_file_count")
    count = max(counted if isinstance(counted, int) else 0, len(told))
    documents = "1 document" if count == 1 else f"{count} documents"
    return f"{documents} could not be parsed: {'; '.join([*told[:_NAMED], *(['...'] if count > _NAMED else [])])}"


def read_file(answer: Mapping[str, Any]) -> DirectoryFile:
    """A directory file; its texts and metadata are cleaned of what stores refuse."""
    identity = _required(answer, "id", "a directory file")
    file_id = _optional(answer, "file_id")
    return DirectoryFile(
        id=identity,
        display_name=clean_text(_optional(answer, "display_name") or _optional(answer, "unique_id") or identity),
        file_id=clean_text(file_id) if file_id else None,
        metadata=_metadata(answer.get("metadata")),
        updated_at=_moment(answer.get("updated_at")),
        deleted=answer.get("deleted_at") is not None,
    )


def read_url(answer: object) -> PresignedUrl | None:
    """A presigned URL, or ``None`` where the answer holds none."""
    if not isinstance(answer, dict) or not isinstance(answer.get("url"), str):
        return None
    return PresignedUrl(url=answer["url"], expires_at=parse_moment(answer.get("expires_at")))


def _moment(value: object) -> datetime | None:
    """The first and the last year of the calendar stand for no time, and nothing can be added to them."""
    moment = parse_moment(value)
    return moment if moment and MINYEAR < moment.year < MAXYEAR else None


def _metadata(value: object) -> dict[str, MetadataValue]:
    if not isinstance(value, dict):
        return {}
    try:
        cleaned = clean(value)
    except DecodingError as error:
        raise UnexpectedAnswer(f"a directory file whose metadata cannot be read: {error}") from None
    return {key: _metadata_value(member) for key, member in cleaned.items()}


def _metadata_value(value: Any) -> MetadataValue:
    """The documented types as they are; anything else as its JSON, so that nothing is lost."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list) and all(isinstance(member, str) for member in value):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _stable_status(status: object) -> Literal["ready", "failed", "building"]:
    """The vendor documents two values as stable; any other means that the index is still being built."""
    match status:
        case "ready":
            return "ready"
        case "failed":
            return "failed"
        case _:
            return "building"


def _required(answer: Mapping[str, Any], key: str, what: str) -> str:
    value = _optional(answer, key)
    if value is None or not value.isprintable():
        raise UnexpectedAnswer(f"{what} without a usable {key!r}")
    return value


def _optional(answer: Mapping[str, Any], key: str) -> str | None:
    value = answer.get(key)
    return value if isinstance(value, str) and value else None
