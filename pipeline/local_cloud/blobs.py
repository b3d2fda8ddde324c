"""Bytes on disk, written whole or not at all, and the signed tokens that let anyone with the URL read them for a while."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import hmac
import struct
import uuid
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.files import write_whole

_TOKEN = struct.Struct(">16sd")
_SIGNATURE_BYTES = 16
_LEVEL = 5


class InvalidToken(Exception):
    """A blob token is malformed or not ours."""


class Grant(NamedTuple):
    """What a token gives access to, and until when (seconds since the epoch)."""

    blob_id: str
    expires_at: float


class TokenSigner:
    """Issues and checks tokens; nothing is stored, so they survive a restart with the same key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, blob_id: str, expires_at: float) -> str:
        """A token for a blob, valid until ``expires_at`` (seconds since the epoch)."""
        body = _TOKEN.pack(uuid.UUID(blob_id).bytes, expires_at)
        return base64.urlsafe_b64encode(body + self._sign(body)).rstrip(b"=").decode()

    def check(self, token: str) -> Grant:
        """What the token grants, expired or not. Raises ``InvalidToken``."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError) as error:
            raise InvalidToken from error
        body, signature = raw[: _TOKEN.size], raw[_TOKEN.size :]
        if len(body) != _TOKEN.size or not hmac.compare_digest(signature, self._sign(body)):
            raise InvalidToken
        identity, expires_at = _TOKEN.unpack(body)
        return Grant(str(uuid.UUID(bytes=identity)), expires_at)

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_SIGNATURE_BYTES]


class BlobStore:
    """Files by blob id, in folders of about equal size. A blob is never changed, only removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, blob_id: str) -> Path:
        return self._folder / blob_id[:2] / blob_id

    def write(self, blob_id: str, content: bytes) -> None:
        write_whole(self.path(blob_id), content)

    def read(self, blob_id: str) -> bytes:
        """Raises ``FileNotFoundError``."""
        return self.path(blob_id).read_bytes()

    def remove(self, blob_ids: Iterable[str]) -> None:
        for blob_id in blob_ids:
            self.path(blob_id).unlink(missing_ok=True)


def compress(content: bytes) -> bytes:
    """Gzip whose bytes depend on the content alone."""
    return gzip.compress(content, _LEVEL, mtime=0)


def write_compressed(path: Path, content: bytes) -> None:
    write_whole(path, compress(content))


def read_compressed(path: Path) -> bytes | None:
    """What ``write_compressed`` wrote, or ``None`` if nothing was or a loss of power has left it damaged."""
    try:
        return gzip.decompress(path.read_bytes())
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error):
        return None
