"""Attributes of an emulated Turbopuffer namespace: types, inference, what fits them, and the documented limits."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline_tests.emulators.http import ApiError

MAX_ID_BYTES = 64
MAX_NAME_BYTES = 128
MAX_ATTRIBUTES = 1024
MAX_VALUE_BYTES = 8 * 2**20
MAX_FILTERABLE_BYTES = 4 * 2**10
MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_DIMENSION = 10_752
MAX_VECTOR_COLUMNS = 2

_SCALARS = ("string", "int", "uint", "float", "uuid", "datetime", "bool")
_VECTOR = re.compile(r"\[(\d+)\]f(32|16)")
_CHANGEABLE = ("filterable", "full_text_search", "regex", "glob", "fuzzy")


def bad(message: str) -> ApiError:
    return ApiError(400, message)


@dataclass(frozen=True)
class Attribute:
    type: str
    filterable: bool | None
    full_text_search: dict[str, Any] | None = None
    ann: dict[str, Any] | None = None

    @property
    def dimension(self) -> int | None:
        found = _VECTOR.fullmatch(self.type)
        return int(found[1]) if found else None

    @property
    def element(self) -> str:
        return self.type.removeprefix("[]")

    @property
    def is_array(self) -> bool:
        return self.type.startswith("[]")

    def as_json(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "filterable": self.filterable,
            "full_text_search": self.full_text_search,
            "ann": self.ann,
        }


def parse_attribute(name: str, written: Any) -> Attribute:
    """A schema entry: a type alone or an object."""
    config: dict[str, Any] = {"type": written} if isinstance(written, str) else dict(written)
    kind = config.pop("type", None)
    if not isinstance(kind, str) or (kind.removeprefix("[]") not in _SCALARS and not _VECTOR.fullmatch(kind)):
        raise bad(f"invalid type for attribute {name!r}: {kind!r}")
    search = config.pop("full_text_search", False)
    search = {} if search is True else search or None
    if search is not None and kind not in ("string", "[]string"):
        raise bad(f"full_text_search requires a string attribute, {name!r} is {kind}")
    ann = config.pop("ann", False)
    default: bool | None = None if name == "id" or _VECTOR.fullmatch(kind) else search is None
    attribute = Attribute(kind, config.pop("filterable", default), search, None if not ann else {} if ann is True else ann)
    if config:
        raise bad(f"unknown schema options for attribute {name!r}: {sorted(config)}")
    if attribute.dimension is not None and not attribute.ann and ann is False:
        raise bad(f"vector attribute {name!r} requires ann: true")
    if (attribute.dimension or 0) > MAX_DIMENSION:
        raise bad(f"vector attribute {name!r} has more than {MAX_DIMENSION} dimensions")
    return attribute


def merge(
    schema: Mapping[str, Attribute], written: Mapping[str, Any], *, exists: bool, metric: str | None
) -> dict[str, Attribute]:
    """The schema after a write's own; types and vector columns of an existing namespace cannot change."""
    merged = dict(schema)
    for name, entry in written.items():
        if name.startswith("$") or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise bad(f"invalid attribute name {name[:200]!r}")
        attribute = parse_attribute(name, entry)
        if attribute.ann is not None:
            attribute = replace(attribute, ann={"distance_metric": metric, **attribute.ann})
        held = merged.get(name)
        if held is not None and held.type != attribute.type:
            raise bad(f"attribute {name!r} has type {held.type}, cannot change it to {attribute.type}")
        if held is None and exists and attribute.dimension is not None:
            raise bad(f"cannot add vector attribute {name!r} to an existing namespace")
        merged[name] = attribute if held is None else replace(attribute, ann=held.ann)
    if len(merged) > MAX_ATTRIBUTES:
        raise bad(f"namespace has more than {MAX_ATTRIBUTES} attributes")
    if sum(attribute.dimension is not None for attribute in merged.values()) > MAX_VECTOR_COLUMNS:
        raise bad(f"namespace has more than {MAX_VECTOR_COLUMNS} vector attributes")
    return merged


def infer(name: str, value: Any, metric: str | None) -> Attribute:
    """The type of an attribute nothing declares, from its first value."""
    if name == "vector":
        size = len(decode_vector(value)) if isinstance(value, str) else len(value)
        return Attribute(f"[{size}]f32", None, None, {"distance_metric": metric})
    sample, prefix = (value[0] if value else "", "[]") if isinstance(value, list) else (value, "")
    for kind, python in (("bool", bool), ("int", int), ("float", float), ("string", str)):
        if isinstance(sample, python):
            return Attribute(prefix + kind, True)
    raise bad(f"cannot infer a type for attribute {name!r}")


def decode_vector(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (binascii.Error, ValueError):
        raise bad("a vector is not base64 of little-endian float32") from None


def parse_id(written: Any, kind: str) -> Any:
    """An id as it is kept. Raises for one of another type than the namespace's."""
    if kind == "uuid" and isinstance(written, str):
        try:
            return str(uuid.UUID(written))
        except ValueError:
            raise bad(f"invalid uuid id {written!r}") from None
    if kind == "string" and isinstance(written, str) and 0 < len(written.encode()) <= MAX_ID_BYTES:
        return written
    if kind == "uint" and isinstance(written, int) and not isinstance(written, bool) and 0 <= written < 2**64:
        return written
    raise bad(f"invalid id {str(written)[:100]!r} for id type {kind} (strings have at most {MAX_ID_BYTES} bytes)")


def parse_value(name: str, attribute: Attribute, written: Any) -> Any:
    """A value as it is kept; refuses what is of another type or too large."""
    if written is None:
        return None
    if attribute.dimension is not None:
        vector = decode_vector(written) if isinstance(written, str) else np.asarray(written, np.float32)
        if vector.shape != (attribute.dimension,) or not np.isfinite(vector).all():
            raise bad(f"attribute {name!r} needs {attribute.dimension} finite numbers, got shape {vector.shape}")
        return vector
    if attribute.is_array:
        if not isinstance(written, list):
            raise bad(f"attribute {name!r} has type {attribute.type}, got {type(written).__name__}")
        return [parse_scalar(name, attribute, item) for item in written]
    return parse_scalar(name, attribute, written)


def parse_scalar(name: str, attribute: Attribute, written: Any) -> Any:
    kind = attribute.element
    fits = {
        "string": isinstance(written, str),
        "uuid": isinstance(written, str),
        "datetime": isinstance(written, str),
        "bool": isinstance(written, bool),
        "int": isinstance(written, int) and not isinstance(written, bool) and -(2**63) <= written < 2**63,
        "uint": isinstance(written, int) and not isinstance(written, bool) and 0 <= written < 2**64,
        "float": isinstance(written, int | float) and not isinstance(written, bool),
    }
    if not fits[kind]:
        raise bad(f"attribute {name!r} has type {attribute.type}, got {type(written).__name__}")
    if kind == "string":
        limit = MAX_FILTERABLE_BYTES if attribute.filterable else MAX_VALUE_BYTES
        if len(written) * 4 > limit and len(written.encode()) > limit:
            raise bad(f"value of attribute {name!r} is larger than {limit} bytes")
    if kind == "uuid":
        return parse_id(written, "uuid")
    if kind == "datetime":
        return _parse_datetime(name, written)
    return float(written) if kind == "float" else written


def _parse_datetime(name: str, written: str) -> str:
    """Kept in the form it is answered in: UTC, cut to milliseconds."""
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        raise bad(f"attribute {name!r} needs an ISO 8601 datetime, got {written[:100]!r}") from None
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}000000Z"


def document_bytes(document: Mapping[str, Any]) -> int:
    return sum(
        value.nbytes if isinstance(value, np.ndarray) else len(value.encode()) if isinstance(value, str) else 8
        for value in document.values()
    )
