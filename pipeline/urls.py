"""Addresses as people may see them."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/\s]*@")
"""Also with a ``?`` or ``#`` in the password, which should be percent-encoded there."""
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")


def without_secrets(text: str) -> str:
    """``text``, whose URLs have lost what may be a secret: user, password and query."""
    return _QUERY.sub(r"\1", _USER.sub("", text))
