"""Keeps presigned URLs out of the logs of the HTTP library.

What belongs here: httpcore logs the ``Location`` of redirects at DEBUG. It is silenced for requests made inside
``urls_are_secret()`` and for nobody else's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_secret: ContextVar[bool] = ContextVar("indexport_urls_are_secret", default=False)
# A filter on a parent logger does not see its children's records: each one is named.
_LOGGERS = ("httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")


def _urls_are_open(_: logging.LogRecord) -> bool:
    return not _secret.get()


@contextmanager
def urls_are_secret() -> Iterator[None]:
    """Requests sent inside this block leave no trace in the HTTP library's logs."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_urls_are_open)  # Adding it again is a no-op.
    token = _secret.set(True)
    try:
        yield
    finally:
        _secret.reset(token)
