"""API keys: from the environment alone, and only what an HTTP header can carry."""

from __future__ import annotations

import os
import re
from typing import Final

from pipeline.errors import ConfigError

LOCAL_CLOUD_KEY: Final = "local"
"""The local cloud's, unless its settings have another; no secret."""
_OF_STORES: Final = re.compile(r"(AWS|AZURE|GOOGLE|GCS)_\w*(KEY|SECRET|TOKEN|PASSWORD|CONNECTION_STRING)")


def read_key(variable: str) -> str:
    """The key in an environment variable; empty when there is none. Raises ConfigError."""
    return usable_key(os.environ.get(variable, ""), variable)


def usable_key(key: str, variable: str) -> str:
    """A key without the line break that files of secrets end with.

    Raises ConfigError for any other character that no header can carry: HTTP libraries refuse it too, in errors that hold the
    key.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{variable} holds white space or a character that is not ASCII; copy the key anew")
    return key


def store_secrets() -> list[str]:
    """What drivers of object stores read from the environment by themselves, of variables whose names tell of a secret."""
    return [value for name, value in os.environ.items() if _OF_STORES.match(name)]
