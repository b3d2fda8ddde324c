"""Qdrant's filters: which payloads they select, and what strict mode demands of the indexes they use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline_tests.emulators.http import ApiError

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
Selects = Callable[[str, Mapping[str, Any]], bool]

_CLAUSES = ("must", "should", "must_not")
_BOUNDS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


def payload_key(path: str) -> str:
    """The key a JSON path of one step addresses."""
    if _PLAIN.fullmatch(path):
        return path
    if len(path) > 2 and path[0] == path[-1] == '"' and '"' not in path[1:-1]:
        return path[1:-1]
    raise ApiError(400, f"Format error in JSON body: Invalid json path: '{path}'")


def conditions(where: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every condition of a filter, those of nested filters too."""
    for clause in _clauses(where).values():
        for condition in clause:
            if _is_filter(condition):
                yield from conditions(condition)
            else:
                yield condition


def compiled(where: Mapping[str, Any] | None) -> Selects:
    """A filter as a test of a point's id and payload."""
    clauses = {name: [_compiled(condition) for condition in clause] for name, clause in _clauses(where or {}).items()}
    must, should, must_not = (clauses[name] for name in _CLAUSES)

    def selects(point_id: str, payload: Mapping[str, Any]) -> bool:
        return (
            all(holds(point_id, payload) for holds in must)
            and (not should or any(holds(point_id, payload) for holds in should))
            and not any(holds(point_id, payload) for holds in must_not)
        )

    return selects


def demanded_ids(where: Mapping[str, Any]) -> list[str] | None:
    """The only ids a filter can select, where it names them."""
    for condition in _clauses(where)["must"]:
        if "has_id" in condition:
            return list(dict.fromkeys(condition["has_id"]))
    return None


def required_index(condition: Mapping[str, Any]) -> tuple[str, frozenset[str]] | None:
    """The key and the types of index, one of which strict mode demands."""
    if "key" not in condition:
        return None
    if "range" in condition:
        return payload_key(condition["key"]), frozenset({"integer", "float"})
    match = condition["match"]
    value = match["value"] if "value" in match else match["any"][0]
    if isinstance(value, bool):
        kinds = frozenset({"bool"})
    else:
        kinds = frozenset({"integer"} if isinstance(value, int) else {"keyword", "uuid"})
    return payload_key(condition["key"]), kinds


def _clauses(where: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    unknown = where.keys() - set(_CLAUSES)
    if unknown:
        raise ApiError(400, f"Format error in JSON body: unknown field `{min(unknown)}`")
    return {name: _listed(where.get(name)) for name in _CLAUSES}


def _listed(clause: Any) -> list[Mapping[str, Any]]:
    if clause is None:
        return []
    return clause if isinstance(clause, list) else [clause]


def _is_filter(condition: Mapping[str, Any]) -> bool:
    return bool(condition.keys() & set(_CLAUSES)) or not condition


def _compiled(condition: Mapping[str, Any]) -> Selects:
    if _is_filter(condition):
        return compiled(condition)
    if "has_id" in condition:
        ids = frozenset(condition["has_id"])
        return lambda point_id, _: point_id in ids
    if "is_empty" in condition:
        absent = payload_key(condition["is_empty"]["key"])
        return lambda _, payload: payload.get(absent) in (None, [])
    key = payload_key(condition["key"])
    if "range" in condition:
        bounds = condition["range"]
        return lambda _, payload: any(_is_number(value) and _within(value, bounds) for value in _values(payload.get(key)))
    match = condition["match"]
    wanted = [match["value"]] if "value" in match else match["any"]
    if len({type(value) for value in wanted}) > 1:
        raise ApiError(400, "Format error in JSON body: data did not match any variant of untagged enum AnyVariants")
    kind, among = (type(wanted[0]), frozenset(wanted)) if wanted else (None, frozenset())
    return lambda _, payload: any(type(value) is kind and value in among for value in _values(payload.get(key)))


def _values(found: Any) -> Sequence[Any]:
    return found if isinstance(found, list) else (found,)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(value: float, bounds: Mapping[str, float]) -> bool:
    return all(_BOUNDS[name](float(value), bound) for name, bound in bounds.items() if bound is not None)
