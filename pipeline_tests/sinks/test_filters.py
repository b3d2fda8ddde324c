"""The filter model: what a mapping of filters means, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import RecordRefused
from pipeline.sinks.filters import Condition, declared_values, fields_of_file, parse_filters
from pipeline_tests.conformance.harness import FIELDS, Bench


def test_a_bare_value_means_equality_and_all_conditions_are_kept() -> None:
    assert parse_filters({"year": 3, "rating": {"gt": 1, "lte": 2.5}, "file_name": "a"}, FIELDS) == (
        Condition("year", "integer", "eq", (3,)),
        Condition("rating", "float", "gt", (1.0,)),
        Condition("rating", "float", "lte", (2.5,)),
        Condition("file_name", "string", "eq", ("a",)),
    )


def test_a_condition_says_where_its_field_lives_and_whether_it_negates() -> None:
    metadata, own = parse_filters({"tags": {"nin": ["a"]}, "parsed_directory_file_id": "x"}, FIELDS)
    assert (metadata.is_metadata, metadata.negated) == (True, True)
    assert (own.is_metadata, own.negated) == (False, False)


def test_values_have_exactly_the_declared_type() -> None:
    (condition,) = parse_filters({"rating": {"in": [1, 2]}}, FIELDS)
    assert [type(value) for value in condition.values] == [float, float]


@pytest.mark.parametrize(
    "filters",
    [
        {"unknown": 1},
        {"year": {"like": 1}},
        {"year": {"EQ": 1}},
        {"year": True},
        {"year": 1.0},
        {"year": 2**63},
        {"year": None},
        {"rating": float("nan")},
        {"rating": True},
        {"rating": 10**400},
        {"language": 1},
        {"language": ["de"]},
        {"language": {"gt": "a"}},
        {"language": {"in": "de"}},
        {"language": {"in": []}},
        {"language": {"eq": ["de"]}},
        {"language": "\ud800"},
        {"draft": 1},
        {"draft": {"lt": True}},
        {"tags": ["a"]},
        {"tags": {"in": [1]}},
    ],
)
def test_what_makes_no_sense_is_refused(filters: Any) -> None:
    with pytest.raises(ValueError, match=r"filter|surrogates"):
        parse_filters(filters, FIELDS)


def test_a_value_of_another_type_is_told_by_its_type_and_size() -> None:
    with pytest.raises(ValueError, match=r"^a value of the filter on 'year' is a string of 4 characters, not an integer"):
        parse_filters({"year": {"in": [2020, "2021"]}}, FIELDS)


def test_a_field_of_records_that_is_no_filter_is_not_to_be_declared() -> None:
    with pytest.raises(ValueError, match=r"'page_range_start': .* only parsed_directory_file_id and file_name;") as caught:
        parse_filters({"page_range_start": {"lte": 3}}, FIELDS)
    assert "declare it" not in str(caught.value)
    with pytest.raises(ValueError, match=r"'team': declare it in the export's metadata_fields"):
        parse_filters({"team": "x"}, FIELDS)


def test_declared_values_are_null_where_missing() -> None:
    metadata = {"year": 1, "rating": 2, "tags": ["a"], "other": object()}
    assert declared_values(metadata, FIELDS) == {"year": 1, "rating": 2.0, "language": None, "draft": None, "tags": ["a"]}


@pytest.mark.parametrize(
    "metadata", [{"year": "1"}, {"year": 2**63}, {"rating": -(10**400)}, {"tags": "a"}, {"tags": ["a", 1]}, {"draft": 0}]
)
def test_a_file_whose_metadata_does_not_fit_is_refused_by_name(metadata: dict[str, Any]) -> None:
    file = Bench(sink=None).file("dfl-1", metadata=metadata)  # type: ignore[arg-type] # only its builder of files is used
    with pytest.raises(RecordRefused, match=f"dfl-1.*{next(iter(metadata))}.*correct"):
        fields_of_file(file, FIELDS)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (
            {"year": "Zwiebelfisch " * 3000},
            "metadata field 'year' is a string of 39,000 characters, not an integer of up to 64 bits",
        ),
        ({"year": 10**20}, "metadata field 'year' is an integer of 68 bits, not an integer of up to 64 bits"),
        ({"year": 1999.5}, "metadata field 'year' is a float, not an integer of up to 64 bits"),
        ({"rating": 10**5000}, "metadata field 'rating' is an integer of 16,611 bits, not a number in the range of a float"),
        ({"rating": float("nan")}, "metadata field 'rating' is NaN or infinity, not a number in the range of a float"),
        ({"draft": 1999}, "metadata field 'draft' is an integer, not a boolean"),
        ({"language": True}, "metadata field 'language' is a boolean, not a string"),
        ({"language": ["Zwiebelfisch"]}, "metadata field 'language' is a list of 1 element, not a string"),
        ({"tags": "Z"}, "metadata field 'tags' is a string of 1 character, not a list of strings"),
        ({"tags": ["Zwiebelfisch", 1999]}, "an element of metadata field 'tags' is an integer, not a string"),
        ({"tags": ["a", None]}, "an element of metadata field 'tags' is null, not a string"),
        ({"tags": [{"Zwiebelfisch": 1999}]}, "an element of metadata field 'tags' is of the type dict, not a string"),
    ],
)
def test_a_value_that_does_not_fit_is_told_by_its_type_and_size_alone(metadata: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="not a") as refused:
        declared_values(metadata, FIELDS)
    assert str(refused.value) == told
