"""Definitions of the two search indexes of a collection, as MongoDB's search commands take and give them.

What belongs here: pure functions. A definition that exists is only ever added to: other exports of the collection may have
declared fields this one does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pipeline.errors import SinkConflict
from pipeline.sinks.base import MetadataType, SinkContext
from pipeline.sinks.filters import RECORD_FIELDS
from pipeline.sinks.mongodb_layout import filter_path

VECTOR_INDEX: Final = "vector_index"
TEXT_INDEX: Final = "fulltext_index"
"""The names LlamaIndex looks for by default."""

_SCOPE: Final = ("tenant_id", "export_config_id")
_NODE_FIELDS: Final[Mapping[str, MetadataType]] = {**RECORD_FIELDS, "doc_id": "string"}
_TEXT_TYPES: Final[Mapping[MetadataType, Mapping[str, Any]]] = {
    "string": {"type": "token"},
    "integer": {"type": "number", "representation": "int64"},
    "float": {"type": "number", "representation": "double"},
    "boolean": {"type": "boolean"},
    "string_list": {"type": "token"},
}
_REMEDY: Final = "drop the index and provision again, or choose another collection_prefix"


def vector_definition(context: SinkContext) -> dict[str, Any]:
    vector = {"type": "vector", "path": "embedding", "numDimensions": context.model.dimension, "similarity": "cosine"}
    return {"fields": [vector, *_filters(_paths(context))]}


def grown_vector_definition(found: Mapping[str, Any], context: SinkContext) -> dict[str, Any] | None:
    """``found`` with the paths it lacks, ``None`` when it lacks none. Raises SinkConflict when its vectors do not fit."""
    held = found.get("fields", [])
    wanted = vector_definition(context)["fields"][0]
    vector: Mapping[str, Any] = next((item for item in held if item.get("path") == "embedding"), {})
    for name, value in wanted.items():
        if vector.get(name) != value:
            raise SinkConflict(f"search index {VECTOR_INDEX!r}: its {name} is {vector.get(name)!r}, not {value!r}; {_REMEDY}")
    present = {item.get("path") for item in held if item.get("type") == "filter"}
    missing = [path for path in _paths(context) if path not in present]
    return {**found, "fields": [*held, *_filters(missing)]} if missing else None


def _paths(context: SinkContext) -> list[str]:
    return [*_SCOPE, *map(filter_path, (*_NODE_FIELDS, *context.metadata_fields))]


def _filters(paths: Iterable[str]) -> list[dict[str, str]]:
    return [{"type": "filter", "path": path} for path in paths]


def text_definition(context: SinkContext) -> dict[str, Any]:
    fields: dict[str, Any] = {"text": {"type": "string"}, **dict.fromkeys(_SCOPE, _TEXT_TYPES["string"])}
    fields["metadata"] = {"type": "document", "fields": _node_types(context)}
    return {"mappings": {"dynamic": False, "fields": fields}}


def grown_text_definition(found: Mapping[str, Any], context: SinkContext) -> dict[str, Any] | None:
    """``found`` with the fields it lacks, ``None`` when it lacks none. Raises SinkConflict when one has another type."""
    wanted = text_definition(context)["mappings"]["fields"]
    held = found.get("mappings", {}).get("fields", {})
    for name, kind in wanted.items():
        _check_type(held, name, kind)
    kinds = _kinds(held.get("metadata", wanted["metadata"]))
    node = next(kind for kind in kinds if kind["type"] == "document")
    fields = node.get("fields", {})
    for name, kind in wanted["metadata"]["fields"].items():
        _check_type(fields, name, kind)
    grown = {**node, "fields": {**wanted["metadata"]["fields"], **fields}}
    several = [grown if kind is node else kind for kind in kinds]
    complete = {**wanted, **held, "metadata": several if isinstance(held.get("metadata"), list) else grown}
    if complete == held:
        return None
    return {**found, "mappings": {**found.get("mappings", {}), "fields": complete}}


def _node_types(context: SinkContext) -> dict[str, Mapping[str, Any]]:
    return {name: _TEXT_TYPES[kind] for name, kind in {**_NODE_FIELDS, **context.metadata_fields}.items()}


def _kinds(held: Any) -> list[Mapping[str, Any]]:
    """How a field is indexed: in one way, or in several, which are a list (documented by the vendor)."""
    return held if isinstance(held, list) else [held]


def _check_type(held: Mapping[str, Any], name: str, wanted: Mapping[str, Any]) -> None:
    """The server may answer with more than it was given, such as defaults; what was given must be there."""
    options = [option for option in ("type", "representation") if option in wanted]
    kinds = _kinds(held.get(name, wanted))
    if not any(all(kind.get(option) == wanted[option] for option in options) for kind in kinds):
        shown = " and ".join(repr(kind.get("representation", kind.get("type"))) for kind in kinds)
        raise SinkConflict(
            f"search index {TEXT_INDEX!r} holds field {name!r} as {shown}, the sink declares it as {wanted[options[-1]]!r}; "
            f"declare it as before, or {_REMEDY}"
        )
