"""Queries of an emulated Turbopuffer namespace: filters, order, exact vector search, BM25, counts by group."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_tests.emulators.http import ApiError
from pipeline_tests.emulators.turbopuffer_schema import Attribute, bad, parse_id, parse_scalar

MAX_LIMIT = 10_000
MAX_QUERIES = 16
MAX_QUERY_TEXT = 1024

Document = dict[str, Any]
Predicate = Callable[[Document], bool]
Schema = Mapping[str, Attribute]

_K1, _B = 1.2, 0.75
_TOKEN = re.compile(r"\w+")
_MISSING = object()


def tokens(text: str) -> Counter[str]:
    return Counter(_TOKEN.findall(text.lower()))


def compile_filter(schema: Schema, written: Any, new: Document | None = None) -> Predicate:
    """A filter as a function; ``new`` is what ``$ref_new`` means. Refuses unknown and unindexed attributes and other types."""
    if not isinstance(written, list) or not written:
        raise bad(f"invalid filter: {written!r}")
    if written[0] in ("And", "Or") and len(written) == 2:
        parts = [compile_filter(schema, part, new) for part in written[1]]
        joined = all if written[0] == "And" else any
        return lambda document: joined(part(document) for part in parts)
    if written[0] == "Not" and len(written) == 2:
        negated = compile_filter(schema, written[1], new)
        return lambda document: not negated(document)
    if len(written) != 3:
        raise bad(f"invalid filter: {written!r}")
    name, operator, operand = written
    attribute = schema.get(name)
    if attribute is None:
        raise bad(f"attribute {name!r} in filter does not exist")
    if name != "id" and not attribute.filterable:
        raise bad(f"attribute {name!r} is not filterable")
    if isinstance(operand, dict) and "$ref_new" in operand:
        operand = (new or {}).get(operand["$ref_new"])
    return _condition(name, attribute, operator, operand)


def _condition(name: str, attribute: Attribute, operator: str, operand: Any) -> Predicate:
    def typed(value: Any) -> Any:
        if value is None:
            return None
        return parse_id(value, attribute.type) if name == "id" else parse_scalar(name, attribute, value)

    if operator.startswith("Not") and operator != "Not":
        opposite = _condition(name, attribute, operator.removeprefix("Not"), operand)
        return lambda document: not opposite(document)
    if operator.startswith("Contains") != (attribute.is_array and operand is not None):
        raise bad(f"operator {operator} does not apply to attribute {name!r} of type {attribute.type}")
    if operator == "Eq":
        wanted = typed(operand)
        return lambda document: document.get(name) == wanted
    if operator == "In":
        accepted = {typed(value) for value in operand}
        return lambda document: document.get(name) in accepted
    if operator in ("Contains", "ContainsAny"):
        sought = {typed(value) for value in (operand if operator == "ContainsAny" else [operand])}
        return lambda document: any(value in sought for value in document.get(name) or ())
    if operator in ("Lt", "Lte", "Gt", "Gte"):
        return _comparison(name, operator, typed(operand))
    raise bad(f"unknown filter operator {operator!r}")


def _comparison(name: str, operator: str, bound: Any) -> Predicate:
    """Null is less than everything, as the vendor documents."""
    if bound is None:
        raise bad(f"operator {operator} needs a value")
    below = operator in ("Lt", "Lte")
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "Lt": lambda value, limit: value < limit,
        "Lte": lambda value, limit: value <= limit,
        "Gt": lambda value, limit: value > limit,
        "Gte": lambda value, limit: value >= limit,
    }

    def holds(document: Document) -> bool:
        value = document.get(name)
        return below if value is None else compare[operator](value, bound)

    return holds


def run_query(
    schema: Schema, documents: Mapping[Any, Document], words: Mapping[Any, Mapping[str, Counter[str]]], query: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer to one query, without the parts every answer has."""
    known = {
        "rank_by",
        "top_k",
        "limit",
        "filters",
        "include_attributes",
        "exclude_attributes",
        "aggregate_by",
        "group_by",
        "vector_encoding",
    }
    if set(query) - known:
        raise bad(f"unknown query parameters {sorted(set(query) - known)}")
    holds = compile_filter(schema, query["filters"]) if query.get("filters") is not None else (lambda _: True)
    found = [document for document in documents.values() if holds(document)]
    if "aggregate_by" in query:
        return _aggregate(schema, found, query)
    scored = _rank(schema, documents, words, found, query.get("rank_by"))[: _limit(query)]
    names = _included(schema, query)
    encoding = query.get("vector_encoding", "float")
    return {"rows": [_row(document, score, names, encoding) for document, score in scored]}


def _limit(query: Mapping[str, Any]) -> int:
    written = query.get("limit", query.get("top_k"))
    total = written.get("total") if isinstance(written, dict) else written
    if not isinstance(total, int) or not 1 <= total <= MAX_LIMIT:
        raise bad(f"limit must be between 1 and {MAX_LIMIT}, got {total!r}")
    return total


def _included(schema: Schema, query: Mapping[str, Any]) -> list[str]:
    written = query.get("include_attributes", False)
    if written is True:
        return [name for name in schema if name != "id"]
    names = list(written or ())
    for name in names:
        if name not in schema:
            raise bad(f"attribute {name!r} in include_attributes does not exist")
    return names


def _row(document: Document, score: float | None, names: Sequence[str], encoding: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": document["id"]}
    if score is not None:
        row["$dist"] = score
    for name in names:
        value = document.get(name)
        if isinstance(value, np.ndarray):
            value = base64.b64encode(value.astype("<f4").tobytes()).decode() if encoding == "base64" else value.tolist()
        if value is not None:
            row[name] = value
    return row


def _rank(
    schema: Schema,
    documents: Mapping[Any, Document],
    words: Mapping[Any, Mapping[str, Counter[str]]],
    found: list[Document],
    rank_by: Any,
) -> list[tuple[Document, float | None]]:
    if not isinstance(rank_by, list) or not rank_by:
        raise bad("rank_by is required")
    name = rank_by[0]
    attribute = schema.get(name)
    if attribute is None:
        raise bad(f"attribute {name!r} in rank_by does not exist")
    if len(rank_by) == 2 and rank_by[1] in ("asc", "desc"):
        if name != "id" and not attribute.filterable:
            raise bad(f"attribute {name!r} is not filterable")
        return [(document, None) for document in _ordered(found, name, descending=rank_by[1] == "desc")]
    if len(rank_by) == 3 and rank_by[1] in ("ANN", "kNN"):
        return _nearest(attribute, name, found, rank_by[2])
    if len(rank_by) == 3 and rank_by[1] == "BM25":
        if attribute.full_text_search is None:
            raise bad(f"attribute {name!r} has no full-text index")
        return _bm25(documents, words, name, found, rank_by[2])
    raise bad(f"unknown rank_by {rank_by[:2]!r}")


def _ordered(found: list[Document], name: str, *, descending: bool) -> list[Document]:
    return (
        sorted(found, key=lambda document: (document.get(name) is not None, document.get(name) or 0), reverse=descending)
        if any(document.get(name) is None for document in found)
        else sorted(found, key=lambda document: document[name], reverse=descending)
    )


def _nearest(attribute: Attribute, name: str, found: list[Document], query: Any) -> list[tuple[Document, float | None]]:
    vector = np.asarray(query, np.float64)
    if vector.shape != (attribute.dimension,):
        raise bad(f"query vector has shape {vector.shape}, attribute {name!r} has {attribute.dimension} dimensions")
    if not found:
        return []
    matrix = np.vstack([document[name] for document in found]).astype(np.float64)
    lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(vector)
    similarity = np.divide(matrix @ vector, lengths, out=np.zeros(len(found)), where=lengths > 0)
    return [(found[index], float(1.0 - similarity[index])) for index in np.argsort(-similarity, kind="stable")]


def _bm25(
    documents: Mapping[Any, Document],
    words: Mapping[Any, Mapping[str, Counter[str]]],
    name: str,
    found: list[Document],
    text: Any,
) -> list[tuple[Document, float | None]]:
    """Statistics are the whole namespace's; documents that score nothing are left out."""
    if not isinstance(text, str) or len(text.encode()) > MAX_QUERY_TEXT:
        raise bad(f"a full-text query must be a string of at most {MAX_QUERY_TEXT} bytes")
    counted = {key: of_document[name] for key, of_document in words.items() if name in of_document}
    average = sum(bag.total() for bag in counted.values()) / max(1, len(counted)) or 1.0
    scores: defaultdict[Any, float] = defaultdict(float)
    for token in tokens(text):
        holding = sum(token in bag for bag in counted.values())
        weight = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        for document in found:
            bag = counted.get(document["id"], Counter())
            frequency = bag[token]
            if frequency:
                norm = _K1 * (1 - _B + _B * bag.total() / average)
                scores[document["id"]] += weight * frequency * (_K1 + 1) / (frequency + norm)
    ranked = sorted((document for document in found if scores[document["id"]] > 0), key=lambda item: -scores[item["id"]])
    return [(document, scores[document["id"]]) for document in ranked]


def _aggregate(schema: Schema, found: list[Document], query: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, of all or by one attribute; groups come in the order of their keys."""
    if {"rank_by", "include_attributes"} & set(query):
        raise bad("aggregate_by cannot be combined with rank_by or include_attributes")
    labels = query["aggregate_by"]
    if any(function != ["Count"] for function in labels.values()):
        raise ApiError(400, "only Count is emulated")
    by = query.get("group_by")
    if by is None:
        return {"aggregations": dict.fromkeys(labels, len(found))}
    (name,) = by
    if name not in schema or not schema[name].filterable:
        raise bad(f"attribute {name!r} cannot be grouped by")
    groups: Counter[Any] = Counter(document.get(name) for document in found)
    keys = sorted(groups)[: _limit(query)]
    return {"aggregation_groups": [{name: key, **dict.fromkeys(labels, groups[key])} for key in keys]}
