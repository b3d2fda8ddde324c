"""Ports for servers that are told theirs before they start."""

from __future__ import annotations

import errno
import random
import socket

_PORTS = range(20_000, 32_000)
"""Below those the system gives to whoever asks for any (from 32,768 on Linux): such a one may be another test's by the time that
the server listens, seconds later, and then answers in its place."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(_PORTS)  # workers may have the same seed
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
