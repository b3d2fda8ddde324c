"""From a document's bytes to its pages, by file type; parsed content is cached by the hash of its bytes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Set
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from bs4 import BeautifulSoup, Tag
from markdownify import MarkdownConverter

from pipeline.local_cloud.blobs import read_compressed, write_compressed
from pipeline.local_cloud.charsets import decode_html
from pipeline.local_cloud.html_cells import spread_cells
from pipeline.local_cloud.parsed import DocumentRefused, PageContent, ParsedDocument
from pipeline.local_cloud.pdf import parse_pdf


class _HtmlConverter(MarkdownConverter):
    """Without the title, which repeats the first heading.

    A long list takes no longer an item than a short one: the base class counts what stands before every item anew.
    """

    def __init__(self) -> None:
        super().__init__(heading_style="ATX", table_infer_header=True)
        self._numbers: dict[int, int] = {}
        """Of the next item, by the identity of its ``<ol>``."""

    def convert_li(self, item: Tag, text: str, parent_tags: Set[str]) -> str:
        if item.parent is not None and item.parent.name == "ol":
            item = self._alone(item.parent)
        converted: str = super().convert_li(item, text, parent_tags)  # type: ignore[misc]  # not in its stubs
        return converted

    def _alone(self, numbered: Tag) -> Tag:
        """An item to convert instead of the next one of a list: the only one of a list that starts with its number."""
        start = str(numbered.get("start") or "")
        number = self._numbers.get(id(numbered)) or (int(start) if start.isnumeric() else 1)
        self._numbers[id(numbered)] = number + 1
        item = Tag(name="li")
        Tag(name="ol", attrs={"start": str(number)}).append(item)
        return item

    def convert_td(self, cell: Tag, text: str, parent_tags: Set[str]) -> str:
        converted: str = super().convert_td(cell, text.replace("|", "\\|"), parent_tags)  # type: ignore[misc]  # not in its stubs
        return converted

    def convert_th(self, cell: Tag, text: str, parent_tags: Set[str]) -> str:
        return self.convert_td(cell, text, parent_tags)

    def convert_title(self, title: Tag, text: str, **_context: object) -> str:
        return "" if title.parent is not None and title.parent.name == "head" else text


def parse_text(content: bytes) -> ParsedDocument:
    """Markdown and plain text as they are; form feeds end pages, as in text made from paged documents."""
    text = _decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    return _pages(text.removesuffix("\f").split("\f"))


def parse_html(content: bytes) -> ParsedDocument:
    """HTML as Markdown on one page, read as a browser reads it: end tags may be left out."""
    try:
        # Without huge_tree the parser ends, and says nothing, where elements are nested more than 256 deep or a text is long.
        soup = BeautifulSoup(_EMPTY.sub("", decode_html(content)), "lxml", huge_tree=True)
        for block in soup.find_all(_BLOCKS):
            block.name = "div"
        spread_cells(soup)
        text: str = _HtmlConverter().convert_soup(soup)
    except RecursionError as error:
        raise DocumentRefused("HTML is nested too deeply") from error
    return _pages([text.strip()])


_EMPTY = re.compile(r"<(?:wbr|source|track)\b[^<>]*>", re.IGNORECASE)
"""Elements that have neither text nor an end tag, which the parser does not know: it would put what follows inside them."""

_BLOCKS = (
    *("address", "aside", "center", "details", "dialog", "fieldset", "figure", "footer", "form", "header", "hgroup", "legend"),
    *("main", "nav", "optgroup", "option", "search", "summary"),
)
"""What browsers begin a line for and the converter does not know: it would put their words together with those beside them."""

_LONGEST_REASON = 300
_Parser = Callable[[bytes], ParsedDocument]
_PARSERS: dict[str, tuple[str, _Parser]] = {
    **dict.fromkeys((".md", ".markdown", ".txt", ".text"), ("text-1", parse_text)),
    **dict.fromkeys((".html", ".htm"), (f"html-4-{version('lxml')}-{version('markdownify')}", parse_html)),
    ".pdf": (f"pdf-2-{version('liteparse')}", parse_pdf),
}
"""Parser and its revision by suffix; a new revision parses documents again."""


def parser_revision(name: str) -> str:
    """Changes whenever the same bytes might be parsed differently. Raises ``DocumentRefused`` for an unsupported type."""
    return _parser(name)[0]


class ParsedCache:
    """Parses documents once: results and refusals are kept by content and parser revision, across restarts.

    What a parser trips over is the document's fault and refused too, but not kept: it may be a fault of the moment.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def parse(self, name: str, digest: str, load: Callable[[], bytes]) -> ParsedDocument:
        """The pages of a document with this SHA-256 ``digest``, read only if they are not known. Raises ``DocumentRefused``."""
        revision, parse = _parser(name)
        path = self._folder / digest[:2] / f"{digest}.{revision}.json.gz"
        outcome = _known(path)
        if outcome is None:
            outcome = _outcome(parse, load())
            write_compressed(path, json.dumps(outcome, ensure_ascii=False).encode())
        if outcome["refused"] is not None:
            raise DocumentRefused(outcome["refused"])
        return ParsedDocument.from_json(outcome["document"])

    def keep(self, digests: Set[str]) -> None:
        """Removes what is known of all documents but these, and what killed writers have left. Nobody may parse meanwhile."""
        for path in self._folder.glob("*/*"):
            if path.name.partition(".")[0] not in digests:
                path.unlink(missing_ok=True)


def _known(path: Path) -> dict[str, Any] | None:
    try:
        outcome: dict[str, Any] = json.loads(read_compressed(path) or b"")
    except ValueError:
        return None
    return outcome


def _parser(name: str) -> tuple[str, _Parser]:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in _PARSERS:
        supported = ", ".join(sorted(_PARSERS))
        raise DocumentRefused(f"unsupported type {suffix or 'without a suffix'}; supported are {supported}")
    return _PARSERS[suffix]


def _outcome(parse: _Parser, content: bytes) -> dict[str, Any]:
    try:
        return {"refused": None, "document": parse(content).to_json()}
    except DocumentRefused as refusal:
        return {"refused": str(refusal), "document": None}
    except Exception as error:  # Parsers of others raise whatever they like: ParserRejectedMarkup, ValueError of a "½", ...
        raise DocumentRefused(f"cannot be parsed: {type(error).__name__}: {error}"[:_LONGEST_REASON]) from error


def _pages(texts: list[str]) -> ParsedDocument:
    return ParsedDocument(pages=tuple(PageContent(page_number=number, text=text) for number, text in enumerate(texts, start=1)))


def _decoded(content: bytes) -> str:
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentRefused(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    if "\x00" in text:
        raise DocumentRefused("not text: it holds null characters")
    return text
