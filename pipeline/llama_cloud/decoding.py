"""From the bytes of a stored object to a JSON value that every store can hold.

What belongs here: decompression, text decoding, JSON, and the cleaning of what JSON allows but databases refuse.
Nothing here knows what a payload looks like.

What is sanitised: NUL and lone surrogates become U+FFFD (several databases store neither), ``NaN``, ``Infinity`` and numbers
that overflow a float become ``None``. What is refused, with ``DecodingError``: a body that is too large once decompressed,
is not UTF-8, is not JSON, or nests deeper than ``MAX_DEPTH``.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from typing import Any

MAX_DEPTH = 100
"""Levels of nesting; the parse results the vendor documents need fewer than ten."""

GZIP_MAGIC = b"\x1f\x8b"
"""What gzip begins with."""
_MAX_GZIP_LAYERS = 3
_GZIP_PIECE_BYTES = 1024 * 1024
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_MAX_TREE_CHARS = 2000
_OTHER_FORMATS = ((b"%PDF", "a PDF"), (b"PK\x03\x04", "a ZIP or Office file"), (b"\x89PNG", "an image"), (b"<", "HTML or XML"))


class DecodingError(ValueError):
    """The bytes are not a JSON document this project can hold; the message says why and quotes nothing of it."""


def decode_json(plain: bytes) -> Any:
    """Decode, parse and clean what ``gunzip`` gave. Raises ``DecodingError``."""
    try:
        text = plain.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DecodingError(f"it is not UTF-8 text{_looks_like(plain)}") from None
    try:
        return clean(json.loads(text, parse_constant=_no_constant, parse_float=_finite_or_none))
    except RecursionError:
        raise DecodingError(f"it nests deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise DecodingError(f"it is not JSON{_looks_like(plain)}: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        if isinstance(error, DecodingError):
            raise
        # The interpreter's own limit on the digits of an integer.
        raise DecodingError("it holds an integer of thousands of digits") from None


def gunzip(body: bytes, *, max_bytes: int) -> bytes:
    """Undo up to three layers of gzip, never holding more than ``max_bytes`` of output. Raises ``DecodingError``."""
    for _ in range(_MAX_GZIP_LAYERS):
        if not body.startswith(GZIP_MAGIC):
            break
        body = _gunzip_layer(body, max_bytes)
    if len(body) > max_bytes:
        raise DecodingError(f"it is larger than max_payload_bytes ({max_bytes:,} bytes)")
    return body


def _gunzip_layer(body: bytes, max_bytes: int) -> bytes:
    """All members of one gzip stream, read piecewise so that a bomb is dropped when it crosses the limit."""
    out = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
            while piece := stream.read(_GZIP_PIECE_BYTES):
                out += piece
                if len(out) > max_bytes:
                    raise DecodingError(f"it is larger than max_payload_bytes ({max_bytes:,} bytes) once decompressed")
    except EOFError:
        raise DecodingError("its gzip data is cut short") from None
    except (OSError, zlib.error):
        raise DecodingError("its gzip data is corrupt") from None
    return bytes(out)


def clean(value: Any, *, depth: int = 0) -> Any:
    """A copy of a JSON value without what stores refuse. Raises ``DecodingError`` beyond ``MAX_DEPTH`` levels."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict | list) and depth >= MAX_DEPTH:
        raise DecodingError(f"it nests deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {clean_text(key): clean(member, depth=depth + 1) for key, member in value.items()}
    if isinstance(value, list):
        return [clean(member, depth=depth + 1) for member in value]
    return value


def clean_text(text: str) -> str:
    """``text`` with every NUL and every lone surrogate replaced by U+FFFD."""
    if "\x00" not in text:
        try:
            text.encode()  # Far faster than a search; fails on lone surrogates only.
        except UnicodeEncodeError:
            pass
        else:
            return text
    return _UNSTORABLE.sub(_REPLACEMENT, text)


def key_tree(value: Any) -> str:
    """The keys and types of a JSON value, bounded in depth and size, without any value: ``{parse: {pages: [2 x {}]}}``."""
    tree = _tree(value, max_depth=4, max_keys=12)
    return tree if len(tree) <= _MAX_TREE_CHARS else f"{tree[:_MAX_TREE_CHARS]}..."


def _tree(value: Any, *, max_depth: int, max_keys: int) -> str:
    if isinstance(value, dict):
        if max_depth == 0:
            return "{...}"
        shown = [_tree_entry(key, member, max_depth, max_keys) for key, member in list(value.items())[:max_keys]]
        hidden = len(value) - len(shown)
        return "{" + ", ".join([*shown, f"... {hidden} more"] if hidden else shown) + "}"
    if isinstance(value, list):
        if not value:
            return "[]"
        return f"[{len(value)} x {_tree(value[0], max_depth=max_depth - 1, max_keys=max_keys) if max_depth else '...'}]"
    return {str: "string", bool: "boolean", int: "number", float: "number"}.get(type(value), "null")


def _tree_entry(key: str, member: Any, max_depth: int, max_keys: int) -> str:
    label = "".join(char if char.isprintable() else "?" for char in key[:40])
    inner = _tree(member, max_depth=max_depth - 1, max_keys=max_keys)
    return f"{label}: {inner}"


def _looks_like(plain: bytes) -> str:
    head = plain[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((f" (it looks like {name})" for magic, name in _OTHER_FORMATS if head.startswith(magic)), "")


def _no_constant(_: str) -> None:
    """``NaN``, ``Infinity`` and ``-Infinity`` are not JSON; Python's parser accepts them."""


def _finite_or_none(literal: str) -> float | None:
    number = float(literal)
    return number if math.isfinite(number) else None
