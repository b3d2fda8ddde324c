"""The certificates this process trusts, for whatever speaks HTTP on its own: LlamaCloud, downloads, embedding endpoints."""

from __future__ import annotations

import os
import ssl
from functools import cache

import httpx

from pipeline.errors import ConfigError


@cache
def ssl_context() -> ssl.SSLContext:
    """httpx's own context (``SSL_CERT_FILE``, else certifi's bundle), made once: reading the bundle takes 30 ms, and every look
    at the directory and every embedded query makes a new client. Raises ConfigError for a bundle that cannot be read."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        bundle = os.environ.get("SSL_CERT_FILE")
        if not bundle:
            raise
        raise ConfigError(
            f"SSL_CERT_FILE names {bundle}, which is no bundle of certificates that can be read ({error})"
        ) from None


def tls_problem(error: BaseException) -> str | None:
    """Why no TLS connection came about, and what to do; ``None`` when ``error`` has another cause."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused ({cause.verify_message}): SSL_CERT_FILE must name a bundle with its authority"
        if isinstance(cause, ssl.SSLError):
            return f"no TLS can be agreed on ({cause.reason}): it may not speak https"
        cause = cause.__cause__ or cause.__context__
    return None
