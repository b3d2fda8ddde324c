"""Metadata fields declared for filtering, and the conditions a search puts on them.

What belongs here: what a filter means and which values fit a declared type. How a store spells a condition is that
store's own module; it renders ``Condition`` and never looks at the mapping a caller wrote.

Meaning, in every store: conditions hold together (AND). On a list field, ``eq`` and ``in`` ask whether the list contains
the value or one of the values. ``ne`` and ``nin`` are the exact opposites of ``eq`` and ``in``, so they also hold for a
record without the key; the other operators never do. Order is defined for numbers only. A file whose value does not have the
declared type is refused; where one was written before the field was declared, pgvector, MongoDB and Pinecone compare what
stands there as it is, and the others take it for a record without the key.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from pipeline.errors import RecordRefused
from pipeline.sinks.base import RESERVED_KEYS, Filters, MetadataType
from pipeline.sinks.reading import from_json
from pipeline.sinks.records import FileRecords

Operator = Literal["eq", "ne", "in", "nin", "gt", "gte", "lt", "lte"]
FilterValue = str | int | float | bool
FieldValue = FilterValue | list[str] | None

RECORD_FIELDS: Mapping[str, MetadataType] = {"parsed_directory_file_id": "string", "file_name": "string"}
"""Fields of every record that can be filtered on without being declared."""

_OPERATORS: frozenset[str] = frozenset(get_args(Operator))
_ORDERING = frozenset({"gt", "gte", "lt", "lte"})
_INT64 = range(-(2**63), 2**63)
_NAMED: Mapping[MetadataType, str] = {
    "string": "a string",
    "integer": "an integer of up to 64 bits",
    "float": "a number in the range of a float",
    "boolean": "a boolean",
    "string_list": "a list of strings",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One checked condition. ``values`` has exactly one element unless the operator is ``in`` or ``nin``, then at least one.

    Values have the type of ``type`` exactly: ``float`` for a float field even where the caller wrote an integer, ``str`` for
    a ``string_list`` field.
    """

    field: str
    type: MetadataType
    operator: Operator
    values: tuple[FilterValue, ...]

    @property
    def is_metadata(self) -> bool:
        """Whether ``field`` is a declared metadata key rather than a field of the record."""
        return self.field not in RECORD_FIELDS

    @property
    def negated(self) -> bool:
        return self.operator in ("ne", "nin")

    @property
    def is_order(self) -> bool:
        """Whether it compares numbers: its operator is gt, gte, lt or lte."""
        return self.operator in _ORDERING


def parse_filters(filters: Filters, declared: Mapping[str, MetadataType]) -> tuple[Condition, ...]:
    """The conditions of a filter mapping, checked against the declared metadata fields.

    Raises ValueError, naming the key, for an undeclared key, an unknown operator or a value of another type.
    """
    fields = {**declared, **RECORD_FIELDS}
    conditions = []
    for key, written in filters.items():
        if key not in fields and key in RESERVED_KEYS:
            raise ValueError(
                f"cannot filter on {key!r}: of a record's own fields a search filters on only {' and '.join(RECORD_FIELDS)}; "
                f"declared metadata: {', '.join(sorted(declared)) or 'none'}"
            )
        if key not in fields:
            raise ValueError(
                f"cannot filter on {key!r}: declare it in the export's metadata_fields; known: {', '.join(sorted(fields))}"
            )
        operations = written if isinstance(written, Mapping) else {"eq": written}
        conditions += [_condition(key, fields[key], operator, value) for operator, value in operations.items()]
    return tuple(conditions)


def _condition(key: str, kind: MetadataType, operator: str, written: Any) -> Condition:
    if operator not in _OPERATORS:
        raise ValueError(f"filter on {key!r}: unknown operator {operator!r}; known: {', '.join(get_args(Operator))}")
    if operator in _ORDERING and kind not in ("integer", "float"):
        raise ValueError(f"filter on {key!r}: {operator!r} compares numbers, not values of type {kind}")
    if operator not in ("in", "nin"):
        written = [written]
    elif isinstance(written, str) or not isinstance(written, Sequence) or not written:
        raise ValueError(f"filter on {key!r}: {operator!r} needs a list of at least one value")
    element: MetadataType = "string" if kind == "string_list" else kind
    values = tuple(_typed(value, element, f"a value of the filter on {key!r}") for value in written)
    return Condition(key, kind, cast(Operator, operator), values)


def _typed(value: Any, kind: MetadataType, where: str) -> FilterValue:
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        value = float(value)
    if kind == "string" and isinstance(value, str):
        value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    fits = {
        "string": isinstance(value, str),
        "integer": isinstance(value, int) and not isinstance(value, bool) and value in _INT64,
        "float": isinstance(value, float) and math.isfinite(value),
        "boolean": isinstance(value, bool),
    }
    if not fits[kind]:
        raise ValueError(f"{where} is {_told(value)}, not {_NAMED[kind]}")
    return cast(FilterValue, value)


def _told(value: Any) -> str:
    """A value's type and size. What it says is its document's: reasons are recorded in more places, and for longer, than that."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer" if value in _INT64 else f"an integer of {value.bit_length() + 1:,} bits"
        case float():
            return "a float" if math.isfinite(value) else "NaN or infinity"
        case str():
            return f"a string of {_counted(len(value), 'character')}"
        case list():
            return f"a list of {_counted(len(value), 'element')}"
    return f"of the type {type(value).__name__}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def declared_values(metadata: Mapping[str, Any], declared: Mapping[str, MetadataType]) -> dict[str, FieldValue]:
    """The value of every declared field, ``None`` where the metadata lacks it.

    Raises ValueError, naming the field, for a value of another type than the declared one, which it does not repeat.
    """
    return {key: _field_value(metadata.get(key), kind, f"metadata field {key!r}") for key, kind in declared.items()}


def _field_value(value: Any, kind: MetadataType, where: str) -> FieldValue:
    if value is None:
        return None
    if kind != "string_list":
        return _typed(value, kind, where)
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_told(value)}, not {_NAMED[kind]}")
    return [cast(str, _typed(element, "string", f"an element of {where}")) for element in value]


def fitting_values(metadata_json: object, declared: Mapping[str, MetadataType]) -> dict[str, FieldValue]:
    """``fitting_fields`` of metadata as JSON; none of what is no metadata, which another program has put in its place."""
    metadata = from_json(metadata_json)
    return fitting_fields(metadata if isinstance(metadata, dict) else {}, declared)


def fitting_fields(metadata: Mapping[str, Any], declared: Mapping[str, MetadataType]) -> dict[str, FieldValue]:
    """``declared_values``, as far as they have the declared type: another export's files need not."""
    fields: dict[str, FieldValue] = dict.fromkeys(declared)
    for key, kind in declared.items():
        with suppress(ValueError):
            fields[key] = _field_value(metadata.get(key), kind, key)
    return fields


def fitting_by_row(metadata_jsons: Sequence[object], declared: Mapping[str, MetadataType]) -> list[Mapping[str, FieldValue]]:
    """``fitting_values`` of every row's metadata, which the rows of a file have in common: each text is parsed once."""
    fitting = {metadata_json: fitting_values(metadata_json, declared) for metadata_json in set(metadata_jsons)}
    return [fitting[metadata_json] for metadata_json in metadata_jsons]


def fields_of_file(file: FileRecords, declared: Mapping[str, MetadataType]) -> dict[str, FieldValue]:
    """``declared_values`` of a file; raises RecordRefused, which names the file and the remedy, where they do not fit."""
    try:
        return declared_values(file.provenance.metadata, declared)
    except ValueError as error:
        raise RecordRefused(file.file_id, f"{error}; correct the file's metadata or the type declared for it") from error
