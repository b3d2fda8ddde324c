"""Words in every form that Unicode has for them: PDFs and macOS give accents apart from their letters, keyboards do not.

Stores compare code points, and any one word of a text search is enough to match on every one of them.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_MOST_BYTES: Final = 1024
"""With the forms added: no store refuses a text of this length, and some a longer one."""


def in_every_form(text: str) -> str:
    """A search text, followed by its words composed (NFC) and apart (NFD) where that is another spelling.

    A text so long that its forms do not fit has as many of them as do: its other words find what it is about.
    """
    if text.isascii():
        return text
    known = set(text.split())
    for word in text.split():
        for form in (unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)):
            longer = f"{text} {form}"
            if form not in known and len(longer.encode()) <= _MOST_BYTES:
                known.add(form)
                text = longer
    return text
