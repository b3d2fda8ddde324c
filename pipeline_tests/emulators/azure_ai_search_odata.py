"""OData filters and order clauses as Azure AI Search takes them, by recursive descent into predicates.

What belongs here: the documented grammar and its documented limits: strings have no order, lambdas over strings test for
equality in ``any`` and for inequality in ``all``, only filterable fields are filtered on.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_tests.emulators.azure_ai_search_schema import Field, bad, instant
from pipeline_tests.emulators.http import ApiError

Document = dict[str, Any]
Scope = Mapping[str, Any]
Predicate = Callable[[Scope], bool]

MAX_CLAUSES = 1000
MAX_DEPTH = 100

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^']|'')*')
    | (?P<instant>\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d))
    | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)?)
    | (?P<mark>[(),/:])
    )""",
    re.VERBOSE,
)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
}
_REVERSED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}
_NUMBERS = ("Edm.Int32", "Edm.Int64", "Edm.Double")


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


@dataclass(frozen=True)
class _Constant:
    type: str
    value: Any


@dataclass(frozen=True)
class _Variable:
    name: str
    type: str


def invalid(message: str) -> ApiError:
    return bad(f"Invalid expression: {message}\r\nParameter name: $filter")


def compile_filter(fields: Mapping[str, Field], text: str | None) -> Predicate:
    """The documents a filter holds for. Raises ApiError for one the service would not take."""
    if text is None or not text.strip():
        return lambda _: True
    parser = _Parser(fields, _tokens(text))
    predicate = parser.either()
    parser.end()
    if parser.clauses > MAX_CLAUSES:
        raise invalid(f"the filter has {parser.clauses} clauses, which is too complex")
    return predicate


def _tokens(text: str) -> list[_Token]:
    tokens = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None:
            raise invalid(f"Syntax error at position {position} in '{text[:200]}'.")
        kind = found.lastgroup or ""
        tokens.append(_Token(kind, found[kind]))
        position = found.end()
        wordy = kind in ("number", "name", "instant", "string")
        if wordy and position < end and re.match(r"[\w'.]", text[position]):
            raise invalid(f"Syntax error at position {position} in '{text[:200]}'.")
    return tokens


class _Parser:
    def __init__(self, fields: Mapping[str, Field], tokens: list[_Token]) -> None:
        self._fields = fields
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._range: _Variable | None = None
        self._quantifier = ""
        self.clauses = 0

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise invalid(f"Syntax error: unexpected '{self._tokens[self._at].text}'.")

    def either(self) -> Predicate:
        parts = [self._both()]
        while self._word("or"):
            self._in_string_lambda("any", "or")
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else lambda scope: any(part(scope) for part in parts)

    def _both(self) -> Predicate:
        parts = [self._unary()]
        while self._word("and"):
            self._in_string_lambda("all", "and")
            parts.append(self._unary())
        return parts[0] if len(parts) == 1 else lambda scope: all(part(scope) for part in parts)

    def _in_string_lambda(self, allowed: str, word: str) -> None:
        if self._quantifier not in ("", allowed):
            raise invalid(f"Invalid lambda expression. '{word}' is not supported in '{self._quantifier}' over strings.")

    def _unary(self) -> Predicate:
        if not self._word("not"):
            return self._primary(negated=False)
        inner = self._primary(negated=True)
        return lambda scope: not inner(scope)

    def _primary(self, *, negated: bool) -> Predicate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise invalid("the filter is nested too deeply")
        try:
            if self._mark("("):
                quantifier, self._quantifier = self._quantifier, self._turned(negated)
                inner = self.either()
                self._quantifier = quantifier
                self._expect(")")
                return inner
            return self._comparison(negated)
        finally:
            self._depth -= 1

    def _turned(self, negated: bool) -> str:
        return {"any": "all", "all": "any"}.get(self._quantifier, "") if negated else self._quantifier

    def _comparison(self, negated: bool) -> Predicate:
        """``not`` binds tighter than a comparison, so an operand of it is a Boolean by itself."""
        self.clauses += 1
        token = self._next()
        if token.kind == "name" and token.text == "search.in":
            return self._search_in(negated)
        if token.kind == "name" and token.text in ("true", "false") and not self._is_comparison():
            value = token.text == "true"
            return lambda _: value
        if token.kind == "name" and token.text not in ("true", "false", "null"):
            return self._of_variable(token.text, negated)
        constant = self._constant(token)
        word = self._operator()
        variable = self._variable(self._next().text)
        return self._compare(variable, _REVERSED.get(word, word), constant)

    def _of_variable(self, name: str, negated: bool) -> Predicate:
        if self._mark("/"):
            return self._lambda(name)
        variable = self._variable(name)
        if not self._is_comparison():
            if variable.type != "Edm.Boolean":
                raise invalid(f"A unary operator or a filter needs a Boolean, '{name}' is of type '{variable.type}'.")
            return lambda scope: scope.get(variable.name) is True
        if negated:
            raise invalid(
                "A unary operator with an incompatible type was detected. Found operand type "
                f"'{variable.type}' for operator kind 'Not'."
            )
        return self._compare(variable, self._operator(), self._constant(self._next()))

    def _compare(self, variable: _Variable, word: str, constant: _Constant) -> Predicate:
        compared = _OPERATORS[word]
        name, kind = variable.name, variable.type
        if constant.type == "null":
            if word not in ("eq", "ne"):
                raise invalid(f"'{word}' cannot compare with null.")
            return lambda scope: compared(scope.get(name), None)
        if not (constant.type == kind or (constant.type in _NUMBERS and kind in _NUMBERS)):
            raise invalid(
                f"A binary operator with incompatible types was detected. Found operand types '{kind}' and '{constant.type}' "
                f"for operator kind '{word}'."
            )
        if kind in ("Edm.String", "Edm.Boolean") and word not in ("eq", "ne"):
            raise invalid(f"Operator '{word}' is not supported for type '{kind}'. Only equality operators are.")
        if self._range is not None and kind == "Edm.String" and (word == "eq") != (self._quantifier == "any"):
            raise invalid("Invalid lambda expression. Found a test for equality or inequality where the opposite was expected.")
        value = constant.value
        return lambda scope: word == "ne" if scope.get(name) is None else compared(scope[name], value)

    def _search_in(self, negated: bool) -> Predicate:
        self._expect("(")
        variable = self._variable(self._next().text)
        if variable.type != "Edm.String":
            raise invalid(f"Function 'search.in' takes a string field, '{variable.name}' is of type '{variable.type}'.")
        self._expect(",")
        listed = self._string()
        delimiters = self._string() if self._mark(",") else " ,"
        self._expect(")")
        if self._range is not None and (self._quantifier == "all") != negated:
            raise invalid("Invalid lambda expression. 'any' takes 'search.in', 'all' takes 'not search.in'.")
        pattern = "[" + re.escape(delimiters) + "]" if delimiters else r"(?!)"
        values = {part.strip() for part in re.split(pattern, listed)} - {""}
        return lambda scope: scope.get(variable.name) in values

    def _lambda(self, name: str) -> Predicate:
        field = self._field(name)
        if not field.is_collection:
            raise invalid(f"'{name}' is not a collection; only collections have 'any' and 'all'.")
        quantifier = self._next().text
        if quantifier not in ("any", "all") or self._range is not None:
            raise invalid(f"Unexpected '{quantifier}'.")
        self._expect("(")
        if quantifier == "any" and self._mark(")"):
            return lambda scope: bool(scope.get(name))
        self._range = _Variable(self._next().text, field.element)
        self._expect(":")
        self._quantifier = quantifier if field.element == "Edm.String" else ""
        variable = self._range.name
        inner = self.either()
        self._expect(")")
        self._range, self._quantifier = None, ""
        if quantifier == "any":
            return lambda scope: any(inner({variable: item}) for item in scope.get(name) or ())
        return lambda scope: all(inner({variable: item}) for item in scope.get(name) or ())

    def _variable(self, name: str) -> _Variable:
        if self._range is not None:
            if name != self._range.name:
                raise invalid(f"'{name}' is not bound to the range variable '{self._range.name}'.")
            return self._range
        field = self._field(name)
        if field.is_collection:
            raise invalid(f"'{name}' is a collection and cannot be compared; use 'any' or 'all'.")
        return _Variable(name, field.type)

    def _field(self, name: str) -> Field:
        field = self._fields.get(name)
        if field is None:
            raise invalid(f"Could not find a property named '{name}' on type 'search.document'.")
        if not field.filterable:
            raise invalid(f"'{name}' is not a filterable field. Only filterable fields can be used in filter expressions.")
        return field

    def _constant(self, token: _Token) -> _Constant:
        if token.kind == "string":
            return _Constant("Edm.String", token.text[1:-1].replace("''", "'"))
        if token.kind == "instant":
            return _Constant("Edm.DateTimeOffset", instant(token.text))
        if token.kind == "number":
            whole = re.fullmatch(r"[+-]?\d+", token.text)
            if whole and not -(2**63) <= int(token.text) < 2**63:
                raise invalid(f"'{token.text}' is out of range.")
            return _Constant("Edm.Int64", int(token.text)) if whole else _Constant("Edm.Double", float(token.text))
        if token.text in ("true", "false"):
            return _Constant("Edm.Boolean", token.text == "true")
        if token.text == "null":
            return _Constant("null", None)
        raise invalid(f"Syntax error: '{token.text}' is not a constant.")

    def _string(self) -> str:
        token = self._next()
        if token.kind != "string":
            raise invalid(f"Syntax error: expected a string, found '{token.text}'.")
        return str(self._constant(token).value)

    def _next(self) -> _Token:
        if self._at == len(self._tokens):
            raise invalid("Syntax error: unexpected end of the expression.")
        self._at += 1
        return self._tokens[self._at - 1]

    def _is_comparison(self) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at].text in _OPERATORS

    def _operator(self) -> str:
        token = self._next()
        if token.kind != "name" or token.text not in _OPERATORS:
            raise invalid(f"Syntax error: expected an operator, found '{token.text}'.")
        return token.text

    def _word(self, word: str) -> bool:
        return self._take(_Token("name", word))

    def _mark(self, mark: str) -> bool:
        return self._take(_Token("mark", mark))

    def _take(self, token: _Token) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == token:
            self._at += 1
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._mark(mark):
            raise invalid(f"Syntax error: expected '{mark}'.")
