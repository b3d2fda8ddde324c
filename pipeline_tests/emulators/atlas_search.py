"""MongoDB's search process (``mongot``) as far as the sink and LlamaIndex use it: its indexes and what they find.

What belongs here: index life cycles, filters, ranking and errors, documented by the vendor. It knows nothing of the wire.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bson.binary import Binary, BinaryVectorDtype

Document = Mapping[str, Any]
Namespace = tuple[str, str]
Ranking = list[tuple[Any, float]]

_BM25_K1, _BM25_B = 1.2, 0.75
_UNKNOWN = (8, "UnknownError")


class SearchError(Exception):
    """What the server answers instead of a result."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.reply = {"ok": 0.0, "errmsg": message, "code": code, "codeName": name}


@dataclass
class SearchIndex:
    """``serving`` is the definition queries use: while a newer one is being built, the one before."""

    name: str
    type: str
    latest: Document
    ready_at: float
    serving: Document | None = None
    version: int = 0
    status: str | None = None
    """Set by a test to what the server would say of a broken index."""

    def refresh(self, now: float) -> None:
        if now >= self.ready_at and self.status is None:
            self.serving = self.latest

    def describe(self) -> dict[str, Any]:
        built = self.serving is self.latest
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "type": self.type,
            "status": self.status or ("READY" if built else "BUILDING" if self.serving else "PENDING"),
            "queryable": self.serving is not None and self.status is None,
            "latestDefinitionVersion": {"version": self.version},
            "latestDefinition": self.latest,
        }


@dataclass
class AtlasSearch:
    """All search indexes of one server.

    Knobs: an index is built ``build_seconds`` after it was asked for; a write is seen ``lag_seconds`` after it was made
    (``math.inf``: not before ``catch_up``).
    """

    build_seconds: float = 0.0
    lag_seconds: float = 0.0
    indexes: dict[Namespace, dict[str, SearchIndex]] = field(default_factory=dict)
    _views: dict[Namespace, tuple[int, list[Document]]] = field(default_factory=dict)
    _writes: int = 0
    _written_at: float = -math.inf
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def note_write(self) -> None:
        with self._lock:
            self._writes += 1
            self._written_at = time.monotonic()

    def catch_up(self) -> None:
        """From now on queries see everything written before."""
        with self._lock:
            self._written_at = -math.inf

    def create(self, namespace: Namespace, name: str, kind: str, definition: Document) -> SearchIndex:
        with self._lock:
            held = self.indexes.setdefault(namespace, {})
            if name in held:
                raise SearchError(68, "IndexAlreadyExists", "Duplicate Index")
            _check_definition(kind, definition)
            held[name] = SearchIndex(name, kind, definition, time.monotonic() + self.build_seconds)
            return held[name]

    def update(self, namespace: Namespace, name: str, definition: Document) -> None:
        with self._lock:
            index = self._named(namespace, name)
            _check_definition(index.type, definition)
            index.refresh(time.monotonic())
            index.latest = definition
            index.version += 1
            index.ready_at = time.monotonic() + self.build_seconds

    def drop(self, namespace: Namespace, name: str) -> None:
        with self._lock:
            self._named(namespace, name)
            del self.indexes[namespace][name]

    def forget(self, namespace: Namespace) -> None:
        """The collection is dropped, and its indexes with it."""
        with self._lock:
            self.indexes.pop(namespace, None)
            self._views.pop(namespace, None)

    def listed(self, namespace: Namespace, name: str | None) -> list[dict[str, Any]]:
        with self._lock:
            found = [index for index in self.indexes.get(namespace, {}).values() if name in (None, index.name)]
            for index in found:
                index.refresh(time.monotonic())
            return [index.describe() for index in found]

    def _named(self, namespace: Namespace, name: str) -> SearchIndex:
        try:
            return self.indexes[namespace][name]
        except KeyError:
            raise SearchError(27, "IndexNotFound", f"Index {name} not found") from None

    def _view(self, namespace: Namespace, read: Callable[[], list[Document]]) -> list[Document]:
        """The collection as the indexes see it."""
        seen, documents = self._views.get(namespace, (-1, []))
        if seen != self._writes and time.monotonic() - self._written_at >= self.lag_seconds:
            seen, documents = self._writes, read()
            self._views[namespace] = (seen, documents)
        return documents

    def _serving(self, namespace: Namespace, name: str) -> Document | None:
        index = self.indexes.get(namespace, {}).get(name)
        if index is None:
            return None
        index.refresh(time.monotonic())
        return index.serving if index.status is None else None

    def vector_search(self, namespace: Namespace, stage: Document, read: Callable[[], list[Document]]) -> Ranking:
        """Ids with scores in [0, 1], best first. A missing or unbuilt index finds nothing."""
        with self._lock:
            definition = self._serving(namespace, stage["index"])
            if definition is None:
                return []
            mapped = next(
                (item for item in definition["fields"] if item["path"] == stage["path"] and item["type"] == "vector"), None
            )
            if mapped is None:
                raise SearchError(*_UNKNOWN, f"Path '{stage['path']}' needs to be indexed as vector")
            query = _checked_query(stage, mapped)
            paths = {item["path"] for item in definition["fields"] if item["type"] == "filter"}
            selected = [item for item in self._view(namespace, read) if _matches(item, stage.get("filter") or {}, paths)]
        scored = []
        for document in selected:
            vector = _vector(_value(document, stage["path"]))
            if vector is not None and len(vector) == len(query):  # others are not indexed
                scored.append((document["_id"], _similarity(query, vector, mapped["similarity"])))
        return sorted(scored, key=lambda item: -item[1])[: stage["limit"]]

    def text_search(self, namespace: Namespace, stage: Document, read: Callable[[], list[Document]]) -> Ranking:
        """Ids with BM25 scores, best first. A missing or unbuilt index finds nothing."""
        with self._lock:
            definition = self._serving(namespace, stage.get("index", "default"))
            if definition is None:
                return []
            documents = self._view(namespace, read)
        compound = stage.get("compound") or {"must": [{name: stage[name] for name in stage if name not in ("index", "count")}]}
        scores = [0.0] * len(documents)
        kept = [True] * len(documents)
        for clause, operators in compound.items():
            for operator in operators:
                for at, score in enumerate(_scores(operator, documents, definition)):
                    kept[at] &= clause == "should" or (score > 0) != (clause == "mustNot")
                    scores[at] += score if clause in ("must", "should") else 0.0
        found = [(document["_id"], score) for document, score, keep in zip(documents, scores, kept, strict=True) if keep]
        return sorted(found, key=lambda item: -item[1])


def _check_definition(kind: str, definition: Document) -> None:
    if kind == "search":
        if "mappings" not in definition:
            raise SearchError(9, "FailedToParse", '"mappings" is required')
        return
    fields = definition.get("fields")
    if not fields:
        raise SearchError(9, "FailedToParse", '"fields" cannot be empty')
    for item in fields:
        if item.get("type") == "vector" and not 1 <= item.get("numDimensions", 0) <= 8192:
            raise SearchError(9, "FailedToParse", '"fields.numDimensions" must be within bounds [1, 8192]')
    if len({item["path"] for item in fields}) < len(fields):
        raise SearchError(9, "FailedToParse", '"fields" cannot have duplicate paths')


def _checked_query(stage: Document, mapped: Document) -> np.ndarray[Any, np.dtype[np.float32]]:
    query = _vector(stage["queryVector"])
    if query is None or len(query) != mapped["numDimensions"]:
        given = "no" if query is None else len(query)
        raise SearchError(
            *_UNKNOWN, f"vector field is indexed with {mapped['numDimensions']} dimensions but queried with {given}"
        )
    if not stage.get("exact") and not stage["limit"] <= stage.get("numCandidates", 0) <= 10_000:
        raise SearchError(*_UNKNOWN, '"numCandidates" must be within bounds [limit, 10000]')
    return query


def _vector(value: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if isinstance(value, Binary) and value.subtype == 9:
        packed = value.as_vector()
        return np.asarray(packed.data, np.float32) if packed.dtype is BinaryVectorDtype.FLOAT32 else None
    return np.asarray(value, np.float32) if isinstance(value, list) else None


def _similarity(query: np.ndarray[Any, Any], vector: np.ndarray[Any, Any], kind: str) -> float:
    if kind == "euclidean":
        return 1 / (1 + float(((query - vector) ** 2).sum()))
    product = float(query @ vector)
    if kind == "cosine":
        product /= float(np.linalg.norm(query) * np.linalg.norm(vector)) or 1.0
    return (1 + product) / 2


def _value(document: Document, path: str) -> Any:
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _values(document: Document, path: str) -> list[Any]:
    value = _value(document, path)
    return value if isinstance(value, list) else [] if value is None else [value]


def _matches(document: Document, query: Document, paths: set[str]) -> bool:
    """A ``$vectorSearch`` filter; negations hold for documents without the field."""
    for key, operand in query.items():
        if key in ("$and", "$or", "$nor"):
            found = [_matches(document, part, paths) for part in operand]
            if not {"$and": all(found), "$or": any(found), "$nor": not any(found)}[key]:
                return False
            continue
        if key.startswith("$"):
            raise SearchError(*_UNKNOWN, f'"filter.{key}" is not supported')
        if key not in paths:
            raise SearchError(*_UNKNOWN, f"Path '{key}' needs to be indexed as token")
        operations = operand if isinstance(operand, Mapping) else {"$eq": operand}
        if not all(_holds(_values(document, key), *operation) for operation in operations.items()):
            return False
    return True


def _holds(values: Sequence[Any], operator: str, operand: Any) -> bool:
    if operator in ("$ne", "$nin", "$not"):
        opposites = {"$ne": {"$eq": operand}, "$nin": {"$in": operand}, "$not": operand}[operator]
        return not all(_holds(values, *operation) for operation in opposites.items())
    if operator == "$exists":
        return bool(bool(values) == operand)
    if operator in ("$eq", "$in"):
        operands = operand if operator == "$in" else [operand]
        return any(_same(value, item) for value in values for item in operands)
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        return any(_compare(value, operator[1:], operand) for value in values)
    raise SearchError(*_UNKNOWN, f'"{operator}" is not supported in a filter')


def _kind(value: Any) -> str:
    for kind, types in (("boolean", bool), ("number", (int, float)), ("token", str)):
        if isinstance(value, types):
            return kind
    return type(value).__name__


def _same(value: Any, operand: Any) -> bool:
    return _kind(value) == _kind(operand) and bool(value == operand)


def _compare(value: Any, operator: str, operand: Any) -> bool:
    if _kind(value) != _kind(operand):
        return False
    return bool({"gt": value > operand, "gte": value >= operand, "lt": value < operand, "lte": value <= operand}[operator])


def _scores(operator: Document, documents: Sequence[Document], definition: Document) -> Iterator[float]:
    """The score an operator gives every document, 0 where it does not match."""
    ((name, options),) = operator.items()
    path = options["path"]
    if name == "text":
        _check_mapped(definition, path, "string")
        yield from _bm25(options["query"], [_words(_value(document, path)) for document in documents])
        return
    bounds = {bound: options[bound] for bound in ("gt", "gte", "lt", "lte") if bound in options}
    operands: dict[str, Callable[[], list[Any]]] = {
        "equals": lambda: [options["value"]],
        "in": lambda: options["value"],
        "range": lambda: list(bounds.values()),
    }
    if name not in operands:
        raise SearchError(*_UNKNOWN, f'"{name}" is not an operator this emulator has')
    for operand in operands[name]():
        _check_mapped(definition, path, _kind(operand))
    for document in documents:
        values = _values(document, path)
        if name == "range":
            yield float(any(all(_compare(value, *bound) for bound in bounds.items()) for value in values))
        else:
            yield float(any(_same(value, operand) for value in values for operand in operands[name]()))


def _check_mapped(definition: Document, path: str, kind: str) -> None:
    mapped: list[Any] = [definition["mappings"]]
    for part in path.split("."):
        found = [item["fields"][part] for item in mapped if part in item.get("fields", {})]
        mapped = [item for kinds in found for item in (kinds if isinstance(kinds, list) else [kinds])]
    if not any(item["type"] == kind for item in mapped):
        raise SearchError(*_UNKNOWN, f"Path '{path}' needs to be indexed as {kind}")


def _words(text: Any) -> list[str]:
    """Roughly ``lucene.standard``: words in lower case, no stop words."""
    return re.findall(r"\w+", text.lower()) if isinstance(text, str) else []


def _bm25(query: str, documents: Sequence[Sequence[str]]) -> Iterator[float]:
    counts = [Counter(words) for words in documents]
    mean = sum(map(len, documents)) / (len(documents) or 1) or 1.0
    weights = {}
    for word in set(_words(query)):
        holding = sum(word in count for count in counts)
        weights[word] = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
    for words, count in zip(documents, counts, strict=True):
        norm = _BM25_K1 * (1 - _BM25_B + _BM25_B * len(words) / mean)
        yield sum(weight * count[word] / (count[word] + norm) for word, weight in weights.items())
