"""Filters and texts for Azure AI Search: whatever a value holds, it stays a value."""

from __future__ import annotations

from typing import Any

import pytest
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError
from azure.search.documents import SearchClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sinks.azure_layout import IndexDesign
from pipeline.sinks.azure_query import escape_text, literal, one_of, render, scope, words_of
from pipeline.sinks.base import MetadataType
from pipeline.sinks.filters import parse_filters
from pipeline_tests.conformance.azure_ai_search_harness import emulated_azure_ai_search
from pipeline_tests.conformance.harness import FIELDS, MODEL
from pipeline_tests.conformance.test_search import _holds
from pipeline_tests.emulators.azure_ai_search_odata import compile_filter
from pipeline_tests.emulators.azure_ai_search_schema import parse_fields
from pipeline_tests.emulators.azure_ai_search_text import parse_text, tokens
from pipeline_tests.emulators.http import ApiError

INDEX = parse_fields(IndexDesign("index", MODEL, FIELDS, "standard.lucene", semantic=False).definition())

hostile = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="'|,() \\\"-*eqornt%0", max_size=16),
    st.sampled_from(
        ["' or true or '", "x') or search.in(tenant_id,'a", "|", "", " ", "a|b", "'", "''", "it''s", "\n", "null", "\u2028"]
    ),
)
values: dict[str, st.SearchStrategy[Any]] = {
    "language": hostile,
    "year": st.integers(-(2**63), 2**63 - 1),
    "rating": st.floats(allow_nan=False, allow_infinity=False),
    "draft": st.booleans(),
    "tags": hostile,
}


loaded = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The machine may have other work to do."""


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata, and one condition on it."""
    key = draw(st.sampled_from(sorted(values)))
    kind: MetadataType = FIELDS[key]
    pool = draw(st.lists(values[key], min_size=1, max_size=5))
    operators = ["eq", "ne", "in", "nin", *(["gt", "gte", "lt", "lte"] if kind in ("integer", "float") else [])]
    operator = draw(st.sampled_from(operators))
    operand = draw(st.lists(st.sampled_from(pool), min_size=1)) if operator in ("in", "nin") else draw(st.sampled_from(pool))
    one = st.sampled_from(pool) | values[key]
    held = draw(st.none() | (st.lists(one, max_size=3) if kind == "string_list" else one))
    return {} if held is None else {key: held}, {key: {operator: operand}}


@loaded
@given(cases())
def test_a_filter_means_what_it_means_in_python(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    metadata, filters = case
    (condition,) = parse_filters(filters, FIELDS)
    holds = compile_filter(INDEX, render(condition))
    ((key, written),) = filters.items()
    ((operator, operand),) = written.items()
    document = {name: field.value(metadata.get(name)) for name, field in INDEX.items() if name in FIELDS}
    assert holds(document) == _holds(metadata, key, operator, operand)


@loaded
@given(
    tenant=hostile, config=hostile, files=st.lists(hostile, min_size=1, max_size=5), others=st.tuples(hostile, hostile, hostile)
)
def test_a_scope_never_reaches_beyond_itself(tenant: str, config: str, files: list[str], others: tuple[str, str, str]) -> None:
    holds = compile_filter(INDEX, f"{scope(tenant, config, files)} and chunk_index eq 0")

    def held(tenant_id: str, config_id: str, file_id: str) -> bool:
        document = {"tenant_id": tenant_id, "export_config_id": config_id, "parsed_directory_file_id": file_id, "chunk_index": 0}
        return holds(document)

    assert all(held(tenant, config, file_id) for file_id in files)
    assert held(*others) == (others[0] == tenant and others[1] == config and others[2] in files)
    assert held(tenant, config, others[2]) == (others[2] in files)


def test_many_values_are_one_clause() -> None:
    listed = one_of("id", [f"id-{n}" for n in range(1000)])
    assert listed.count(" or ") == 0
    assert compile_filter(INDEX, listed)({"id": "id-999"})
    assert not compile_filter(INDEX, f"not {listed}")({"id": "id-999"})


@pytest.mark.parametrize(("value", "written"), [(True, "true"), (3, "3"), (1e-7, "1e-07"), (-2.0, "-2.0"), ("it's", "'it''s'")])
def test_literals_are_those_of_odata(value: Any, written: str) -> None:
    assert literal(value) == written


@loaded
@given(hostile | st.text(max_size=40))
def test_any_text_is_searched_for_as_it_stands(text: str) -> None:
    if not words_of(text):
        return
    query = parse_text(escape_text(text))
    assert not query.everything
    assert query.excluded == query.prefixes == ()
    assert set(query.terms) == set(tokens(text))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nosuch eq 1", "Could not find a property named 'nosuch'"),
        ("content eq 'x'", "'content' is not a filterable field"),
        ("id gt 'x'", "Operator 'gt' is not supported for type 'Edm.String'"),
        ("year eq '1'", "incompatible types"),
        ("language eq 1", "incompatible types"),
        ("year gt null", "cannot compare with null"),
        ("not year eq 1", "incompatible type was detected"),
        ("year", "needs a Boolean"),
        ("tags eq 'x'", "is a collection"),
        ("year/any(y: y eq 1)", "is not a collection"),
        ("tags/any(t: t ne 'x')", "opposite was expected"),
        ("tags/all(t: t eq 'x')", "opposite was expected"),
        ("tags/any(t: t eq 'x' and t eq 'y')", "'and' is not supported"),
        ("tags/any(t: not search.in(t, 'x'))", "'any' takes"),
        ("tags/any(t: language eq 'x')", "not bound"),
        ("search.in(year, '1')", "takes a string field"),
        ("year eq 9223372036854775808", "out of range"),
        ("year eq 1 or", "unexpected end"),
        ("(year eq 1", "expected '\\)'"),
        ("year eq 1)", "unexpected '\\)'"),
        ("language eq 'x", "Syntax error at position"),
        ("year = 1", "Syntax error at position"),
        ("year eq 1 year eq 2", "unexpected 'year'"),
        ("year contains 1", "needs a Boolean|unexpected"),
        ("__import__('os')", "Could not find|Syntax"),
        (" or ".join(["year eq 1"] * 1001), "too complex"),
        ("(" * 101 + "draft" + ")" * 101, "too deeply"),
    ],
)
def test_the_emulator_refuses_what_the_service_refuses(text: str, told: str) -> None:
    with pytest.raises(ApiError, match=told) as caught:
        compile_filter(INDEX, text)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "document", "holds"),
    [
        ("draft", {"draft": True}, True),
        ("not draft", {"draft": None}, True),
        ("draft eq false or year ge 3 and year lt 5", {"draft": True, "year": 4}, True),
        ("3 lt year", {"year": 4}, True),
        ("year ne 4", {"year": None}, True),
        ("language eq null", {"language": None}, True),
        ("rating eq 4", {"rating": 4.0}, True),
        ("not (year gt 3)", {"year": None}, True),
        ("tags/any()", {"tags": []}, False),
        ("tags/any(t: t eq 'a' or t eq 'b')", {"tags": ["b"]}, True),
        ("tags/all(t: not (t eq 'a') and t ne 'b')", {"tags": ["b"]}, False),
        ("tags/all(t: not search.in(t, 'a b'))", {"tags": ["c"]}, True),
        ("source_modified_at ge 2026-01-01T00:00:00Z", {"source_modified_at": "2026-03-04T05:06:07.089Z"}, True),
        ("search.in(language, 'de, en')", {"language": "en"}, True),
        ("search.in(language, 'a,b c', ',')", {"language": "b c"}, True),
        ("true and not false", {}, True),
    ],
)
def test_the_emulator_reads_filters_as_documented(text: str, document: dict[str, Any], holds: bool) -> None:
    assert compile_filter(INDEX, text)(document) is holds


def test_the_vendors_client_is_told_what_is_wrong_with_a_filter() -> None:
    with emulated_azure_ai_search() as sink:
        emulator = sink.fresh_emulator()
        emulator.engine.put_index("index", IndexDesign("index", MODEL, {}, "standard.lucene", False).definition(), None, None)
        with (
            SearchClient(emulator.url, "index", AzureKeyCredential(emulator.api_key)) as client,
            pytest.raises(HttpResponseError, match="not a filterable field") as caught,
        ):
            list(client.search("*", filter="content eq 'x'"))
        assert caught.value.status_code == 400
