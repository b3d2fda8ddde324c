"""What a setting takes from the environment, written as Dagster's components write it."""

from __future__ import annotations

import os
import re
from typing import Any

from pipeline.errors import ConfigError

_CALLED = r"""\(\s*(['"])(?P<called>\w+)\2\s*(?:,\s*(['"])(?P<default>[^'"]*)\4\s*)?\)"""
_VARIABLE = re.compile(rf"\{{\{{\s*env(?:\.(?P<dotted>\w+)|{_CALLED})\s*\}}\}}")


def resolved(value: Any, at: str = "") -> Any:
    """What was read from YAML, with the values of the variables it names: ``{{ env.NAME }}``, ``{{ env('NAME') }}`` and
    ``{{ env('NAME', 'default') }}``. Dagster's own templates know more, but the commands must see the same without Dagster.

    Raises ConfigError naming the setting for a variable that is not set and for any other template.
    """
    if isinstance(value, dict):
        return {key: resolved(inner, f"{at}.{key}" if at else str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [resolved(inner, f"{at}.{place}") for place, inner in enumerate(value)]
    return _filled_in(value, at) if isinstance(value, str) and "{{" in value else value


def _filled_in(text: str, at: str) -> str:
    def value_of(found: re.Match[str]) -> str:
        name = found["dotted"] or found["called"]
        value = os.environ.get(name, found["default"])
        if value is None:
            raise ConfigError(f"{at}: it names the environment variable {name}, which is not set")
        return value

    if "{{" in _VARIABLE.sub("", text):
        raise ConfigError(f"{at}: of templates a setting of an export takes {{{{ env.NAME }}}} and {{{{ env('NAME') }}}} alone")
    return _VARIABLE.sub(value_of, text)
