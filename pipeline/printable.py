"""Text of others as people may see it: names and contents of documents, and what servers say."""

from __future__ import annotations

_CONTROLS = (range(0x20), range(0x7F, 0xA0), range(0x202A, 0x202F), range(0x2066, 0x206A))
"""C0 and C1, which terminals obey, and what turns the direction of a line."""
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for codes in _CONTROLS for code in codes}


def printable(text: str) -> str:
    """``text`` in one line that does nothing but be read: control characters are escaped as in Python."""
    return text.translate(_ESCAPES)
