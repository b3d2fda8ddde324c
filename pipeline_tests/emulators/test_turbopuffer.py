"""The emulator answers the vendor's SDK as the vendor documents it: types, limits, atomic writes, order, errors, paging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import turbopuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_tests.emulators.turbopuffer import TurbopufferEmulator
from pipeline_tests.emulators.turbopuffer_query import compile_filter
from pipeline_tests.emulators.turbopuffer_schema import Attribute

METRIC: Any = "cosine_distance"


@pytest.fixture(scope="module")
def running() -> Iterator[TurbopufferEmulator]:
    with TurbopufferEmulator() as emulator:
        yield emulator


@pytest.fixture
def client(running: TurbopufferEmulator) -> turbopuffer.Turbopuffer:
    running.reset()
    return turbopuffer.Turbopuffer(api_key=running.api_key, base_url=running.url, max_retries=0)


@pytest.fixture
def namespace(client: turbopuffer.Turbopuffer) -> Any:
    """Three documents; the third has neither a year nor tags."""
    made = client.namespace("docs")
    made.write(
        upsert_rows=untyped(
            {"id": 1, "vector": [1.0, 0.0], "year": 2020, "tags": ["a", "b"], "text": "river gauge"},
            {"id": 2, "vector": [0.0, 1.0], "year": 2021, "tags": [], "text": "river"},
            {"id": 3, "vector": [-1.0, 0.0], "text": "weir"},
        ),
        schema={"text": {"type": "string", "full_text_search": True}},
        distance_metric=METRIC,
    )
    return made


def untyped(*documents: dict[str, Any]) -> list[Any]:
    """The SDK types a row as a TypedDict with extra items, which mypy does not know."""
    return list(documents)


def ids(namespace: Any, **query: Any) -> list[Any]:
    return [row.id for row in namespace.query(**{"rank_by": ("id", "asc"), "limit": 10, **query}).rows]


def test_types_are_inferred_and_told(namespace: Any) -> None:
    schema = namespace.schema()
    assert {name: schema[name].type for name in schema} == {
        "id": "uint",
        "vector": "[2]f32",
        "year": "int",
        "tags": "[]string",
        "text": "string",
    }
    assert namespace.metadata().approx_row_count == 3
    assert schema["text"].filterable is False


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (("year", "Eq", 2020), [1]),
        (("year", "NotEq", 2020), [2, 3]),
        (("year", "Eq", None), [3]),
        (("year", "NotEq", None), [1, 2]),
        (("year", "Lt", 2021), [1, 3]),
        (("year", "Gt", 2020), [2]),
        (("year", "NotIn", [2020, 2021]), [3]),
        (("tags", "Contains", "a"), [1]),
        (("tags", "NotContains", "a"), [2, 3]),
        (("tags", "ContainsAny", ["b", "c"]), [1]),
        (("Not", ("And", [("id", "Gte", 2), ("year", "Eq", None)])), [1, 2]),
        (("Or", [("id", "In", [3, 9]), ("year", "Lte", 2020)]), [1, 3]),
    ],
)
def test_filters_treat_null_as_documented(namespace: Any, filters: Any, found: list[int]) -> None:
    assert ids(namespace, filters=filters) == found


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["Eq", "In"]),
    st.lists(st.integers(-2, 2), min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(-3, 3)),
)
def test_a_negated_operator_is_the_inverse_of_its_own(operator: str, values: list[int], held: int | None) -> None:
    schema = {"n": Attribute("int", filterable=True)}
    operand: Any = values if operator == "In" else values[0]
    plain = compile_filter(schema, ["n", operator, operand])
    for negated in (["n", f"Not{operator}", operand], ["Not", ["n", operator, operand]]):
        assert compile_filter(schema, negated)({"n": held}) is not plain({"n": held})


def test_vectors_rank_by_cosine_and_text_by_bm25(namespace: Any, client: turbopuffer.Turbopuffer) -> None:
    rows = namespace.query(rank_by=("vector", "ANN", [2.0, 0.0]), limit=10).rows
    assert [(row.id, round(row["$dist"], 6)) for row in rows] == [(1, 0.0), (2, 1.0), (3, 2.0)]
    texts = [
        "turbopuffer is a fast search engine with FTS, filtering, and vector search support",
        "turbopuffer can store billions and billions of documents cheaper than any other search engine",
        "turbopuffer will support many more types of queries as it evolves. turbopuffer will only get faster.",
    ]
    guide = client.namespace("guide")
    guide.write(
        upsert_rows=untyped(*({"id": number, "content": text} for number, text in enumerate(texts, start=1))),
        schema={"content": {"type": "string", "full_text_search": True}},
    )
    assert ids(guide, rank_by=("content", "BM25", "turbopuffer")) == [3, 1, 2], "the order the vendor's guide shows"
    assert ids(guide, rank_by=("content", "BM25", "absent")) == []


def test_a_filter_deletes_before_anything_else_is_written(namespace: Any) -> None:
    answer = namespace.write(
        delete_by_filter=("id", "Lte", 2),
        upsert_rows=[{"id": 2, "vector": [1.0, 1.0], "year": 2030}],
        patch_rows=[{"id": 1, "year": 1}, {"id": 3, "year": 3}],
        distance_metric=METRIC,
    )
    assert (answer.rows_deleted, answer.rows_upserted, answer.rows_patched, answer.rows_remaining) == (2, 1, 1, False)
    rows = namespace.query(rank_by=("id", "asc"), limit=10, include_attributes=["year"]).rows
    assert [(row.id, row.year) for row in rows] == [(2, 2030), (3, 3)]


def test_a_filter_deletes_so_many_at_once(namespace: Any, running: TurbopufferEmulator) -> None:
    running.engine.max_filter_deletes = 2
    with pytest.raises(turbopuffer.BadRequestError, match="more than 2"):
        namespace.write(delete_by_filter=("id", "Gt", 0))
    assert namespace.write(delete_by_filter=("id", "Gt", 0), delete_by_filter_allow_partial=True).rows_remaining is True
    assert namespace.write(delete_by_filter=("id", "Gt", 0), delete_by_filter_allow_partial=True).rows_remaining is False
    assert ids(namespace) == []


def test_a_conditional_patch_leaves_what_fails_its_condition(namespace: Any) -> None:
    newer = ("year", "Lt", {"$ref_new": "year"})
    answer = namespace.write(
        patch_rows=[{"id": 1, "year": 2019}, {"id": 2, "year": 2022}, {"id": 9, "year": 1}], patch_condition=newer
    )
    assert answer.rows_patched == 1
    assert ids(namespace, filters=("year", "In", [2020, 2022])) == [1, 2]


ROW = {"id": 4, "vector": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"upsert_rows": [{**ROW, "year": "2020"}]}, "'year' has type int"),
        ({"upsert_rows": [{**ROW, "vector": [1.0]}]}, "needs 2 finite numbers"),
        ({"upsert_rows": [{"id": 4}]}, "lacks a vector"),
        ({"upsert_rows": [ROW, ROW]}, "more than once"),
        ({"upsert_rows": [ROW], "deletes": [4]}, "more than once"),
        ({"upsert_rows": [{**ROW, "id": "text"}]}, "invalid id"),
        ({"upsert_rows": [{**ROW, "tags": ["x" * 4097]}]}, "larger than 4096"),
        ({"upsert_rows": [{**ROW, "text": "x" * (8 * 2**20 + 1)}]}, "larger than 8388608"),
        ({"upsert_rows": [ROW], "schema": {"year": "string"}}, "cannot change it"),
        ({"upsert_rows": [ROW], "schema": {"other": {"type": "[2]f32", "ann": True}}}, "cannot add vector"),
        ({"upsert_rows": [ROW], "schema": {"n" * 129: "int"}}, "invalid attribute name"),
        ({"upsert_rows": [ROW], "schema": {f"a{n}": "int" for n in range(1020)}}, "more than 1024"),
        ({"upsert_rows": [ROW], "distance_metric": "euclidean_squared"}, "cannot change"),
        ({"delete_by_filter": ("unknown", "Eq", 1)}, "does not exist"),
        ({"delete_by_filter": ("text", "Eq", "weir")}, "not filterable"),
        ({"patch_rows": [{"id": 1, "vector": [1.0, 1.0]}]}, "cannot be patched"),
        ({"upsert_columns": {"id": [4, 5], "vector": [[1.0, 1.0]]}}, "same length"),
    ],
)
def test_a_write_that_is_refused_changes_nothing(namespace: Any, body: dict[str, Any], told: str) -> None:
    before = namespace.query(rank_by=("id", "asc"), limit=10, include_attributes=True).rows
    schema = namespace.schema()
    with pytest.raises(turbopuffer.BadRequestError, match=told):
        namespace.write(**{"delete_by_filter": ("id", "Eq", 1), "distance_metric": METRIC, **body})
    assert namespace.query(rank_by=("id", "asc"), limit=10, include_attributes=True).rows == before
    assert namespace.schema() == schema


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"filters": ("year", "Eq", "2020")}, "'year' has type int"),
        ({"filters": ("text", "Eq", "weir")}, "not filterable"),
        ({"filters": ("unknown", "Eq", 1)}, "does not exist"),
        ({"filters": ("tags", "Eq", "a")}, "does not apply"),
        ({"rank_by": ("vector", "ANN", [1.0])}, "2 dimensions"),
        ({"rank_by": ("year", "BM25", "x")}, "no full-text index"),
        ({"rank_by": ("text", "BM25", "x" * 1025)}, "at most 1024"),
        ({"include_attributes": ["unknown"]}, "does not exist"),
        ({"limit": 10_001}, "between 1 and 10000"),
    ],
)
def test_a_query_that_is_refused_says_why(namespace: Any, query: dict[str, Any], told: str) -> None:
    with pytest.raises(turbopuffer.BadRequestError, match=told):
        ids(namespace, **query)


def test_several_queries_are_answered_together(namespace: Any) -> None:
    nearest = {"rank_by": ("vector", "ANN", [0.0, 1.0]), "limit": 1}
    answer = namespace.multi_query(queries=[nearest, {"aggregate_by": {"all": ("Count",)}}])
    assert [row.id for row in answer.results[0].rows] == [2]
    assert answer.results[1].aggregations == {"all": 3}
    with pytest.raises(turbopuffer.BadRequestError, match="between 1 and 16"):
        namespace.multi_query(queries=[nearest] * 17)


def test_groups_are_counted_in_the_order_of_their_keys(namespace: Any) -> None:
    query = {"aggregate_by": {"n": ("Count",)}, "group_by": ["year"], "filters": ("year", "NotEq", None), "limit": 1}
    assert namespace.query(**query).aggregation_groups == [{"year": 2020, "n": 1}]


def test_namespaces_are_made_listed_page_by_page_and_deleted(client: turbopuffer.Turbopuffer) -> None:
    for number in range(5):
        client.namespace(f"ns-{number}").write(create_namespace=True, schema={"id": "uuid"})
    assert [item.id for item in client.namespaces(prefix="ns-", page_size=2)] == [f"ns-{number}" for number in range(5)]
    client.namespace("ns-0").delete_all()
    assert not client.namespace("ns-0").exists()
    for call in (client.namespace("ns-0").metadata, lambda: ids(client.namespace("ns-0")), client.namespace("ns-0").delete_all):
        with pytest.raises(turbopuffer.NotFoundError):
            call()
    with pytest.raises(turbopuffer.BadRequestError, match="id type"):
        client.namespace("ns-9").write(create_namespace=True)
    with pytest.raises(turbopuffer.BadRequestError, match="invalid namespace name"):
        client.namespace("n" * 129).write(upsert_rows=[{"id": 1}])
    with pytest.raises(turbopuffer.BadRequestError, match="invalid id"):
        client.namespace("ns-8").write(upsert_rows=[{"id": "x" * 65}])


def test_keys_sizes_and_compression(client: turbopuffer.Turbopuffer, running: TurbopufferEmulator) -> None:
    with pytest.raises(turbopuffer.AuthenticationError):
        client.with_options(api_key="other").namespace("n").schema()
    zipped = client.with_options(compression=True).namespace("n")
    assert zipped.write(upsert_rows=untyped({"id": 1, "text": "x" * 4000})).rows_upserted == 1
    running.max_request_bytes = 1000
    with pytest.raises(turbopuffer.APIStatusError, match="larger than 1000") as caught:
        client.namespace("n").write(upsert_rows=untyped({"id": 2, "text": "x" * 4000}))
    assert caught.value.status_code == 413
    running.max_request_bytes = 512_000_000


def test_throttling_is_told_with_the_time_to_wait(client: turbopuffer.Turbopuffer, running: TurbopufferEmulator) -> None:
    running.fail("write", 429, retry_after="0.01")
    with pytest.raises(turbopuffer.RateLimitError) as caught:
        client.namespace("n").write(upsert_rows=[{"id": 1}])
    assert caught.value.response.headers["Retry-After"] == "0.01"
    running.fail("write", 503, retry_after="0.01")
    assert client.with_options(max_retries=2).namespace("n").write(upsert_rows=[{"id": 1}]).rows_upserted == 1
