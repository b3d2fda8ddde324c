"""YAML as people write it: the documents of a file, and what is wrong with one in one line, which repeats nothing of its text but
keys: a value may be a secret in the wrong place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_QUOTED = re.compile(r"'[^'\s]{4,}'")
"""Names of tags and anchors in an error of YAML's; what it expects is shorter."""
_MERGED = "tag:yaml.org,2002:merge"
_UNHASHABLE = "found unhashable key"


class _Loader(yaml.SafeLoader):
    """Notes the first key that a mapping of the present document has twice: YAML forbids it, and PyYAML takes the last one."""

    repeated: str | None = None

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGED:
                self._note(key, lines)
        return node

    def _note(self, key: yaml.ScalarNode, lines: dict[tuple[str, str], int]) -> None:
        found, line = (key.tag, key.value), key.start_mark.line + 1
        if found in lines and self.repeated is None:
            self.repeated = f"line {line}: {key.value!r} stands in line {lines[found]} already, and one would be lost; join them"
        lines.setdefault(found, line)


def documents_of(path: Path) -> Iterator[tuple[Any, str | None]]:
    """What each document of a file holds, ``None`` if nothing, and, where there is one, the key that a mapping of it has twice.

    Raises OSError, and what ``said_of`` describes: UnicodeDecodeError, YAMLError and RecursionError.
    """
    loader = _Loader(path.read_bytes().decode("utf-8"))
    while loader.check_node():
        loader.repeated = None
        document = loader.get_data()
        yield document, loader.repeated


def said_of(error: yaml.YAMLError | UnicodeDecodeError | RecursionError) -> str:
    """What is wrong with a file, in which line if that is known."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or an alias (*) stands within what it names (&)"
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line}: it is not UTF-8 ({error.reason}); save it as UTF-8"
    if isinstance(error, yaml.MarkedYAMLError):
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        remedy = '; a template stands in quotes: "{{ env.NAME }}"' if error.problem == _UNHASHABLE else ""
        return where + _QUOTED.sub("(a value)", "; ".join(part for part in (error.context, error.problem) if part)) + remedy
    return error.reason if isinstance(error, yaml.reader.ReaderError) else str(error)
