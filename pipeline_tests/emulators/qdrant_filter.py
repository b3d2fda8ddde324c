"""Qdrant's filters: which payloads they select, and what strict mode demands of the indexes they use."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_CLAUSES = ("must", "should", "must_not")
_BOUNDS = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


@dataclass
class ApiError(Exception):
    """An answer other than success."""

    status: int
    message: str


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


def selects(where: Mapping[str, Any] | None, point_id: str, payload: Mapping[str, Any]) -> bool:
    if not where:
        return True
    clauses = _clauses(where)
    if not all(_holds(condition, point_id, payload) for condition in clauses["must"]):
        return False
    if clauses["should"] and not any(_holds(condition, point_id, payload) for condition in clauses["should"]):
        return False
    return not any(_holds(condition, point_id, payload) for condition in clauses["must_not"])


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


def _holds(condition: Mapping[str, Any], point_id: str, payload: Mapping[str, Any]) -> bool:
    if _is_filter(condition):
        return selects(condition, point_id, payload)
    if "has_id" in condition:
        return point_id in condition["has_id"]
    found = payload.get(payload_key(condition["key"]))
    values = found if isinstance(found, list) else [found]
    if "range" in condition:
        return any(_is_number(value) and _within(value, condition["range"]) for value in values)
    match = condition["match"]
    wanted = [match["value"]] if "value" in match else match["any"]
    if len({type(value) for value in wanted}) > 1:
        raise ApiError(400, "Format error in JSON body: data did not match any variant of untagged enum AnyVariants")
    return any(value == one and type(value) is type(one) for value in values for one in wanted)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(value: float, bounds: Mapping[str, float]) -> bool:
    return all(_BOUNDS[name](float(value), bound) for name, bound in bounds.items() if bound is not None)
