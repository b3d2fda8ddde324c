"""The certificates this process trusts, for whatever speaks HTTP on its own: LlamaCloud, downloads, embedding endpoints."""

from __future__ import annotations

import ssl
from functools import cache

import httpx


@cache
def ssl_context() -> ssl.SSLContext:
    """httpx's own context (``SSL_CERT_FILE``, else certifi's bundle), made once: reading the bundle takes 30 ms, and every look
    at the directory and every embedded query makes a new client."""
    return httpx.create_ssl_context()
