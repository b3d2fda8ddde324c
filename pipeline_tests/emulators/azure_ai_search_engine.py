"""The indexes of an emulated Azure AI Search: changes that are durable at once and searchable later."""

from __future__ import annotations

import re
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline_tests.emulators.azure_ai_search_odata import compile_filter
from pipeline_tests.emulators.azure_ai_search_schema import (
    DocumentError,
    Field,
    bad,
    check_key,
    check_update,
    completed,
    parse_fields,
)
from pipeline_tests.emulators.azure_ai_search_text import bm25, parse_text, tokens
from pipeline_tests.emulators.http import ApiError

Document = dict[str, Any]

MAX_BATCH = 1000
MAX_PAGE = 1000
MAX_SKIP = 100_000
MAX_NEIGHBOURS = 10_000
DEFAULT_TOP = 50
MAX_RERANKED = 50
_RANK_CONSTANT = 60
_ACTIONS = ("upload", "merge", "mergeOrUpload", "delete")
_QUERY_KEYS = {
    "count",
    "facets",
    "filter",
    "orderby",
    "queryType",
    "search",
    "searchFields",
    "searchMode",
    "select",
    "semanticConfiguration",
    "semanticQuery",
    "sessionId",
    "skip",
    "top",
    "vectorFilterMode",
    "vectorQueries",
}


@dataclass
class Index:
    """``stored`` is what changes see; ``visible`` is what searches see, some searches later."""

    definition: dict[str, Any]
    fields: dict[str, Field]
    etag: str
    stored: dict[str, Document] = field(default_factory=dict)
    visible: dict[str, Document] = field(default_factory=dict)
    waiting: list[tuple[int, str]] = field(default_factory=list)
    """Changes not yet visible: the number of the search that sees them, and the key."""

    searches: int = 0
    _words: dict[tuple[str, ...], tuple[Document, Counter[str]]] = field(default_factory=dict)

    def words(self, document: Document, names: tuple[str, ...]) -> Counter[str]:
        """The words of these fields of a document, counted once."""
        address = (document[self.key], *names)
        known = self._words.get(address)
        if known is None or known[0] is not document:
            known = self._words[address] = document, tokens(" ".join(document.get(name) or "" for name in names))
        return known[1]

    @property
    def key(self) -> str:
        return next(field.name for field in self.fields.values() if field.key)

    def catch_up(self, *, entirely: bool = False) -> None:
        """Make visible what is due, each document as it is stored now."""
        due = {key for at, key in self.waiting if entirely or at <= self.searches}
        self.waiting = [(at, key) for at, key in self.waiting if key not in due]
        for key in due:
            if key in self.stored:
                self.visible[key] = self.stored[key]
            else:
                self.visible.pop(key, None)


class Engine:
    """All indexes. ``lag`` is after how many searches of an index a change is searchable, for half of the documents sooner.

    ``refuse`` may name a status and a message for a change before it is made. ``answered`` is how many documents one answer
    has at most: the service gives fewer than were asked for as it sees fit, and then says how to ask for the others.
    """

    def __init__(self) -> None:
        self.indexes: dict[str, Index] = {}
        self.lag = 0
        self.answered = MAX_PAGE
        self.refuse: Callable[[str, Document], tuple[int, str] | None] = _refuse_nothing
        self._lock = threading.RLock()

    def settle(self) -> None:
        """Make everything visible now."""
        with self._lock:
            for index in self.indexes.values():
                index.catch_up(entirely=True)

    def put_index(self, name: str, body: Mapping[str, Any], if_match: str | None, if_none_match: str | None) -> tuple[int, Any]:
        with self._lock:
            held = self.indexes.get(name)
            if (held and if_none_match == "*") or (if_match is not None and (held is None or held.etag != if_match)):
                raise ApiError(412, "The precondition given in one of the request headers evaluated to false.")
            if body.get("name") != name:
                raise bad(f"The index name '{body.get('name')}' in the body is not that of the address, '{name}'.")
            definition = completed(body)
            fields = parse_fields(definition)
            etag = f'"0x{uuid.uuid4().hex[:15].upper()}"'
            if held is None:
                self.indexes[name] = Index(definition, fields, etag)
                return 201, self._shown(self.indexes[name])
            check_update(held.definition, definition)
            held.definition, held.fields, held.etag = definition, fields, etag
            return 200, self._shown(held)

    def get_index(self, name: str) -> Any:
        with self._lock:
            return self._shown(self._existing(name))

    def list_indexes(self) -> Any:
        with self._lock:
            return {"value": [self._shown(index) for index in self.indexes.values()]}

    def delete_index(self, name: str) -> None:
        with self._lock:
            self._existing(name)
            del self.indexes[name]

    def stats(self, name: str) -> Any:
        with self._lock:
            return {"documentCount": len(self._existing(name).visible), "storageSize": 0, "vectorIndexSize": 0}

    def count(self, name: str) -> int:
        with self._lock:
            index = self._existing(name)
            index.catch_up()
            return len(index.visible)

    def lookup(self, name: str, key: str) -> Any:
        """Nothing is documented of when a lookup shows a change, so it is no faster than a search."""
        with self._lock:
            index = self._existing(name)
            index.catch_up()
            if key not in index.visible:
                raise ApiError(404, "")
            return _shown_document(index.fields, index.visible[key], list(index.fields))

    def change(self, name: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Each document by itself: 207 where one failed."""
        actions = body.get("value")
        if not isinstance(actions, list) or not actions:
            raise bad("The request is invalid. Details: actions : No indexing actions found in the request.")
        if len(actions) > MAX_BATCH:
            raise bad(f"Too many indexing actions found in the request: {len(actions)}. The limit is {MAX_BATCH}.")
        with self._lock:
            index = self._existing(name)
            checked = [self._checked(index, action) for action in actions]
            results = [self._apply(index, kind, key, values) for kind, key, values in checked]
        return (200 if all(result["status"] for result in results) else 207), {"value": results}

    def _checked(self, index: Index, action: Mapping[str, Any]) -> tuple[str, str, Document]:
        kind = action.get("@search.action", "upload")
        if kind not in _ACTIONS:
            raise bad(f"Invalid action '{kind}'.")
        values = {name: value for name, value in action.items() if name != "@search.action"}
        unknown = sorted(values.keys() - index.fields.keys())
        if unknown:
            raise bad(
                f"The request is invalid. Details: The property '{unknown[0]}' does not exist on type 'search.documentFields'. "
                "Make sure to only use property names that are defined by the type."
            )
        key = check_key(values.get(index.key))
        if kind == "delete":
            return kind, key, {}
        return kind, key, {name: index.fields[name].value(value) for name, value in values.items()}

    def _apply(self, index: Index, kind: str, key: str, values: Document) -> dict[str, Any]:
        refused = self.refuse(kind, {**values, index.key: key})
        if refused is not None:
            return _result(key, *refused)
        held = index.stored.get(key)
        if kind == "merge" and held is None:
            return _result(key, 404, "Document not found.")
        if kind == "delete":
            index.stored.pop(key, None)
        else:
            empty = {field.name: field.value(None) for field in index.fields.values()}
            base = held if held is not None and kind != "upload" else empty
            try:
                for name, value in values.items():
                    index.fields[name].check_terms(value)
            except DocumentError as error:
                return _result(key, 400, str(error))
            index.stored[key] = {**empty, **base, **values}
        late = self.lag if zlib.crc32(key.encode()) % 2 else self.lag // 2
        index.waiting.append((index.searches + late, key))
        return _result(key, 201 if kind in ("upload", "mergeOrUpload") and held is None else 200)

    def search(self, name: str, query: Mapping[str, Any]) -> Any:
        if query.keys() - _QUERY_KEYS:
            raise bad(f"The request is invalid. Unknown parameters: {sorted(query.keys() - _QUERY_KEYS)}")
        with self._lock:
            index = self._existing(name)
            index.catch_up()
            index.searches += 1
            return _Search(index, query).answer(self.answered)

    def _existing(self, name: str) -> Index:
        if name not in self.indexes:
            raise ApiError(404, f"The index '{name}' for service 'emulator' was not found.")
        return self.indexes[name]

    def _shown(self, index: Index) -> dict[str, Any]:
        return {"@odata.etag": index.etag, **index.definition}


def _refuse_nothing(action: str, document: Document) -> None:
    """Every change is made."""


def _result(key: str, status: int, message: str | None = None) -> dict[str, Any]:
    return {"key": key, "status": status < 300, "errorMessage": message, "statusCode": status}


def _shown_document(fields: Mapping[str, Field], document: Document, names: Sequence[str]) -> Document:
    return {name: _shown_value(document.get(name)) for name in names if fields[name].retrievable}


def _shown_value(value: Any) -> Any:
    """A float32 is written as the shortest decimal that reads back as the same."""
    return value.astype(str).astype(float).tolist() if isinstance(value, np.ndarray) else value


class _Search:
    """One search over what is visible."""

    def __init__(self, index: Index, query: Mapping[str, Any]) -> None:
        self._index = index
        self._query = query
        self._fields = index.fields
        self._documents = list(index.visible.values())
        holds = compile_filter(index.fields, query.get("filter"))
        self._found = [number for number, document in enumerate(self._documents) if holds(document)]

    def answer(self, most: int) -> dict[str, Any]:
        top, skip = self._size("top", DEFAULT_TOP), self._size("skip", 0)
        if skip > MAX_SKIP:
            raise bad(f"Value must be between 0 and {MAX_SKIP}.\r\nParameter name: $skip")
        names = self._selected()
        scores = self._scores()
        ordered = self._ordered(scores)
        page = ordered[skip : skip + min(top, most)]
        address = f"/indexes('{self._index.definition['name']}')"
        answer: dict[str, Any] = {
            "@odata.context": f"{address}/$metadata#docs(*)",
            "value": [self._row(number, scores[number], place, names) for place, number in enumerate(page, skip)],
        }
        if self._query.get("count"):
            answer["@odata.count"] = len(ordered)
        if self._query.get("facets"):
            answer["@search.facets"] = {name: self._facet(name, count, ordered) for name, count in self._facets()}
        if len(page) < top and skip + len(page) < len(ordered):
            answer["@search.nextPageParameters"] = {**self._query, "skip": skip + len(page), "top": top - len(page)}
            answer["@odata.nextLink"] = f"{address}/docs/search.post.search"
        return answer

    def _row(self, number: int, score: float, place: int, names: Sequence[str]) -> Document:
        """The semantic ranker scores the best 50, from 0 to 4; the others have its null."""
        semantic = self._query.get("queryType") == "semantic"
        reranked = {"@search.rerankerScore": 4.0 / (1 + place) if place < MAX_RERANKED else None} if semantic else {}
        return {"@search.score": score, **reranked, **_shown_document(self._fields, self._documents[number], names)}

    def _size(self, name: str, default: int) -> int:
        value = self._query.get(name)
        if value is None:
            return default
        if not isinstance(value, int) or value < 0:
            raise bad(f"Value must be a non-negative integer.\r\nParameter name: ${name}")
        return value

    def _selected(self) -> list[str]:
        names = [name.strip() for name in (self._query.get("select") or "*").split(",")]
        if names == ["*"]:
            return [field.name for field in self._fields.values() if field.retrievable]
        for name in names:
            if name not in self._fields:
                raise bad(f"Could not find a property named '{name}' on type 'search.document'.\r\nParameter name: $select")
            if not self._fields[name].retrievable:
                raise bad(f"The field '{name}' is not retrievable.\r\nParameter name: $select")
        return names

    def _scores(self) -> dict[int, float]:
        """Of every match: 1 where nothing ranks, BM25, a vector's score, or ranks fused where several rank."""
        text = parse_text(self._query.get("search"))
        self._check_semantic()
        rankings = [self._nearest(query) for query in self._query.get("vectorQueries") or ()]
        if not text.everything:
            names = self._searched()
            rankings.insert(0, bm25(text, [self._index.words(document, names) for document in self._documents], self._found))
        if not rankings:
            return dict.fromkeys(self._found, 1.0)
        if len(rankings) == 1:
            return rankings[0]
        fused: dict[int, float] = {}
        for ranking in rankings:
            for rank, number in enumerate(sorted(ranking, key=lambda found: -ranking[found]), start=1):
                fused[number] = fused.get(number, 0.0) + 1 / (_RANK_CONSTANT + rank)
        return fused

    def _check_semantic(self) -> None:
        if self._query.get("queryType", "simple") not in ("simple", "full", "semantic"):
            raise bad("Unknown query type.\r\nParameter name: queryType")
        if self._query.get("queryType") != "semantic":
            return
        configurations = (self._index.definition.get("semantic") or {}).get("configurations", ())
        if self._query.get("semanticConfiguration") not in {item["name"] for item in configurations}:
            raise bad("Unknown semantic configuration.\r\nParameter name: semanticConfiguration")

    def _searched(self) -> tuple[str, ...]:
        """The fields a text is looked for in."""
        asked = self._query.get("searchFields")
        if not asked:
            return tuple(field.name for field in self._fields.values() if field.searchable and not field.is_vector)
        names = tuple(name.strip() for name in asked.split(","))
        for name in names:
            if name not in self._fields or not self._fields[name].searchable:
                raise bad(f"The field '{name}' in the search field list is not searchable.\r\nParameter name: searchFields")
        return names

    def _nearest(self, query: Mapping[str, Any]) -> dict[int, float]:
        field = self._fields.get(query.get("fields", ""))
        if query.get("kind") != "vector" or field is None or not field.is_vector:
            raise bad(f"The vector query names '{query.get('fields')}', which is no vector field.\r\nParameter name: vector")
        limit = query.get("k") or DEFAULT_TOP
        if not 1 <= limit <= MAX_NEIGHBOURS:
            raise bad(f"k must be between 1 and {MAX_NEIGHBOURS}.\r\nParameter name: vector")
        wanted = field.value(query.get("vector"))
        numbers = [number for number in self._found if self._documents[number].get(field.name) is not None]
        if not numbers:
            return {}
        matrix = np.stack([self._documents[number][field.name] for number in numbers]).astype(np.float64)
        lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(wanted)
        cosines = np.divide(matrix @ wanted.astype(np.float64), lengths, out=np.zeros(len(numbers)), where=lengths != 0)
        best = np.argsort(-cosines, kind="stable")[:limit]
        return {numbers[place]: float(1 / (2 - cosines[place])) for place in best}

    def _ordered(self, scores: Mapping[int, float]) -> list[int]:
        clauses = [clause.strip() for clause in (self._query.get("orderby") or "").split(",") if clause.strip()]
        ordered = sorted(scores, key=lambda number: -scores[number])
        for clause in reversed(clauses):
            found = re.fullmatch(r"(search\.score\(\)|\w+)(?: +(asc|desc))?", clause)
            if not found:
                raise bad(f"Syntax error in '{clause}'.\r\nParameter name: $orderby")
            name, backwards = found[1], found[2] == "desc"
            if name == "search.score()":
                ordered.sort(key=lambda number: scores[number], reverse=backwards)
                continue
            field = self._fields.get(name)
            if field is None or not field.sortable:
                raise bad(f"Invalid expression: '{name}' is not a sortable field.\r\nParameter name: $orderby")
            present = [number for number in ordered if self._documents[number].get(name) is not None]
            missing = [number for number in ordered if self._documents[number].get(name) is None]
            present.sort(key=lambda number, name=name: self._documents[number][name], reverse=backwards)
            ordered = present + missing if backwards else missing + present
        return ordered

    def _facets(self) -> list[tuple[str, int]]:
        facets = []
        for expression in self._query["facets"]:
            found = re.fullmatch(r"(\w+)(?:,count:(\d+))?", expression)
            if not found or found[1] not in self._fields or not self._fields[found[1]].facetable:
                raise bad(f"Invalid facet '{expression}'.\r\nParameter name: facets")
            facets.append((found[1], int(found[2] or 10)))
        return facets

    def _facet(self, name: str, count: int, ordered: Sequence[int]) -> list[dict[str, Any]]:
        values: Counter[Any] = Counter()
        for number in ordered:
            value = self._documents[number].get(name)
            values.update(value if isinstance(value, list) else [] if value is None else [value])
        return [{"value": value, "count": times} for value, times in values.most_common(count or None)]
