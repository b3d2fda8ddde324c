"""What a heading says, without the marks it says it with.

What belongs here: a heading's line as people read it. A title goes into the context of every chunk under it, where anchors,
badges and the addresses of links would take tokens from the text and move the vector away from what the text is about.
"""

from __future__ import annotations

import re

_DESTINATION = r"\((?:[^()\n]|\([^()\n]*\))*\)"
_IMAGE = re.compile(rf"!\[([^\[\]]*)\]{_DESTINATION}")
_LINK = re.compile(rf"\[([^\[\]]*)\]{_DESTINATION}")
_CODE = re.compile(r"(`[^`]+`)")
_TAG = re.compile(
    r"</?(?:a|abbr|b|br|center|code|del|em|font|i|img|ins|kbd|mark|q|s|small|span|strong|sub|sup|u)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
"""HTML's inline elements by name: in ``vector<T>``, which parsers write as it stands, the T is text."""


def plain_title(line: str) -> str:
    """``What is [tomli](https://...)?<a name="what"></a>`` as ``What is tomli?``; of images what stands for them where a title
    has nothing else."""
    return _plain(_IMAGE.sub("", line)) or _plain(_IMAGE.sub(r"\1", line))


def _plain(line: str) -> str:
    parts = _CODE.split(_LINK.sub(r"\1", line))
    parts[::2] = [_TAG.sub("", part) for part in parts[::2]]
    return " ".join("".join(parts).split())
