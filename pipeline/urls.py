"""Addresses: as people may see them, whether two mean one place, and whether a client can be asked for them."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

_USER = re.compile(r"(?<=://)[^/\s]*@")
"""Also with a ``?`` or ``#`` in the password, which should be percent-encoded there."""
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")
_PASSWORD = re.compile(r"(?<!github)(://[^/\s:@]*):[^/\s]*@")
"""In its place a github:// URL has the repository."""
DRIVER_REMEDY = "its driver is an extra for s3:// (indexport[s3]), a package of its own for others"
"""Of a URL whose file system is not installed."""
_HIGHEST_PORT = 65535


def without_secrets(text: str) -> str:
    """``text``, whose URLs have lost what may be a secret: user, password and query."""
    return _QUERY.sub(r"\1", _USER.sub("", text))


def origin(url: str) -> str:
    """Scheme, host and port of a URL: the server, without what may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def without_password(url: str) -> str:
    """``url``, which still says what it said but for the password: a user may stand for the place itself, as the container in
    abfs://container@account. Not to be shown."""
    return _PASSWORD.sub(r"\1@", url)


def local_directory(uri: str) -> Path | None:
    """The folder of this machine that an address names; ``None`` for an object store or a server."""
    if "://" not in uri:
        return Path(uri)
    return Path(urlsplit(uri).path) if uri.lower().startswith("file://") else None


def one_spelling(address: str) -> str:
    """The same for every way to write the address of one folder or server: a local path is as it is stored, without ``file://``;
    of others the password and the last slash go."""
    folder = local_directory(address)
    return str(as_stored(folder)) if folder else without_password(address).rstrip("/")


def as_stored(path: Path) -> Path:
    """``path``, absolute and without links, as the folders on its way spell it: where the file system ignores case or Unicode
    form, as macOS's does, one folder answers to many names. What does not exist or cannot be listed stays as it is given."""
    resolved = path.resolve()
    stored = Path(resolved.anchor)
    for name in resolved.parts[1:]:
        stored /= _name_in(stored, name)
    return stored


def _name_in(folder: Path, name: str) -> str:
    try:
        found = os.lstat(folder / name)
        # Only where another spelling finds the same does the folder, which may be large, have to be read.
        if not any(_is(found, folder / other) for other in _other_spellings(name)):
            return name
        with os.scandir(folder) as scanned:
            names = [entry.name for entry in scanned]
    except OSError:
        return name
    if name in names:
        return name
    wanted = _folded(name)
    names.sort(key=lambda entry: _folded(entry) != wanted)
    return next((entry for entry in names if _is(found, folder / entry)), name)


def _is(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, os.lstat(path))
    except OSError:
        return False


def _other_spellings(name: str) -> set[str]:
    """Of which one finds the same wherever case or form is ignored: some file systems fold ASCII alone, and some no letter
    whose other case is two letters."""
    swapped = [letter.swapcase() for letter in name]
    ascii_only = "".join(other if letter.isascii() else letter for letter, other in zip(name, swapped, strict=True))
    one_to_one = "".join(other if len(other) == 1 else letter for letter, other in zip(name, swapped, strict=True))
    return {ascii_only, one_to_one, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)} - {name}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFD", name).casefold()


def is_http_url(text: str) -> bool:
    """Whether a client can be asked for ``text``: http or https, a host that can be looked up, a port that exists."""
    import httpx  # Slow, and no business of those who only show addresses.

    try:
        url = httpx.URL(text)
        return url.scheme in ("http", "https") and url.host != "" and (url.port or 0) <= _HIGHEST_PORT
    except (httpx.InvalidURL, UnicodeError):  # The latter for a host that is said to be IDNA (xn--) and is not.
        return False
