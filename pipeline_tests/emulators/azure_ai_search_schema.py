"""The fields of an emulated Azure AI Search index: definitions as the service completes them, and values they take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline_tests.emulators.http import ApiError

MAX_TERM_BYTES = 32_766
MAX_FIELDS = 1000
_INDEX_NAME = re.compile(r"(?=.{2,128}$)[a-z0-9]+(-[a-z0-9]+)*")
_FIELD_NAME = re.compile(r"(?!azureSearch)[A-Za-z][A-Za-z0-9_]{0,127}", re.IGNORECASE)
_KEY = re.compile(r"[A-Za-z0-9=-][A-Za-z0-9_=-]{0,1023}")
_SCALARS = {"Edm.String", "Edm.Int32", "Edm.Int64", "Edm.Double", "Edm.Boolean", "Edm.DateTimeOffset"}
_ATTRIBUTES = ("key", "searchable", "filterable", "sortable", "facetable", "retrievable")


class DocumentError(Exception):
    """A document that fails alone."""


def bad(message: str, code: str = "") -> ApiError:
    return ApiError(400, message, code)


@dataclass(frozen=True)
class Field:
    name: str
    type: str
    key: bool
    searchable: bool
    filterable: bool
    sortable: bool
    facetable: bool
    retrievable: bool
    dimensions: int | None = None
    profile: str | None = None

    @property
    def is_vector(self) -> bool:
        return self.type == "Collection(Edm.Single)"

    @property
    def is_collection(self) -> bool:
        return self.type.startswith("Collection(")

    @property
    def element(self) -> str:
        return self.type[len("Collection(") : -1] if self.is_collection else self.type

    def value(self, value: Any) -> Any:
        """A written value as the index keeps it. Raises ApiError for one of another type."""
        if value is None:
            return [] if self.is_collection and not self.is_vector else None
        if self.is_vector:
            return self._vector(value)
        if self.is_collection:
            if not isinstance(value, list):
                raise bad(f"The request is invalid. Cannot convert '{value}' of field '{self.name}' to {self.type}.")
            return [_scalar(self, item) for item in value]
        return _scalar(self, value)

    def _vector(self, value: Any) -> Any:
        if not isinstance(value, list) or len(value) != self.dimensions:
            count = len(value) if isinstance(value, list) else 0
            raise bad(
                f"The vector field '{self.name}', with dimension '{self.dimensions}', expects a length of "
                f"'{self.dimensions}'. However, the provided vector has a length of '{count}'. "
            )
        vector = np.asarray(value, np.float32)
        if not np.isfinite(vector).all():
            raise bad(f"The vector of field '{self.name}' is not finite.")
        return vector

    def check_terms(self, value: Any) -> None:
        """Raises DocumentError for a string too long to be a term."""
        if self.element != "Edm.String" or not (self.filterable or self.sortable or self.facetable):
            return
        for term in value if isinstance(value, list) else [value]:
            if term is not None and len(term.encode()) > MAX_TERM_BYTES:
                raise DocumentError(
                    f"Field '{self.name}' contains a term that is too large to process. The max length for UTF-8 encoded "
                    "terms is 32766 bytes."
                )


def _scalar(field: Field, value: Any) -> Any:
    kind = field.element
    fits = {
        "Edm.String": isinstance(value, str),
        "Edm.Boolean": isinstance(value, bool),
        "Edm.Int32": _is_integer(value) and -(2**31) <= value < 2**31,
        "Edm.Int64": _is_integer(value) and -(2**63) <= value < 2**63,
        "Edm.Double": _is_integer(value) or (isinstance(value, float) and math.isfinite(value)),
        "Edm.DateTimeOffset": isinstance(value, str),
    }
    if not fits[kind]:
        raise bad(f"The request is invalid. Cannot convert the value of field '{field.name}' to the expected type '{kind}'.")
    if kind == "Edm.Double":
        return float(value)
    return instant(value) if kind == "Edm.DateTimeOffset" else value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def instant(value: str) -> str:
    """A point in time as the service writes it: UTC, milliseconds where there are any."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise bad(f"Cannot convert the literal '{value}' to the expected type 'Edm.DateTimeOffset'.") from None
    if moment.tzinfo is None:
        raise bad(f"'{value}' has no time zone offset.")
    written = moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return written.replace(".000Z", "Z")


def check_key(value: Any) -> str:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise bad(
            f"Invalid document key: '{value}'. Keys can only contain letters, digits, underscore (_), dash (-), or equal sign "
            "(=). If the keys in your source data contain other characters, we recommend encoding them with a URL-safe version "
            "of Base64 before uploading them to your index.",
            "InvalidDocumentKey",
        )
    return value


def parse_fields(definition: Mapping[str, Any]) -> dict[str, Field]:
    """The fields of a definition. Raises ApiError for one the service would not take."""
    if not _INDEX_NAME.fullmatch(str(definition.get("name"))):
        raise bad(
            f"Invalid index name: '{definition.get('name')}'. Index name must only contain lowercase letters, digits or dashes"
        )
    listed = definition.get("fields") or []
    fields = {item["name"]: _field(item) for item in listed}
    if len(fields) != len(listed) or len(fields) > MAX_FIELDS:
        raise bad("The request is invalid. Details: definition : field names must be unique, and not more than 1000.")
    if sum(field.key for field in fields.values()) != 1:
        raise bad("The request is invalid. Details: index : Found 0 or several key fields. Each index must have exactly one key.")
    profiles = {item["name"]: item["algorithm"] for item in (definition.get("vectorSearch") or {}).get("profiles", ())}
    algorithms = {item["name"] for item in (definition.get("vectorSearch") or {}).get("algorithms", ())}
    for field in fields.values():
        if field.is_vector and profiles.get(field.profile or "") not in algorithms:
            raise bad(f"The vector field '{field.name}' must have the property 'vectorSearchProfile' set to one that exists.")
        if field.is_vector and not 2 <= (field.dimensions or 0) <= 4096:
            raise bad(f"The vector field '{field.name}' must have between 2 and 4096 dimensions.")
    for configuration in (definition.get("semantic") or {}).get("configurations", ()):
        for name in _semantic_fields(configuration["prioritizedFields"]):
            if name not in fields or not (fields[name].searchable and fields[name].retrievable):
                raise bad(f"The semantic configuration names the field '{name}', which is not a searchable and retrievable one.")
    return fields


def _semantic_fields(prioritized: Mapping[str, Any]) -> list[str]:
    title = prioritized.get("titleField")
    listed = [*prioritized.get("prioritizedContentFields", ()), *prioritized.get("prioritizedKeywordsFields", ())]
    return [part["fieldName"] for part in ([title] if title else []) + listed]


def _field(item: Mapping[str, Any]) -> Field:
    name, kind = item.get("name", ""), item.get("type", "")
    if not _FIELD_NAME.fullmatch(name):
        raise bad(f"Invalid field name '{name}': only letters, digits and underscores, beginning with a letter.")
    element = kind[len("Collection(") : -1] if kind.startswith("Collection(") else kind
    if element not in _SCALARS and kind != "Collection(Edm.Single)":
        raise bad(f"The field '{name}' has the unsupported type '{kind}'.")
    text, vector, several = element == "Edm.String", kind == "Collection(Edm.Single)", kind.startswith("Collection(")
    defaults = {
        "key": False,
        "searchable": text or vector,
        "filterable": not vector,
        "sortable": not several,
        "facetable": not vector,
        "retrievable": True,
    }
    given = {name: item[name] if item.get(name) is not None else default for name, default in defaults.items()}
    if given["sortable"] and several:
        raise bad(f"The field '{name}' of type '{kind}' cannot be sortable.")
    if given["searchable"] and not (text or vector):
        raise bad(f"The field '{name}' of type '{kind}' cannot be searchable.")
    if vector and (given["filterable"] or given["facetable"]):
        raise bad(f"The field '{name}' of type '{kind}' cannot be filterable or facetable.")
    if given["key"] and kind != "Edm.String":
        raise bad(f"The key field '{name}' must be of type Edm.String.")
    if item.get("analyzer") and not (given["searchable"] and text):
        raise bad(f"The field '{name}' has an analyzer and is not searchable text.")
    return Field(name=name, type=kind, dimensions=item.get("dimensions"), profile=item.get("vectorSearchProfile"), **given)


def completed(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as the service answers it: every attribute of every field written out."""
    parsed = parse_fields(definition)
    fields = []
    for item in definition["fields"]:
        field = parsed[item["name"]]
        whole = {attribute: getattr(field, attribute) for attribute in _ATTRIBUTES}
        rest: dict[str, Any] = {
            "analyzer": None,
            "dimensions": None,
            "vectorSearchProfile": None,
            "synonymMaps": [],
            "stored": True,
        }
        fields.append({**rest, **item, **whole})
    kept = {key: value for key, value in definition.items() if not key.startswith("@")}
    return {**kept, "fields": fields, "scoringProfiles": kept.get("scoringProfiles") or []}


def check_update(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ApiError for a change of what cannot be changed."""
    held = {item["name"]: item for item in old["fields"]}
    wanted = {item["name"]: item for item in new["fields"]}
    gone = sorted(held.keys() - wanted.keys())
    if gone:
        raise bad(f"Existing field(s) '{', '.join(gone)}' cannot be deleted.", "OperationNotAllowed")
    changed = sorted(name for name, item in held.items() if wanted[name] != item)
    if changed:
        raise bad(f"Existing field(s) '{', '.join(changed)}' cannot be changed.", "OperationNotAllowed")
    for kind in ("algorithms", "profiles"):
        before = _by_name((old.get("vectorSearch") or {}).get(kind, ()))
        after = _by_name((new.get("vectorSearch") or {}).get(kind, ()))
        if any(after.get(name) != item for name, item in before.items()):
            raise bad(f"Existing vector search {kind} cannot be changed.", "OperationNotAllowed")


def _by_name(items: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {item["name"]: item for item in items}
