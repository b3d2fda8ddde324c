"""What a Qdrant server does with collections and points, as its vendor documents it.

Faithful where a sink could go wrong: ids are unsigned integers or UUIDs, vectors are float32 and normalised, a payload change
by ids fails for one that does not exist after it changed the others, null removes a key, and strict mode refuses filters on
keys without a fitting index and more than its limits.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline_tests.emulators.http import ApiError
from pipeline_tests.emulators.qdrant_filter import compiled, conditions, demanded_ids, payload_key, required_index

Body = dict[str, Any]

STRICT: Body = {
    "enabled": True,
    "unindexed_filtering_retrieve": False,
    "unindexed_filtering_update": False,
    "max_query_limit": 1000,
    "max_payload_index_count": 100,
    "upsert_max_batchsize": 1000,
    "condition_max_size": 1000,
}
"""Strict mode much as the vendor's cloud sets it for new collections."""


@dataclass
class Point:
    vectors: dict[str, np.ndarray]
    payload: Body
    version: int


@dataclass
class Collection:
    """One collection with its points."""

    name: str
    vectors: dict[str, Body]
    metadata: Body | None
    strict: Body
    indexes: dict[str, Any] = field(default_factory=dict)
    points: dict[str, Point] = field(default_factory=dict)
    operations: int = 0

    def info(self) -> Body:
        config = {
            "params": {
                "vectors": self.vectors,
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000, "max_indexing_threads": 0},
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
            "quantization_config": None,
            "strict_mode_config": self.strict,
            **({"metadata": self.metadata} if self.metadata else {}),
        }
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": 0,
            "points_count": len(self.points),
            "segments_count": 1,
            "config": config,
            "payload_schema": {path: self._index_info(path, schema) for path, schema in self.indexes.items()},
        }

    def _index_info(self, path: str, schema: Any) -> Body:
        kind = schema if isinstance(schema, str) else schema["type"]
        params = {} if isinstance(schema, str) else {"params": schema}
        held = sum(payload_key(path) in point.payload for point in self.points.values())
        return {"data_type": kind, "points": held, **params}

    def create_index(self, body: Body) -> Body:
        payload_key(body["field_name"])
        if len(self.indexes) >= self.strict.get("max_payload_index_count", math.inf):
            raise ApiError(400, "Bad request: Collection already has the maximum number of payload indexes")
        self.indexes[body["field_name"]] = body["field_schema"]
        return self._updated()

    def upsert(self, body: Body) -> Body:
        points = body["points"]
        self._limit("upsert_max_batchsize", len(points), "upsert limit")
        checked = {_point_id(item["id"]): (self._vectors(item["vector"]), item.get("payload") or {}) for item in points}
        for found, (vectors, payload) in checked.items():
            self.points[found] = Point(vectors, payload, self.operations)
        return self._updated()

    def _vectors(self, written: Any) -> dict[str, np.ndarray]:
        if not isinstance(written, dict):
            raise ApiError(400, "Wrong input: Not existing vector name error: ")
        vectors = {}
        for name, values in written.items():
            if name not in self.vectors:
                raise ApiError(400, f"Wrong input: Not existing vector name error: {name}")
            size = self.vectors[name]["size"]
            if len(values) != size:
                raise ApiError(400, f"Wrong input: Vector dimension error: expected dim: {size}, got {len(values)}")
            vector = np.array(values, np.float32)
            length = np.linalg.norm(vector)
            vectors[name] = vector / length if length else vector
        return vectors

    def delete(self, body: Body) -> Body:
        for found in self._selected(body, strict_ids=False):
            del self.points[found]
        return self._updated()

    def set_payload(self, body: Body) -> Body:
        def merge(payload: Body) -> None:
            for key, value in body["payload"].items():
                if value is None:
                    payload.pop(key, None)
                else:
                    payload[key] = value

        return self._change(body, merge)

    def delete_payload(self, body: Body) -> Body:
        def remove(payload: Body) -> None:
            for path in body["keys"]:
                payload.pop(payload_key(path), None)

        return self._change(body, remove)

    def _change(self, body: Body, change: Callable[[Body], None]) -> Body:
        """A filter changes what it finds. A list of ids changes what exists and then fails for what does not."""
        for found in self._selected(body, strict_ids=False):
            change(self.points[found].payload)
        self._selected(body, strict_ids=True)
        return self._updated()

    def _selected(self, body: Body, *, strict_ids: bool) -> list[str]:
        if body.get("filter") is not None:
            self._check(body["filter"], "unindexed_filtering_update")
            return self._found(body["filter"])
        ids = [_point_id(found) for found in body["points"]]
        for found in ids:
            if strict_ids and found not in self.points:
                raise ApiError(404, f"Not found: No point with id {found} found")
        return [found for found in ids if found in self.points]

    def batch(self, body: Body) -> list[Body]:
        done: dict[str, Callable[[Body], Body]] = {
            "upsert": self.upsert,
            "delete": self.delete,
            "set_payload": self.set_payload,
            "delete_payload": self.delete_payload,
        }
        return [done[name](operation) for entry in body["operations"] for name, operation in entry.items()]

    def scroll(self, body: Body) -> Body:
        limit = body.get("limit", 10)
        self._limit("max_query_limit", limit, "limit")
        start = body.get("offset")
        names = [name for name in sorted(self._matching(body.get("filter"))) if start is None or name >= _point_id(start)]
        records = [self._record(name, body) for name in names[:limit]]
        return {"points": records, "next_page_offset": names[limit] if len(names) > limit else None}

    def count(self, body: Body) -> Body:
        return {"count": len(self._matching(body.get("filter")))}

    def query(self, body: Body) -> Body:
        limit = body.get("limit", 10)
        self._limit("max_query_limit", limit, "limit")
        query = body["query"]
        values = query["nearest"] if isinstance(query, dict) else query
        using = body.get("using", "")
        vector = self._vectors({using: values})[using]
        found = [name for name in self._matching(body.get("filter")) if using in self.points[name].vectors]
        scores = {name: float(self.points[name].vectors[using] @ vector) for name in found}
        best = sorted(found, key=lambda name: (-scores[name], name))[:limit]
        return {
            "points": [{**self._record(name, body), "score": scores[name], "version": self.points[name].version} for name in best]
        }

    def _matching(self, where: Body | None) -> list[str]:
        self._check(where or {}, "unindexed_filtering_retrieve")
        return self._found(where)

    def _found(self, where: Body | None) -> list[str]:
        candidates = demanded_ids(where or {})
        names = self.points if candidates is None else [name for name in candidates if name in self.points]
        selects = compiled(where)
        return [name for name in names if selects(name, self.points[name].payload)]

    def _check(self, where: Body, setting: str) -> None:
        """What strict mode has against a filter."""
        kinds = {
            payload_key(path): schema if isinstance(schema, str) else schema["type"] for path, schema in self.indexes.items()
        }
        for condition in conditions(where):
            size = len(condition.get("has_id") or condition.get("match", {}).get("any") or ())
            self._limit("condition_max_size", size, "condition size")
            required = required_index(condition)
            if not self.strict.get("enabled") or self.strict.get(setting, True) or required is None:
                continue
            key, wanted = required
            if kinds.get(key) not in wanted:
                raise ApiError(
                    400,
                    f'Bad request: Index required but not found for "{key}" of one of the following types: '
                    f"[{', '.join(sorted(wanted))}]. Help: Create an index for this key or use a different filter.",
                )

    def _limit(self, setting: str, value: int, name: str) -> None:
        most = self.strict.get(setting)
        if self.strict.get("enabled") and most is not None and value > most:
            raise ApiError(400, f'Bad request: Limit exceeded {value} > {most} for "{name}". Help: Reduce the {name}.')

    def _record(self, name: str, body: Body) -> Body:
        point = self.points[name]
        record: Body = {"id": name, "payload": _chosen(point.payload, body.get("with_payload", True))}
        if body.get("with_vector"):
            record["vector"] = {key: vector.tolist() for key, vector in point.vectors.items()}
        return record

    def _updated(self) -> Body:
        self.operations += 1
        return {"operation_id": self.operations, "status": "completed"}


class Engine:
    """All collections. ``keeps_metadata`` is False for servers before 1.16, which ignore what they do not know."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.strict: Body = dict(STRICT)
        self.keeps_metadata = True
        self._lock = threading.RLock()

    def call(self, operation: str, name: str, body: Body) -> Any:
        """The result of one operation."""
        with self._lock:
            if operation == "exists":
                return {"exists": name in self.collections}
            if operation == "list":
                return {"collections": [{"name": found} for found in self.collections]}
            if operation == "create":
                return self._create(name, body)
            if name not in self.collections:
                raise ApiError(404, f"Not found: Collection `{name}` doesn't exist!")
            if operation == "drop":
                del self.collections[name]
                return True
            result: Any = getattr(self.collections[name], operation)(*([] if operation == "info" else [body]))
            return result

    def _create(self, name: str, body: Body) -> bool:
        if name in self.collections:
            raise ApiError(409, f"Wrong input: Collection `{name}` already exists!")
        vectors = body["vectors"] if "size" not in body["vectors"] else {"": body["vectors"]}
        metadata = body.get("metadata") if self.keeps_metadata else None
        self.collections[name] = Collection(name, vectors, metadata, dict(self.strict))
        return True


def _point_id(written: Any) -> str:
    if isinstance(written, int) and not isinstance(written, bool) and 0 <= written < 2**64:
        return str(written)
    try:
        return str(uuid.UUID(written))
    except (ValueError, AttributeError, TypeError):
        raise ApiError(
            400,
            f"Format error in JSON body: value {written} is not a valid point ID, "
            "valid values are either an unsigned integer or a UUID",
        ) from None


def _chosen(payload: Mapping[str, Any], chosen: Any) -> Body | None:
    if chosen is False:
        return None
    if chosen is True:
        return dict(payload)
    return {payload_key(path): payload[payload_key(path)] for path in chosen if payload_key(path) in payload}
