"""Words of others in messages of ours: what servers, drivers and libraries say of a failure, without our secrets.

What belongs here: leaving secrets out, before anything is cut. A server, or a gateway before it, may repeat the key it refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, unquote

from pipeline.urls import without_secrets

_LONGEST_QUOTE: Final = 300
_MOST_READ: Final = 10_000
"""The longest presigned URLs are a fifth of it; the patterns of URLs take time by the square of a text's length."""
_DELIMITERS: Final = re.compile(r"[:/?#@]")
_TELLING_LENGTH: Final = 3
"""Less of a secret than so many characters tells nothing, and would be found in every message."""


def quoted(said: str, *secrets: str) -> str:
    """What was said of a failure, for a message of ours: its beginning, without ``secrets`` and what may be one in its URLs."""
    return without_secrets(masked(said, *secrets)[:_MOST_READ])[:_LONGEST_QUOTE]


def masked(said: str, *secrets: str, mask: str = "***") -> str:
    """``said`` with ``mask`` in place of every secret, as it is or percent-encoded; of one that is an address in place of its
    password too, and of what a parser makes of a password whose special characters are not escaped."""
    parts = {part for secret in secrets for part in _parts(secret.strip()) if len(part) >= _TELLING_LENGTH}
    if not parts:
        return said
    longest_first = sorted(parts, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda _found: mask, said)


def _parts(secret: str) -> Iterator[str]:
    password = secret.partition("://")[2].rpartition("@")[0].partition(":")[2]
    yield from (secret, quote(secret, safe=""), password, unquote(password))
    yield from _DELIMITERS.split(password)
