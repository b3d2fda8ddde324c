"""What a heading says, without the marks it says it with.

What belongs here: a heading's line as people read it. A title goes into the context of every chunk under it, where anchors,
badges, marks and the addresses of links would take tokens from the text and move the vector away from what the text is about.
"""

from __future__ import annotations

import html
import re

_DESTINATION = r"\((?:[^()\n]|\([^()\n]*\))*\)"
_IMAGE = re.compile(rf"!\[([^\[\]]*)\]{_DESTINATION}")
_LINK = re.compile(rf"\[([^\[\]]*)\]{_DESTINATION}")
_ATTRIBUTES = re.compile(r"\{(?:#|:\s?[#.])[^{}]*\}$")
"""An anchor's name, as Pandoc, Kramdown and Docusaurus have it behind a title."""
_CODE = re.compile(r"`[^`]+`")
_CODE_PLACE = "\0"
"""Stands for a code span, which keeps all it holds, while what is around it is read."""
_EMPHASIS = re.compile(r"(?<![\w*\\])\*{1,3}(?=[^\s*])([^*]*[^\s*\\])\*{1,3}(?![\w*])")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_TAG = re.compile(
    r"</?(?:a|abbr|b|br|center|code|del|em|font|i|img|ins|kbd|mark|q|s|small|span|strong|sub|sup|u)(?:\s[^<>\0]*)?/?>",
    re.IGNORECASE,
)
"""HTML's inline elements by name: in ``vector<T>``, which parsers write as it stands, the T is text."""
_MARKS = re.compile(r"[\[<{*\\&\0]")
"""One of which stands in every title that is not what it says."""


def plain_title(line: str) -> str:
    """``**What is** [tomli](https://...)?<a name="what"></a>`` as ``What is tomli?``; of images what stands for them where a
    title has nothing else."""
    if not _MARKS.search(line):
        return " ".join(line.split())
    line = line.replace(_CODE_PLACE, "")
    return _plain(_IMAGE.sub("", line)) or _plain(_IMAGE.sub(r"\1", line))


def _plain(line: str) -> str:
    line = _ATTRIBUTES.sub("", _LINK.sub(_link_text, line).rstrip())
    codes = _CODE.findall(line)
    text = _EMPHASIS.sub(r"\1", _TAG.sub("", _CODE.sub(_CODE_PLACE, line)))
    parts = html.unescape(_ESCAPED.sub(r"\1", text)).split(_CODE_PLACE)
    return " ".join("".join(part + code for part, code in zip(parts, [*codes, ""], strict=True)).split())


def _link_text(link: re.Match[str]) -> str:
    """Nothing for a link of a sign alone, as the pilcrow that a page has behind its titles."""
    return link[1] if any(char.isalnum() for char in link[1]) else ""
