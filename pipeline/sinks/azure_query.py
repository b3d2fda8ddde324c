"""Azure AI Search's query languages: OData filters and the simple text syntax, with every value quoted.

What belongs here: spelling conditions, so that no value is ever read as syntax. The vendor documents that strings compare by
``eq``, ``ne`` and ``search.in`` alone, never by order; that ``null`` is unequal to every value and neither less nor greater;
that lambdas over strings take ``eq`` and ``search.in``; and that ``search.in`` counts as one clause of a filter, whatever the
number of its values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pipeline.sinks.azure_layout import field_name
from pipeline.sinks.filters import Condition, FilterValue

MAX_TEXT_CHARACTERS: Final = 100_000
MAX_TEXT_WORDS: Final = 1024
"""Longest search text, and most clauses of one; documented by the vendor."""

_DELIMITER: Final = "|"
_COMPARISONS: Final = {"gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}
_OPERATORS: Final = re.compile(r"""[+\-|*"'()~\\]""")
_WORD: Final = re.compile(r"\w+")


def literal(value: FilterValue) -> str:
    """A value as an OData constant."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def one_of(variable: str, values: Sequence[str]) -> str:
    """Whether a string is one of these; a single expression for ``and`` and ``not``."""
    listed = [value for value in values if _fits_a_list(value)]
    clauses = [f"{variable} eq {literal(value)}" for value in values if not _fits_a_list(value)]
    if listed:
        clauses.insert(0, f"search.in({variable}, {literal(_DELIMITER.join(listed))}, '{_DELIMITER}')")
    return _any_of(clauses)


def _fits_a_list(value: str) -> bool:
    """A list is cut at its delimiter, and nothing is documented about empty or padded entries."""
    return value != "" and _DELIMITER not in value and value == value.strip()


def _any_of(clauses: Sequence[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"({' or '.join(clauses)})"


def scope(tenant_id: str, export_config_id: str, file_ids: Sequence[str] | None = None) -> str:
    """Documents of one config of one tenant, of all its files or of these (at least one)."""
    whole = f"tenant_id eq {literal(tenant_id)} and export_config_id eq {literal(export_config_id)}"
    return whole if file_ids is None else f"{whole} and {one_of('parsed_directory_file_id', file_ids)}"


def without_file(tenant_id: str, export_config_id: str) -> str:
    """Documents of a config whose file id another program has removed."""
    return f"{scope(tenant_id, export_config_id)} and parsed_directory_file_id eq null"


def render(condition: Condition) -> str:
    """A condition as a filter. Negations are the opposites of the positives, so they hold for null and for empty lists."""
    name = field_name(condition.field) if condition.is_metadata else condition.field
    if condition.operator in _COMPARISONS:
        return f"{name} {_COMPARISONS[condition.operator]} {literal(condition.values[0])}"
    positive = _equals(name, condition)
    return f"not ({positive})" if condition.negated else positive


def _equals(name: str, condition: Condition) -> str:
    strings = [value for value in condition.values if isinstance(value, str)]
    if condition.type == "string_list":
        listed = [value for value in strings if _fits_a_list(value)]
        alone = [[value] for value in strings if not _fits_a_list(value)]
        groups = [*([listed] if listed else []), *alone]
        return _any_of([f"{name}/any(t: {one_of('t', group)})" for group in groups])
    if strings:
        return one_of(name, strings)
    return _any_of([f"{name} eq {literal(value)}" for value in condition.values])


def words_of(text: str) -> list[str]:
    """What a search text can match: an analyzer drops everything else."""
    return _WORD.findall(text)


def escape_text(text: str) -> str:
    """A text in the simple syntax, searched for as it stands.

    Raises ValueError for a longer one than the service takes.
    """
    if len(text) > MAX_TEXT_CHARACTERS or len(words_of(text)) > MAX_TEXT_WORDS:
        raise ValueError(
            f"the search text is longer than the {MAX_TEXT_WORDS:,} words and {MAX_TEXT_CHARACTERS:,} characters "
            "Azure AI Search takes; shorten it"
        )
    return _OPERATORS.sub(r"\\\g<0>", text)
