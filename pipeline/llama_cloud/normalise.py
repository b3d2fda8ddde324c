"""The normaliser: any known shape of a parsed payload becomes one ``Payload``.

What belongs here: which keys are looked for and where. The vendor documents that a payload carries ``parse`` with per-page
markdown (header, text, footer), structured items, attachments and provenance, not its exact schema; these shapes are known:

(a) ``parse.pages[]`` of ``{page_number, text, header, footer, items, attachments}``
(b) the parse result of the vendor's SDK: ``parse.markdown.pages[]`` of ``{page_number, markdown, header, footer, success}``
    (or ``parse.text.pages[]``), with ``parse.items.pages[]``
(c) ``parse`` itself a list of pages as in (a)

Rules. Unknown keys are ignored. A page must say its text (``markdown``, or ``text`` where that is empty; ``null`` is empty),
unless it says ``success: false``: then it is listed in ``failed_pages``. A payload whose every page has failed says nothing of
its file and is refused, so that an earlier one stays. A page without a usable number gets the number after the page before it,
which is its position where no page is numbered. Pages with the same number are merged in the order given: texts joined by a
blank line (as documents join pages), differing headers and footers by a line break, items and attachments appended.
Items kept outside the pages go to the page they name (``items.pages[]`` is numbered as pages are), those that name none to the
first page; items of a page that is not there are dropped. Attachments go to the page they name, else to the whole file.
Entries of an item or attachment list that are no item or attachment are dropped.
The provenance fields are looked for at the top, in ``parse``, then in ``metadata``, ``provenance`` and ``source`` of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from pipeline.documents.models import Attachment, Page
from pipeline.errors import PayloadError
from pipeline.llama_cloud.decoding import DecodingError, decode_json, gunzip, key_tree
from pipeline.llama_cloud.digests import pages_digest
from pipeline.llama_cloud.models import DirectoryFile, Payload

DEFAULT_MAX_PAYLOAD_BYTES = 256 * 1024 * 1024

_TEXT_KEYS = ("markdown", "text")
_PROVENANCE_KEYS = ("metadata", "provenance", "source")
_MAX_PAGE_NUMBER = 2**31 - 1
_EPOCH_MILLISECONDS_FROM = 1e11
"""A number above this cannot be a timestamp in seconds (it would be past the year 5000)."""
_REMEDY = (
    "If these files are the originals and not parsed output, set payload_directory to the directory that holds the "
    "payloads ('output' or 'source')"
)


class _UnknownShape(ValueError):
    """The JSON is not a payload this module knows; the message says what is missing or wrong, without any value."""


@dataclass(slots=True)
class _PageParts:
    """One page while its parts are gathered from where the shapes keep them."""

    number: int
    texts: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    footers: list[str] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)

    def page(self) -> Page:
        return Page(
            page_number=self.number,
            text="\n\n".join(self.texts),
            header=_joined(self.headers),
            footer=_joined(self.footers),
            items=tuple(self.items),
            attachments=tuple(dict.fromkeys(self.attachments)),
        )


def normalise_payload(body: bytes, file: DirectoryFile, *, max_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES) -> Payload:
    """Read one stored payload (JSON, or gzip of it). Blocking; tens of milliseconds a megabyte.

    Raises ``PayloadError`` for anything that is not a payload of a known shape or is larger than ``max_bytes`` once
    decompressed; nothing else.
    """
    try:
        plain = gunzip(body, max_bytes=max_bytes)
        root = decode_json(plain)
    except DecodingError as error:
        raise PayloadError(file.id, f"the payload of {file.display_name!r} cannot be read: {error}. {_REMEDY}.") from None
    try:
        return replace(_payload(root, file), size=len(plain))
    except _UnknownShape as error:
        raise PayloadError(
            file.id,
            f"the payload of {file.display_name!r} has an unknown shape: {error}. Its keys: {key_tree(root)}. {_REMEDY}; "
            "if they are parsed output, report this key tree.",
        ) from None


def _payload(root: Any, file: DirectoryFile) -> Payload:
    if not isinstance(root, dict):
        raise _UnknownShape("it is not a JSON object")
    if "parse" not in root:
        raise _UnknownShape("it has no key 'parse'")
    parse = root["parse"]
    parts, failed = _gather_pages(_page_list(parse), file.id)
    if failed and not parts:
        raise PayloadError(file.id, f"LlamaCloud could not parse any of the {len(failed)} pages of {file.display_name!r}")
    holders: tuple[Mapping[str, Any], ...] = (parse, root) if isinstance(parse, dict) else (root,)
    _distribute_items(holders, parts)
    attachments = _distribute_attachments(holders, parts, file.id)
    pages = tuple(parts[number].page() for number in sorted(parts))
    provenance = list(_provenance_holders(root, parse))
    return Payload(
        pages=pages,
        attachments=attachments,
        content_fingerprint_hash=_fingerprint(provenance) or pages_digest(pages),
        source_modified_at=_to_milliseconds(_modified_at(provenance) or file.updated_at),
        failed_pages=tuple(sorted(failed - parts.keys())),
    )


def _page_list(parse: Any) -> list[Any]:
    """The list of pages, wherever this shape keeps it."""
    if isinstance(parse, list):
        return parse
    if not isinstance(parse, dict):
        raise _UnknownShape("'parse' is neither an object nor a list")
    candidates = (parse, *(parse.get(key) for key in _TEXT_KEYS))
    for holder in candidates:
        if isinstance(holder, dict) and isinstance(holder.get("pages"), list):
            return list(holder["pages"])
    raise _UnknownShape("no list of pages at parse.pages, parse.markdown.pages or parse.text.pages")


def _gather_pages(entries: list[Any], file_id: str) -> tuple[dict[int, _PageParts], set[int]]:
    """The pages by number, and the numbers of the failed ones."""
    parts: dict[int, _PageParts] = {}
    failed: set[int] = set()
    previous = 0
    for position, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise _UnknownShape(f"entry {position} of its pages is not an object")
        number = previous = _page_number(entry, after=previous)
        if entry.get("success") is False:
            failed.add(number)
            continue
        page = parts.setdefault(number, _PageParts(number))
        page.texts.append(_page_text(entry, position))
        page.headers += _optional_text(entry, "header", position)
        page.footers += _optional_text(entry, "footer", position)
        page.items += _item_list(entry.get("items"))
        page.attachments += (attachment for _, attachment in _attachment_list(entry.get("attachments"), file_id))
    return parts, failed


def _page_number(entry: Mapping[str, Any], *, after: int) -> int:
    return _named_page(entry) or min(after + 1, _MAX_PAGE_NUMBER)


def _named_page(entry: Mapping[str, Any]) -> int | None:
    number = entry.get("page_number")
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    return number if 1 <= number <= _MAX_PAGE_NUMBER else None


def _page_text(entry: Mapping[str, Any], position: int) -> str:
    present = [key for key in _TEXT_KEYS if key in entry]
    if not present:
        raise _UnknownShape(f"entry {position} of its pages has neither 'text' nor 'markdown'")
    texts = [entry[key] for key in present if entry[key] is not None]
    if not all(isinstance(text, str) for text in texts):
        raise _UnknownShape(f"entry {position} of its pages has a text that is not a string")
    return next((str(text) for text in texts if text), "")


def _optional_text(entry: Mapping[str, Any], key: str, position: int) -> list[str]:
    text = entry.get(key)
    if text is None:
        return []
    if not isinstance(text, str):
        raise _UnknownShape(f"entry {position} of its pages has a {key} that is not a string")
    return [text]


def _joined(texts: list[str]) -> str | None:
    return "\n".join(dict.fromkeys(texts)) if texts else None


def _item_list(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _distribute_items(holders: tuple[Mapping[str, Any], ...], parts: dict[int, _PageParts]) -> None:
    """Items kept outside the pages: ``items.pages[]`` of ``{page_number, items}``, or one flat list."""
    for holder in holders:
        items = holder.get("items")
        for number, item in chain(_items_by_page(items), _flat_items(items, first_page=min(parts, default=0))):
            if page := parts.get(number):
                page.items.append(item)


def _items_by_page(items: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for entry in _item_list(items.get("pages")) if isinstance(items, dict) else ():
        number = _page_number(entry, after=number)
        yield from ((number, item) for item in _item_list(entry.get("items")))


def _flat_items(items: Any, *, first_page: int) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((_named_page(item) or first_page, item) for item in _item_list(items))


def _distribute_attachments(
    holders: tuple[Mapping[str, Any], ...], parts: dict[int, _PageParts], file_id: str
) -> tuple[Attachment, ...]:
    """Give attachments that name a page to it; return those of the whole file."""
    of_file: list[Attachment] = []
    for number, attachment in chain.from_iterable(_attachment_list(holder.get("attachments"), file_id) for holder in holders):
        target = parts.get(number) if number else None
        (target.attachments if target else of_file).append(attachment)
    return tuple(dict.fromkeys(of_file))


def _attachment_list(value: Any, file_id: str) -> Iterator[tuple[int | None, Attachment]]:
    """``(page number, attachment)``. The vendor documents ``source_id`` as the file's id, so that is what a missing one means."""
    for entry in value if isinstance(value, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("attachment_name"), str):
            continue
        source_id, kind = entry.get("source_id"), entry.get("type")
        yield (
            _named_page(entry),
            Attachment(
                attachment_name=entry["attachment_name"],
                source_id=source_id if isinstance(source_id, str) and source_id else file_id,
                type=kind if isinstance(kind, str) and kind else "attachment",
            ),
        )


def _provenance_holders(root: Mapping[str, Any], parse: Any) -> Iterator[Mapping[str, Any]]:
    outer = [holder for holder in (root, parse) if isinstance(holder, dict)]
    yield from outer
    for holder in outer:
        yield from (holder[key] for key in _PROVENANCE_KEYS if isinstance(holder.get(key), dict))


def _fingerprint(provenance: list[Mapping[str, Any]]) -> str | None:
    """The vendor's hash: an opaque string."""
    values = (holder.get("content_fingerprint_hash") for holder in provenance)
    return next((value for value in values if isinstance(value, str) and value), None)


def _modified_at(provenance: list[Mapping[str, Any]]) -> datetime | None:
    moments = (parse_moment(holder.get("source_modified_at")) for holder in provenance)
    return next((moment for moment in moments if moment), None)


def parse_moment(value: Any) -> datetime | None:
    """An ISO-8601 string (without an offset: UTC) or a Unix time in seconds or milliseconds, as UTC; else ``None``."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if value > _EPOCH_MILLISECONDS_FROM else value, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _to_milliseconds(moment: datetime | None) -> datetime | None:
    """Cut, not rounded: every store keeps milliseconds, so that is what can be compared."""
    if moment is None:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).replace(microsecond=aware.microsecond // 1000 * 1000)
