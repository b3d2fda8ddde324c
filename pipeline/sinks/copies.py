"""Copies of a record's fields that a store keeps beside the record, for its filters and for LlamaIndex to read.

What belongs here: how a record that is read back shows that its copies are not those that were written with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

import pyarrow as pa

from pipeline.sinks.records import canonical_json

ALTERED: Final = "altered copies"
"""Key in the metadata of a record that is read back with such copies; its value names them."""


def readable(records: pa.Table) -> pa.Table:
    """The records, with empty metadata where theirs has been altered to no metadata, so that they can be encoded again."""
    texts = records["metadata"].to_pylist()
    sound = {text for text in set(texts) if _is_metadata(text)}
    return _with_metadata(records, [text if text in sound else "{}" for text in texts])


def show_altered(records: pa.Table, altered: Mapping[int, Iterable[str]]) -> pa.Table:
    """The records, those in these rows with the names of their altered copies added to their metadata."""
    if not altered:
        return records
    texts = readable(records)["metadata"].to_pylist()
    for row, names in altered.items():
        texts[row] = canonical_json({**json.loads(texts[row]), ALTERED: sorted(names)})
    return _with_metadata(records, texts)


def _is_metadata(text: str | None) -> bool:
    try:
        metadata = json.loads(text or "")
        return isinstance(metadata, dict) and canonical_json(metadata) == text
    except ValueError:
        return False


def _with_metadata(records: pa.Table, texts: list[str]) -> pa.Table:
    index = records.schema.get_field_index("metadata")
    return records.set_column(index, records.schema.field(index), pa.array(texts, pa.string()))
