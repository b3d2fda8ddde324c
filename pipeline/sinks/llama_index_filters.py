# mypy: disable-error-code="import-not-found", allow-subclassing-any
# LlamaIndex has an environment of its own, which the type checker does not see.
"""What a query of LlamaIndex's asks for, in the words of a sink's filters.

What belongs here: LlamaIndex's filters, documents and options, and which of them are refused because sinks have nothing like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from pipeline.sinks.base import MetadataType

_OPERATORS: Final[dict[FilterOperator, str]] = {
    FilterOperator.EQ: "eq",
    FilterOperator.NE: "ne",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "nin",
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
    FilterOperator.CONTAINS: "eq",
    FilterOperator.ANY: "in",
}
"""``contains`` and ``any`` ask of a list what ``eq`` and ``in`` ask of one here."""

_NO_OPTIONS: Final = ("alpha", "hybrid_top_k", "sparse_top_k")


def refuse_options(query: VectorStoreQuery) -> None:
    """Raises ValueError for an option of LlamaIndex's that would change nothing."""
    given = [name for name in _NO_OPTIONS if getattr(query, name) is not None]
    if given:
        raise ValueError(
            f"sinks have no {', '.join(given)}: both halves of a hybrid search count alike; set similarity_top_k alone"
        )


def filters_of(query: VectorStoreQuery, export_config_id: str, declared: Mapping[str, MetadataType]) -> dict[str, Any]:
    """Its metadata filters and documents, as a search of the sink is given them.

    Raises ValueError for an operator or a combination that sinks do not have, and for a document of another export.
    """
    written: dict[str, dict[str, Any]] = {}
    for item in _flat(query.filters):
        operations = written.setdefault(item.key, {})
        operator = _OPERATORS.get(item.operator)
        if operator is None or operator in operations:
            problem = "given twice" if operator else f"not one of {', '.join(known.value for known in _OPERATORS)}"
            raise ValueError(f"filter on {item.key!r}: {item.operator.value!r} is {problem}")
        operations[operator] = _value(item, declared)
    if query.doc_ids:
        operations = written.setdefault("parsed_directory_file_id", {})
        if "in" in operations:
            raise ValueError("filter on 'parsed_directory_file_id': 'in' is given twice, as a filter and as doc_ids")
        operations["in"] = [file_id_of(ref_doc_id, export_config_id) for ref_doc_id in query.doc_ids]
    return dict(written)


def _value(item: MetadataFilter, declared: Mapping[str, MetadataType]) -> Any:
    """LlamaIndex's filters have no booleans, only 0 and 1."""
    if declared.get(item.key) != "boolean":
        return item.value
    truth = {0: False, 1: True}
    return [truth.get(one, one) for one in item.value] if isinstance(item.value, list) else truth.get(item.value, item.value)


def file_id_of(ref_doc_id: str, export_config_id: str) -> str:
    """The file a document of LlamaIndex's is. Raises ValueError for one of another export."""
    prefix = f"{export_config_id}:"
    if not ref_doc_id.startswith(prefix):
        raise ValueError(f"document {ref_doc_id!r} is not one of export {export_config_id!r}")
    return ref_doc_id.removeprefix(prefix)


def _flat(filters: MetadataFilters | None) -> list[MetadataFilter]:
    """The filters of nested ANDs. Raises ValueError for any other combination of several."""
    if filters is None:
        return []
    if filters.condition not in (None, FilterCondition.AND) and (
        len(filters.filters) > 1 or filters.condition == FilterCondition.NOT
    ):
        raise ValueError(f"filters of a sink hold together; {filters.condition.value!r} is not supported")
    nested = [_flat(item) if isinstance(item, MetadataFilters) else [item] for item in filters.filters]
    return [item for items in nested for item in items]
