"""The proxies of the environment, the same for the API, for downloads and for embedding endpoints.

What belongs here: reading ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``ALL_PROXY``. A value may hold a password: no error shows one.
"""

from __future__ import annotations

import urllib.request
from importlib.util import find_spec
from typing import Final

import httpx

from pipeline.errors import ConfigError

_DIRECT: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")


def client_mounts() -> dict[str, httpx.AsyncBaseTransport | None]:
    """The mounts of an httpx client, which reads the environment by itself: no proxy is asked for this machine's own servers.

    Raises as ``environment_proxies``: httpx's own errors show the value.
    """
    environment_proxies()
    return dict.fromkeys(_DIRECT)


def environment_proxies() -> dict[str, httpx.Proxy]:
    """By scheme of the requested URL (``http``, ``https``, ``all`` for either) the proxy that is named for it.

    Raises ``ConfigError``, which names the variable only.
    """
    named = urllib.request.getproxies()
    found: dict[str, httpx.Proxy] = {}
    for scheme in ("http", "https", "all"):
        if url := named.get(scheme):
            proxy = _read(url)
            if proxy is None:
                raise ConfigError(
                    f"the environment variable {scheme.upper()}_PROXY names no proxy that can be used: write http://HOST:PORT, "
                    "or install the package socksio for one with socks5://"
                )
            found[scheme] = proxy
    return found


def _read(url: str) -> httpx.Proxy | None:
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")  # As httpx's own clients read it.
    except (ValueError, httpx.InvalidURL):
        return None
    usable = find_spec("socksio") is not None or not proxy.url.scheme.startswith("socks")
    return proxy if usable else None
