"""What a Pinecone index does: namespaces with a log that readers follow behind, filters, limits, search.

What belongs here: the behaviour the vendor documents, where it is strict or late rather than lenient. Paths, headers and
injected faults are ``pinecone``'s.
"""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import ge, gt, le, lt
from typing import Any

import numpy as np

from pipeline_tests.emulators.http import ApiError

MAX_REQUEST_BYTES = 2 * 1024 * 1024
MAX_VECTORS = 1_000
MAX_METADATA_BYTES = 40_960
MAX_RESULT_BYTES = 4 * 1024 * 1024
MAX_IDS = 1_000
MAX_ID_LENGTH = 512
MAX_TOP_K = 10_000
MAX_IN_VALUES = 10_000
LIST_PAGE = 100

Record = dict[str, Any]
Change = Callable[[dict[str, Record]], None]
Condition = Callable[[dict[str, Any]], bool]


@dataclass
class Lag:
    """How late readers are. A write is seen when it is as old as all of these say, and those before it are seen."""

    reads: int = 0
    """Reads of the namespace that do not see a write yet."""

    seconds: float = 0.0
    writes: int = 0
    """Newest writes to a namespace that are not seen, until newer ones follow."""

    frozen: bool = False
    """Nothing new is seen at all."""


@dataclass
class _Entry:
    lsn: int
    change: Change
    written_at: float
    reads: int = 0


@dataclass
class Namespace:
    lag: Lag
    visible: dict[str, Record] = field(default_factory=dict)
    lsn: int = 0
    seen_lsn: int = 0
    log: list[_Entry] = field(default_factory=list)

    def write(self, change: Change) -> int:
        self.lsn += 1
        self.log.append(_Entry(self.lsn, change, time.monotonic()))
        return self.lsn

    def read(self) -> dict[str, Record]:
        """What a reader finds now; writes are applied in their order."""
        while self.log and self._is_due(self.log[0]):
            entry = self.log.pop(0)
            entry.change(self.visible)
            self.seen_lsn = entry.lsn
        for entry in self.log:
            entry.reads += 1
        return self.visible

    def _is_due(self, entry: _Entry) -> bool:
        old_enough = entry.reads >= self.lag.reads and time.monotonic() - entry.written_at >= self.lag.seconds
        return not self.lag.frozen and old_enough and entry.lsn <= self.lsn - self.lag.writes

    def settle(self) -> dict[str, Record]:
        """Everything written, as readers will find it."""
        for entry in self.log:
            entry.change(self.visible)
        self.log.clear()
        self.seen_lsn = self.lsn
        return self.visible


class Engine:
    """The data plane of one index."""

    def __init__(self, dimension: int, lag: Lag) -> None:
        self.dimension = dimension
        self.lag = lag
        self.namespaces: dict[str, Namespace] = {}
        self.max_result_bytes = MAX_RESULT_BYTES
        self.lock = threading.RLock()

    def settled(self, name: str) -> dict[str, Record]:
        """All records of a namespace, whatever readers see of them yet."""
        with self.lock:
            return self.namespaces[name].settle() if name in self.namespaces else {}

    def upsert(self, name: str, body: dict[str, Any], share: float = 1.0) -> tuple[dict[str, Any], int]:
        """``share``: how much of it takes effect."""
        vectors = body["vectors"]
        if not vectors:
            raise ApiError(400, "No vectors in request")
        if len(vectors) > MAX_VECTORS:
            raise ApiError(400, f"Request contains {len(vectors)} vectors; the limit is {MAX_VECTORS}")
        records = [self._checked(vector) for vector in vectors]
        kept = records[: int(len(records) * share)]

        def change(held: dict[str, Record]) -> None:
            held.update({record["id"]: dict(record) for record in kept})

        namespace = self.namespaces.setdefault(name, Namespace(self.lag))
        return {"upsertedCount": len(vectors)}, namespace.write(change)

    def _checked(self, vector: dict[str, Any]) -> Record:
        _check_id(vector["id"])
        values = np.asarray(vector["values"], np.float32)
        if values.shape != (self.dimension,):
            raise ApiError(400, f"Vector dimension {values.size} does not match the dimension of the index {self.dimension}")
        if not values.any():
            raise ApiError(400, "Dense vectors must contain at least one non-zero value")
        if not np.isfinite(values).all():
            raise ApiError(400, "Dense vectors must not contain NaN or infinity")
        metadata = checked_metadata(vector.get("metadata") or {})
        return {"id": vector["id"], "values": values, "metadata": metadata}

    def update(self, name: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        namespace = self._existing(name)
        added = checked_metadata(body.get("setMetadata") or {})
        if "id" in body:
            _check_id(body["id"])
            ids = [body["id"]]
            answer: dict[str, Any] = {}
        else:
            ids = [record["id"] for record in _matching(namespace.read().values(), body["filter"])]
            answer = {"matchedRecords": len(ids)}
        if body.get("dryRun"):
            return answer, namespace.lsn

        def change(held: dict[str, Record]) -> None:
            for record_id in ids:
                if record_id in held:
                    held[record_id]["metadata"] = {**held[record_id]["metadata"], **added}

        return answer, namespace.write(change)

    def delete(self, name: str, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """A filter deletes what readers see when it arrives."""
        namespace = self._existing(name)
        if body.get("deleteAll"):
            return {}, namespace.write(dict.clear)
        if "ids" in body:
            ids = body["ids"]
            if len(ids) > MAX_IDS:
                raise ApiError(400, f"Request contains {len(ids)} ids; the limit is {MAX_IDS}")
        else:
            ids = [record["id"] for record in _matching(namespace.read().values(), body["filter"])]

        def change(held: dict[str, Record]) -> None:
            for record_id in ids:
                held.pop(record_id, None)

        return {}, namespace.write(change)

    def query(self, name: str, body: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        if not 1 <= body["topK"] <= MAX_TOP_K:
            raise ApiError(400, f"topK must be between 1 and {MAX_TOP_K}")
        vector = np.asarray(body["vector"], np.float32)
        if vector.shape != (self.dimension,):
            raise ApiError(400, f"Vector dimension {vector.size} does not match the dimension of the index {self.dimension}")
        namespace = self.namespaces.get(name)
        if namespace is None:
            return {"matches": [], "namespace": name, "usage": {"readUnits": 1}}, None
        found = list(_matching(namespace.read().values(), body.get("filter") or {}))
        scores = _cosines(found, vector)
        best = np.argsort(-scores, kind="stable")[: body["topK"]]
        matches = [_shown(found[i], body, float(scores[i])) for i in best]
        answer = {"matches": matches, "namespace": name, "usage": {"readUnits": 1}}
        return answer, namespace.seen_lsn

    def fetch(self, name: str, ids: list[str]) -> dict[str, Any]:
        if len(ids) > MAX_IDS:
            raise ApiError(400, f"Request contains {len(ids)} ids; the limit is {MAX_IDS}")
        held = self.namespaces[name].read() if name in self.namespaces else {}
        found = {record_id: _whole(held[record_id]) for record_id in ids if record_id in held}
        return {"vectors": found, "namespace": name, "usage": {"readUnits": 1}}

    def fetch_by_metadata(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        limit = body.get("limit", 100)
        if not 1 <= limit <= 10_000:
            raise ApiError(400, "limit must be between 1 and 10000")
        held = self._existing(name).read()
        ids = sorted(held)
        rest = (held[record_id] for record_id in ids[bisect_right(ids, body.get("paginationToken", "")) :])
        found = list(islice(_matching(rest, body["filter"]), limit + 1))
        page = found[:limit]
        answer: dict[str, Any] = {"vectors": {record["id"]: _whole(record) for record in page}, "namespace": name}
        if len(found) > limit:
            answer["pagination"] = {"next": page[-1]["id"]}
        return {**answer, "usage": {"readUnits": 1}}

    def list_ids(self, name: str, prefix: str, limit: int, after: str) -> dict[str, Any]:
        if not 1 <= limit <= LIST_PAGE:
            raise ApiError(400, f"limit must be between 1 and {LIST_PAGE}")
        held = self.namespaces[name].read() if name in self.namespaces else {}
        rest = sorted(record_id for record_id in held if record_id > after and record_id.startswith(prefix))
        answer: dict[str, Any] = {"vectors": [{"id": record_id} for record_id in rest[:limit]], "namespace": name}
        if len(rest) > limit:
            answer["pagination"] = {"next": rest[limit - 1]}
        return {**answer, "usage": {"readUnits": 1}}

    def stats(self) -> dict[str, Any]:
        counts = {name: {"vectorCount": len(namespace.read())} for name, namespace in self.namespaces.items()}
        return {
            "namespaces": counts,
            "dimension": self.dimension,
            "indexFullness": 0,
            "totalVectorCount": sum(entry["vectorCount"] for entry in counts.values()),
            "metric": "cosine",
            "vectorType": "dense",
        }

    def describe_namespace(self, name: str) -> dict[str, Any]:
        return {"name": name, "record_count": str(len(self._existing(name).read()))}

    def delete_namespace(self, name: str) -> dict[str, Any]:
        self._existing(name)
        del self.namespaces[name]
        return {}

    def create_namespace(self, name: str) -> dict[str, Any]:
        if name in self.namespaces:
            raise ApiError(409, "Namespace already exists", 6)
        self.namespaces[name] = Namespace(self.lag)
        return self.describe_namespace(name)

    def list_namespaces(self, prefix: str) -> dict[str, Any]:
        names = sorted(name for name in self.namespaces if name.startswith(prefix))
        return {"namespaces": [self.describe_namespace(name) for name in names], "pagination": None, "total_count": len(names)}

    def _existing(self, name: str) -> Namespace:
        if name not in self.namespaces:
            raise ApiError(404, "Namespace not found", 5)
        return self.namespaces[name]


def _check_id(record_id: str) -> None:
    if not record_id or len(record_id) > MAX_ID_LENGTH:
        raise ApiError(400, f"Vector ID must have 1 to {MAX_ID_LENGTH} characters")
    if not record_id.isascii():
        raise ApiError(400, f"Vector ID must be ASCII, but got '{record_id}'")


def checked_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata as it is held: numbers are floats."""
    size = len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_METADATA_BYTES:
        raise ApiError(400, f"Metadata size is {size} bytes, which exceeds the limit of {MAX_METADATA_BYTES} bytes per vector")
    held = {}
    for key, value in metadata.items():
        if not key or key.startswith("$"):
            raise ApiError(400, f"Metadata key must not be empty or start with '$', got '{key}'")
        strings = isinstance(value, list) and all(isinstance(element, str) for element in value)
        if not strings and not isinstance(value, str | int | float):
            raise ApiError(
                400, f"Metadata value must be a string, number, boolean or list of strings, got '{json.dumps(value)[:16]}'"
            )
        held[key] = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    return held


def _whole(record: Record) -> dict[str, Any]:
    return {"id": record["id"], "values": record["values"].tolist(), "metadata": record["metadata"]}


def _shown(record: Record, body: dict[str, Any], score: float) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": record["id"], "score": score}
    shown["values"] = record["values"].tolist() if body.get("includeValues") else []
    if body.get("includeMetadata"):
        shown["metadata"] = record["metadata"]
    return shown


def _cosines(records: list[Record], vector: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not records:
        return np.empty(0, np.float32)
    held = np.concatenate([record["values"] for record in records]).reshape(len(records), -1)
    lengths = np.sqrt(np.einsum("ij,ij->i", held, held))
    cosines: np.ndarray[Any, np.dtype[np.float32]] = held @ vector / (lengths * max(float(np.linalg.norm(vector)), 1e-30))
    return cosines


def _matching(records: Iterable[Record], where: dict[str, Any]) -> Iterator[Record]:
    wanted = compiled(where)
    return (record for record in records if wanted(record["metadata"]))


def compiled(where: dict[str, Any]) -> Condition:
    """A filter as a test of metadata. Every operator but ``$exists`` is false for a field that is absent."""
    parts = [_part(key, condition) for key, condition in where.items()]
    return lambda metadata: all(part(metadata) for part in parts)


def _part(key: str, condition: Any) -> Condition:
    if key in ("$and", "$or"):
        if not isinstance(condition, list) or not condition:
            raise ApiError(400, f"{key} needs a list of at least one condition")
        joined, parts = (all if key == "$and" else any), [compiled(part) for part in condition]
        return lambda metadata: joined(part(metadata) for part in parts)
    if key.startswith("$"):
        raise ApiError(400, f"{key} is not a valid operator")
    operators = condition if isinstance(condition, dict) else {"$eq": condition}
    tests = [_operator(key, operator, operand) for operator, operand in operators.items()]
    return lambda metadata: all(test(metadata) for test in tests)


def _operator(key: str, operator: str, operand: Any) -> Condition:
    _check_operand(operator, operand)
    if operator == "$exists":
        return lambda metadata: (key in metadata) == operand
    if operator in ("$gt", "$gte", "$lt", "$lte"):
        compare = {"$gt": gt, "$gte": ge, "$lt": lt, "$lte": le}[operator]
        return lambda metadata: type(metadata.get(key)) is float and compare(metadata[key], operand)
    wanted = frozenset(map(_comparable, operand if operator in ("$in", "$nin") else [operand]))
    negated = operator in ("$ne", "$nin")
    return lambda metadata: key in metadata and _has(metadata[key], wanted) != negated


def _has(value: Any, wanted: frozenset[Any]) -> bool:
    """Whether a value, or an element of a list, is one of these."""
    if isinstance(value, list):
        return any(_comparable(element) in wanted for element in value)
    return _comparable(value) in wanted


def _comparable(value: Any) -> Any:
    """Equal where Pinecone says so: 1 and 1.0 are, 1 and true are not."""
    return ("boolean", value) if isinstance(value, bool) else value


def _check_operand(operator: str, operand: Any) -> None:
    number = isinstance(operand, int | float) and not isinstance(operand, bool)
    allowed = {
        "$exists": isinstance(operand, bool),
        "$eq": isinstance(operand, str | bool) or number,
        "$ne": isinstance(operand, str | bool) or number,
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), number),
        **dict.fromkeys(("$in", "$nin"), isinstance(operand, list)),
    }
    if operator not in allowed or not allowed[operator]:
        raise ApiError(400, f"{operator} does not take {json.dumps(operand)[:40]}")
    if operator in ("$in", "$nin"):
        if not 1 <= len(operand) <= MAX_IN_VALUES:
            raise ApiError(400, f"{operator} takes 1 to {MAX_IN_VALUES} values")
        if any(isinstance(value, bool) or not isinstance(value, str | int | float) for value in operand):
            raise ApiError(400, f"{operator} takes strings or numbers")
