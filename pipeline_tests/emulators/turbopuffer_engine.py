"""The namespaces of an emulated Turbopuffer: atomic writes under a lock, each either applied whole or not at all."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline_tests.emulators.http import ApiError
from pipeline_tests.emulators.turbopuffer_query import MAX_QUERIES, Document, compile_filter, run_query, tokens
from pipeline_tests.emulators.turbopuffer_schema import (
    MAX_DOCUMENT_BYTES,
    Attribute,
    bad,
    document_bytes,
    infer,
    merge,
    parse_attribute,
    parse_id,
    parse_value,
)

_NAME = re.compile(r"[A-Za-z0-9\-_.]{1,128}")
_WRITE_KEYS = {
    "upsert_rows",
    "upsert_columns",
    "patch_rows",
    "patch_columns",
    "patch_condition",
    "deletes",
    "delete_by_filter",
    "delete_by_filter_allow_partial",
    "distance_metric",
    "schema",
    "create_namespace",
    "return_affected_ids",
    "disable_backpressure",
}


@dataclass
class Namespace:
    metric: str | None
    schema: dict[str, Attribute] = field(default_factory=dict)
    documents: dict[Any, Document] = field(default_factory=dict)
    words: dict[Any, dict[str, Counter[str]]] = field(default_factory=dict)
    """Token counts of every full-text attribute of every document."""

    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def put(self, document: Document) -> None:
        key = document["id"]
        self.documents[key] = document
        self.words[key] = {
            name: tokens(document[name])
            for name, attribute in self.schema.items()
            if attribute.full_text_search is not None and isinstance(document.get(name), str)
        }

    def drop(self, key: Any) -> bool:
        self.words.pop(key, None)
        return self.documents.pop(key, None) is not None


@dataclass(frozen=True)
class _Write:
    """A request, checked: nothing in it can fail any more."""

    upserts: list[Document]
    patches: list[Document]
    deletes: list[Any]
    doomed: list[Any]
    remaining: bool
    schema: dict[str, Attribute]


class Engine:
    """All namespaces. ``max_filter_deletes`` is the documented 5 million unless a test wants less."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.max_filter_deletes = 5_000_000
        self._lock = threading.Lock()

    def write(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if not _NAME.fullmatch(name):
            raise bad(f"invalid namespace name {name!r}")
        if set(body) - _WRITE_KEYS:
            raise bad(f"unknown write parameters {sorted(set(body) - _WRITE_KEYS)}")
        with self._lock:
            held = self.namespaces.get(name)
            upserts, patches = _rows(body, "upsert"), _rows(body, "patch")
            if held is None and (body.get("create_namespace") is False or not (upserts or body.get("create_namespace"))):
                raise _missing(name)
            if held is None and not upserts and "id" not in body.get("schema", {}):
                raise bad("creating an empty namespace requires the id type in schema")
            namespace = held or Namespace(body.get("distance_metric"))
            checked = self._check(namespace, body, upserts, patches, exists=held is not None)
            answer = self._apply(namespace, body, checked)
            self.namespaces[name] = namespace
            return answer

    def _check(
        self,
        namespace: Namespace,
        body: Mapping[str, Any],
        upserts: list[Document],
        patches: list[Document],
        *,
        exists: bool,
    ) -> _Write:
        metric = body.get("distance_metric", namespace.metric)
        if exists and metric != namespace.metric:
            raise bad(f"distance_metric is {namespace.metric}, cannot change it to {metric}")
        schema = merge(namespace.schema, body.get("schema", {}), exists=exists, metric=metric)
        for row in (*upserts, *patches):
            for key, value in row.items():
                if key not in schema and value is not None:
                    schema[key] = _id_type(value) if key == "id" else infer(key, value, metric)
        vectors = [key for key, attribute in schema.items() if attribute.dimension is not None]
        if vectors and metric is None:
            raise bad("distance_metric is required")
        kind = schema["id"].type
        deletes = [parse_id(key, kind) for key in body.get("deletes", ())]
        written = [{**_values(schema, row), "id": parse_id(row.get("id"), kind)} for row in upserts]
        patched = [{**_values(schema, row), "id": parse_id(row.get("id"), kind)} for row in patches]
        named = Counter([row["id"] for row in (*written, *patched)] + deletes)
        if named and max(named.values()) > 1:
            raise bad(f"document id {named.most_common(1)[0][0]!r} appears more than once")
        for document in written:
            if any(document.get(key) is None for key in vectors):
                raise bad(f"document {document['id']!r} lacks a vector")
            if document_bytes(document) > MAX_DOCUMENT_BYTES:
                raise bad(f"document {document['id']!r} is larger than {MAX_DOCUMENT_BYTES} bytes")
        if any(key in document for document in patched for key in vectors):
            raise bad("vector attributes cannot be patched")
        doomed, remaining = self._filtered(namespace, schema, body)
        return _Write(written, patched, deletes, doomed, remaining, schema)

    def _filtered(self, namespace: Namespace, schema: Mapping[str, Attribute], body: Mapping[str, Any]) -> tuple[list[Any], bool]:
        """The ids ``delete_by_filter`` finds, as many as one write may delete, and whether there are more."""
        if "delete_by_filter" not in body:
            return [], False
        holds = compile_filter(schema, body["delete_by_filter"])
        found = [key for key, document in namespace.documents.items() if holds(document)]
        if len(found) <= self.max_filter_deletes:
            return found, False
        if not body.get("delete_by_filter_allow_partial"):
            raise bad(f"delete_by_filter matches more than {self.max_filter_deletes} documents")
        return found[: self.max_filter_deletes], True

    def _apply(self, namespace: Namespace, body: Mapping[str, Any], write: _Write) -> dict[str, Any]:
        """The documented order: the filter's deletes come before everything else."""
        namespace.schema = write.schema
        namespace.updated_at = datetime.now(UTC)
        deleted = sum([namespace.drop(key) for key in write.doomed])
        patched = 0
        for patch in write.patches:
            old = namespace.documents.get(patch["id"])
            if old is not None and self._passes(namespace, body.get("patch_condition"), old, patch):
                namespace.put({**old, **patch})
                patched += 1
        deleted += sum([namespace.drop(key) for key in write.deletes])
        for document in write.upserts:
            namespace.put(document)
        size = sum(map(document_bytes, write.upserts))
        answer: dict[str, Any] = {
            "status": "OK",
            "message": "",
            "rows_affected": len(write.upserts) + patched + deleted,
            "billing": {"billable_logical_bytes_written": size},
        }
        counts = {"rows_upserted": len(write.upserts), "rows_patched": patched, "rows_deleted": deleted}
        return answer | {key: value for key, value in counts.items() if value} | {"rows_remaining": write.remaining}

    def _passes(self, namespace: Namespace, condition: Any, old: Document, new: Document) -> bool:
        return condition is None or compile_filter(namespace.schema, condition, new)(old)

    def query(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One query or several; all see the same moment."""
        query = dict(body)
        level = query.pop("consistency", {}).get("level", "strong")
        if level not in ("strong", "eventual"):
            raise bad(f"unknown consistency level {level!r}")
        with self._lock:
            namespace = self._existing(name)
            if "queries" not in query:
                return self._run(namespace, query)
            queries = query.pop("queries")
            if not 1 <= len(queries) <= MAX_QUERIES:
                raise bad(f"between 1 and {MAX_QUERIES} queries can be sent, got {len(queries)}")
            return {"results": [self._run(namespace, {**one, **query}) for one in queries]}

    def _run(self, namespace: Namespace, query: Mapping[str, Any]) -> dict[str, Any]:
        return run_query(namespace.schema, namespace.documents, namespace.words, query)

    def schema(self, name: str) -> dict[str, Any]:
        with self._lock:
            return {key: attribute.as_json() for key, attribute in self._existing(name).schema.items()}

    def metadata(self, name: str) -> dict[str, Any]:
        schema = self.schema(name)
        with self._lock:
            namespace = self._existing(name)
            return {
                "schema": schema,
                "approx_logical_bytes": sum(map(document_bytes, namespace.documents.values())),
                "approx_row_count": len(namespace.documents),
                "created_at": namespace.created_at.isoformat(),
                "updated_at": namespace.updated_at.isoformat(),
                "encryption": {"mode": "default"},
                "index": {"status": "up-to-date"},
            }

    def delete(self, name: str) -> None:
        with self._lock:
            self._existing(name)
            del self.namespaces[name]

    def listing(self, prefix: str, cursor: str, page_size: int) -> dict[str, Any]:
        with self._lock:
            names = sorted(name for name in self.namespaces if name.startswith(prefix) and name > cursor)
        page = names[:page_size]
        return {"namespaces": [{"id": name} for name in page], "next_cursor": page[-1] if len(names) > page_size else None}

    def _existing(self, name: str) -> Namespace:
        if name not in self.namespaces:
            raise _missing(name)
        return self.namespaces[name]


def _missing(name: str) -> ApiError:
    return ApiError(404, f"namespace {name!r} was not found")


def _rows(body: Mapping[str, Any], verb: str) -> list[Document]:
    columns = body.get(f"{verb}_columns")
    rows = [dict(row) for row in body.get(f"{verb}_rows", ())]
    if columns is None:
        return rows
    if "id" not in columns or len({len(values) for values in columns.values()}) > 1:
        raise bad(f"{verb}_columns needs ids and columns of the same length")
    return rows + [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _id_type(value: Any) -> Attribute:
    return parse_attribute("id", "uint" if isinstance(value, int) else "string")


def _values(schema: Mapping[str, Attribute], row: Document) -> Document:
    return {key: parse_value(key, schema[key], value) for key, value in row.items() if key in schema and key != "id"}
