"""A document to chunks.

What belongs here: ``chunk_document``, its promises (exact slices, nothing over the limit, every non-blank character) and
the fingerprint of everything that decides where it cuts.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise

from pipeline.documents.blocks import scan_markdown, scan_paragraphs
from pipeline.documents.drafts import Draft, Drafter
from pipeline.documents.models import Chunk, ChunkingSettings, Document
from pipeline.documents.pages import MARKS_ALONE, PageLookup
from pipeline.documents.splitting import TextSizer, split_long
from pipeline.documents.tokens import TokenCounter
from pipeline.errors import ConfigError

CHUNKER_VERSION = "9"
"""Goes up with every change to this package that may move a cut or change a context."""

_LEAST_TOKENS = 32
_LINK_DEFINITIONS = re.compile(r"""(?:\[(?!\^)[^\]\n]+\]:[ \t]*+(?:<[^>\n]*>|\S++)[ \t]*+(?:["'(][^\n]*+)?(?:\s++|\Z))++""")
"""``[1]: https://...``, of which a reader sees nothing; ``[^1]:`` is a footnote."""
_WORD_START = re.compile(r"(?<!\S)\S")


def token_limit(settings: ChunkingSettings, tokens: TokenCounter, model_max_tokens: int) -> int:
    """What a chunk with its context may have, special tokens included: what is set, else the counter's default or the model's
    limit.

    Raises ConfigError when the setting is above the model's limit, the overlap takes half of it or more, or the model's
    window is too small for any context.
    """
    limit = settings.max_tokens or min(tokens.default_max_tokens, model_max_tokens)
    if limit > model_max_tokens:
        raise ConfigError(
            f"chunking.max_tokens is {limit}, but the embedding model reads {model_max_tokens} tokens at most and would cut "
            f"the rest; set it to {model_max_tokens} or less, or leave it out"
        )
    if limit < _LEAST_TOKENS:
        raise ConfigError(f"the embedding model reads only {limit} tokens; chunks need a model with {_LEAST_TOKENS} or more")
    if settings.overlap * 2 >= limit:
        raise ConfigError(
            f"chunking.overlap is {settings.overlap}, which must be less than half of the {limit} tokens a chunk may have; "
            f"set it below {limit / 2:g}"
        )
    return limit


def chunker_versions() -> dict[str, str]:
    """The versions of what cuts."""
    return {"chunker": CHUNKER_VERSION, "semantic-text-splitter": version("semantic-text-splitter")}


def chunker_fingerprint(settings: ChunkingSettings, tokens: TokenCounter, max_tokens: int) -> str:
    """Changes whenever the output for some document may change; ``max_tokens`` is the embedding model's limit."""
    parts = {
        **settings.model_dump(mode="json"),
        "max_tokens": token_limit(settings, tokens, max_tokens),
        "tokenizer": tokens.fingerprint,
        **chunker_versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def chunk_document(document: Document, settings: ChunkingSettings, tokens: TokenCounter, max_tokens: int) -> list[Chunk]:
    """Cut a document into chunks of at most ``max_tokens`` (the embedding model's limit) or ``settings.max_tokens``.

    Pure: same input, same chunks. A document without a non-blank character gives none. Raises ConfigError for settings
    that do not fit the model.
    """
    text = document.text
    limit = token_limit(settings, tokens, max_tokens)
    sizer = TextSizer(tokens)
    markdown = settings.strategy == "markdown"
    blocks = scan_markdown(text, [span.start for span in document.page_spans]) if markdown else scan_paragraphs(text)
    drafter = Drafter(text, blocks, sizer, limit - sizer.special_tokens - settings.overlap, markdown=markdown)
    drafts = _without_section(text, _trim(text, drafter.drafts()))
    counted = _joined(text, _mend(text, drafts, sizer, limit), sizer, limit)
    if settings.overlap:
        counted = _overlap(text, counted, sizer, settings.overlap, limit)
    pages = PageLookup(document)
    return [_chunk(text, index, draft, count, pages) for index, (draft, count) in enumerate(counted)]


def _chunk(text: str, index: int, draft: Draft, count: int, pages: PageLookup) -> Chunk:
    content = text[draft.start : draft.end]
    touched = pages.touched(draft.start, draft.end)
    return Chunk(
        chunk_index=index,
        content=content,
        context=draft.context,
        chunk_start_char=draft.start,
        chunk_end_char=draft.end,
        chunk_token_count=count,
        page_range_start=touched[0] if touched else None,
        page_range_end=touched[-1] if touched else None,
        attachments=pages.attachments(touched),
        content_hash=hashlib.sha256(content.encode()).hexdigest(),
    )


def _trim(text: str, drafts: Iterable[Draft]) -> Iterator[Draft]:
    """Leave out blank drafts and the white space around the others."""
    for draft in drafts:
        content = text[draft.start : draft.end]
        start = draft.end - len(content.lstrip())
        if start < draft.end:
            yield draft._replace(start=start, end=draft.start + len(content.rstrip()))


def _without_section(text: str, drafts: Iterable[Draft]) -> Iterator[Draft]:
    """Addresses of links say nothing of the section they happen to stand in, mostly a document's last: without its titles they
    are not found for it."""
    for draft in drafts:
        alone = draft.context and _LINK_DEFINITIONS.fullmatch(text, draft.start, draft.end)
        yield draft._replace(context="") if alone else draft


def _count(text: str, drafts: Sequence[Draft], sizer: TextSizer) -> list[tuple[Draft, int]]:
    """Drafts with the exact token count of what will be embedded."""
    counts = sizer.tokens.count([draft.context + text[draft.start : draft.end] for draft in drafts])
    return list(zip(drafts, counts, strict=True))


def _mend(text: str, drafts: Iterable[Draft], sizer: TextSizer, limit: int) -> list[tuple[Draft, int]]:
    """Count the drafts and cut again what is over the limit although its parts' sizes add up to less."""
    mended: list[tuple[Draft, int]] = []
    for draft, count in _count(text, list(drafts), sizer):
        mended.extend([(draft, count)] if count <= limit else _fit(text, draft, count, sizer, limit))
    return mended


def _joined(text: str, counted: Sequence[tuple[Draft, int]], sizer: TextSizer, limit: int) -> list[tuple[Draft, int]]:
    """A draft of nothing but marks (the rule at the end of a page) says nothing alone: it joins the one before where it fits, and
    takes the last line of it where it does not; the first of all joins the one behind it."""
    joined = list(counted[:1])
    for draft, count in counted[1:]:
        before = joined[-1][0]
        choices: list[list[Draft]] = []
        if MARKS_ALONE.fullmatch(text, draft.start, draft.end):
            choices = [[before._replace(end=draft.end)], *_last_line_moved(text, before, draft)]
        elif len(joined) == 1 and MARKS_ALONE.fullmatch(text, before.start, before.end):
            choices = [[draft._replace(start=before.start)]]
        joined[-1:] = _first_that_fits(text, choices, sizer, limit) or [joined[-1], (draft, count)]
    return joined


def _last_line_moved(text: str, before: Draft, draft: Draft) -> list[list[Draft]]:
    """Both drafts with the beginning of the first one's last line that says something between them, if it has another one."""
    start = before.end
    while start and MARKS_ALONE.fullmatch(text, start, draft.end):
        start = text.rfind("\n", before.start, start - 1) + 1
    return [list(_trim(text, [before._replace(end=start), draft._replace(start=start)]))] if start else []


def _first_that_fits(
    text: str, choices: Iterable[Sequence[Draft]], sizer: TextSizer, limit: int
) -> list[tuple[Draft, int]] | None:
    for drafts in choices:
        if all(sizer.least(draft.end - draft.start) <= limit for draft in drafts):
            counted = _count(text, drafts, sizer)
            if all(count <= limit for _, count in counted):
                return counted
    return None


def _fit(text: str, draft: Draft, size: int, sizer: TextSizer, limit: int) -> list[tuple[Draft, int]]:
    """Pieces of a draft of ``size`` tokens that are within the limit for certain; the context goes when not even a character fits
    beside it."""
    for context in (draft.context, ""):
        room = limit - sizer.special_tokens
        while room > 0:
            ranges = split_long(text, draft.start, draft.end, size, room, sizer, markdown=draft.markdown)
            pieces = list(_trim(text, (draft._replace(start=start, end=end, context=context) for start, end in ranges)))
            counted = _count(text, pieces, sizer)
            if all(count <= limit for _, count in counted):
                return counted
            room = room * 3 // 4
    raise ConfigError(f"a single character does not fit the {limit} tokens a chunk may have; raise chunking.max_tokens")


def _overlap(
    text: str, counted: Sequence[tuple[Draft, int]], sizer: TextSizer, overlap: int, limit: int
) -> list[tuple[Draft, int]]:
    """Let each draft begin with the tail of the one before, within its section and the limit."""
    drafts = [draft for draft, _ in counted]
    widened = drafts[:1] + [
        draft._replace(start=_overlap_start(text, max(previous.start + 1, draft.floor), draft, sizer, overlap))
        for previous, draft in pairwise(drafts)
    ]
    recounted = _count(text, widened, sizer)
    return [wider if wider[1] <= limit else plain for plain, wider in zip(counted, recounted, strict=True)]


def _overlap_start(text: str, floor: int, draft: Draft, sizer: TextSizer, overlap: int) -> int:
    """The first word (in a table: row) from ``floor`` on with no more than ``overlap`` tokens between it and the draft."""
    if draft.rows is None:
        starts = [match.start() for match in _WORD_START.finditer(text, floor, draft.start)]
    else:
        starts = list(draft.rows[bisect_left(draft.rows, floor) : bisect_left(draft.rows, draft.start)])
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if sizer.sizes([text[starts[middle] : draft.start]])[0] <= overlap:
            high = middle
        else:
            low = middle + 1
    return starts[low] if low < len(starts) else draft.start
