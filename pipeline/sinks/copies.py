"""Copies of a record's fields that a store keeps beside the record, for its filters and for LlamaIndex to read.

What belongs here: how a record that is read back shows that its copies are not those that were written with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from pipeline.sinks.base import MetadataType
from pipeline.sinks.filters import FieldValue, fitting_by_row
from pipeline.sinks.records import canonical_json

ALTERED: Final = "altered copies"
"""Key in the metadata of a record that is read back with such copies; its value names them."""


def readable(records: pa.Table) -> pa.Table:
    """The records, with empty metadata where theirs has been altered to no metadata, so that they can be encoded again."""
    texts = records["metadata"].to_pylist()
    sound = {text for text in set(texts) if _is_metadata(text)}
    return _with_metadata(records, [text if text in sound else "{}" for text in texts])


def compare(records: pa.Table, held: Sequence[Mapping[str, Any]], *belongs: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The records, which show what of that which ``belongs`` beside them is held otherwise; of one name the last says its value,
    and a copy without a value is not held."""
    altered = {}
    for row, (values, *parts) in enumerate(zip(held, *belongs, strict=True)):
        wanted = {name: value for part in parts for name, value in part.items()}
        names = [name for name, value in wanted.items() if not _same(values.get(name), value)]
        if names:
            altered[row] = names
    return show_altered(records, altered)


def filled_fields(
    records: pa.Table,
    held: Sequence[Mapping[str, Any]],
    declared: Mapping[str, MetadataType],
    written_for: str,
    name_of: Callable[[str], str] = str,
) -> list[dict[str, FieldValue]]:
    """Of every record the declared fields as filters find them, by the name the store has for them. Without those declared
    since and not filled in yet: what a record was written for is in its field ``written_for``."""
    found = []
    for fitting, values in zip(fitting_by_row(records["metadata"].to_pylist(), declared), held, strict=True):
        known = values.get(written_for)
        keys = known if isinstance(known, list) else []
        named = ((key, name_of(key), value) for key, value in fitting.items())
        found.append({name: value for key, name, value in named if key in keys or values.get(name) is not None})
    return found


def show_altered(records: pa.Table, altered: Mapping[int, Iterable[str]]) -> pa.Table:
    """The records, those in these rows with the names of their altered copies added to their metadata."""
    if not altered:
        return records
    texts = readable(records)["metadata"].to_pylist()
    for row, names in altered.items():
        texts[row] = canonical_json({**json.loads(texts[row]), ALTERED: sorted(names)})
    return _with_metadata(records, texts)


def _same(held: Any, wanted: Any) -> bool:
    """Numbers by value, as some stores hold all of them as floats; true is not 1."""
    if held in (None, []) or wanted in (None, []):
        return held in (None, []) and wanted in (None, [])
    return bool(held == wanted) and isinstance(held, bool) is isinstance(wanted, bool)


def _is_metadata(text: str | None) -> bool:
    try:
        metadata = json.loads(text or "")
        return isinstance(metadata, dict) and canonical_json(metadata) == text
    except ValueError:
        return False


def _with_metadata(records: pa.Table, texts: list[str]) -> pa.Table:
    index = records.schema.get_field_index("metadata")
    return records.set_column(index, records.schema.field(index), pa.array(texts, pa.string()))
