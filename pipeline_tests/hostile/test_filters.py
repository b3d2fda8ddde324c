"""Filters nobody sane would write, against every store: the files an independent evaluation names, or ValueError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sinks.base import SearchHit, SearchRequest
from pipeline.sinks.records import FileRecords
from pipeline_tests.conformance.harness import FIELDS, HARNESSES, Bench, SinkUnderTest, load_harness, unit_vectors
from pipeline_tests.conformance.test_search import expected_files

HOSTILE = (
    "x' OR '1'='1", "') OR true --", '" OR ""="', "'; DROP TABLE records; --", "\\", "\\'", "''", '"', "%",
    "_", "*", "?", "`", "$where",
    "{$gt: ''}", "${x}", "%s", "%(tenant)s", "a|b", "|", "a,b", " padded ", "\t", "\u202e", "\u200b", "é",
    "e\u0301", "😀", "null", "true",
    "1", "tenant_id", "x' or tenant_id ne 'y", "search.in(tags, 'a')", "/*", "--", "#", "\x1b", "\x7f",
    "a\nb", "(", ")", "[]", "{}",
)  # fmt: skip
TEXTS = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
LARGE = (
    2**53 - 1, 2**53 + 1, -(2**53) - 1, 2**53 + 3, 2**54 + 2, -(2**54) - 6, 2**63 - 1, 2**63, 10**22 + 1, 10**30,
)  # fmt: skip
"""Integers, most of which are no floats: a float field has them as the nearest one, and the even one of two."""

NUMBERS: dict[str, st.SearchStrategy[Any]] = {
    "year": st.sampled_from([0, -1, 2021, 2**53, -(2**53)]) | st.integers(-(2**53), 2**53),
    "rating": st.sampled_from([0.0, -0.0, 0.5, 1e-7, 1e300, -4.5])
    | st.floats(-1e300, 1e300, allow_subnormal=False)
    | st.tuples(st.sampled_from(LARGE), st.integers(-3, 3)).map(sum),
}


def _conditions(values: st.SearchStrategy[Any], *operators: str) -> st.SearchStrategy[Any]:
    single = st.tuples(st.sampled_from(["eq", "ne", *operators]), values)
    several = st.tuples(st.sampled_from(["in", "nin"]), st.lists(values, min_size=1, max_size=4))
    return (single | several).map(lambda pair: {pair[0]: pair[1]})


SANE_FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "language": _conditions(TEXTS),
        "tags": _conditions(TEXTS),
        "file_name": _conditions(TEXTS),
        "parsed_directory_file_id": _conditions(TEXTS),
        "draft": _conditions(st.booleans()),
        **{key: _conditions(values, "gt", "gte", "lt", "lte") for key, values in NUMBERS.items()},
    },
)
JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
ANY_FILTERS = st.dictionaries(
    st.sampled_from([*FIELDS, "tenant_id", "year` IS NULL OR true --", "metadata", "$where", "$or", "a.b", "language'"])
    | st.text(),
    JUNK | st.dictionaries(st.sampled_from(["eq", "$ne", "in", "gt", "$where", "regex", "eq OR 1=1"]), JUNK, max_size=2),
    min_size=1,
    max_size=2,
)


@pytest.fixture(scope="module", params=sorted(HARNESSES))
def sink(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkUnderTest]:
    with load_harness(request.param)(tmp_path_factory.mktemp(request.param)) as under_test:
        yield under_test


class Filled(NamedTuple):
    """A sink and the files it was given."""

    bench: Bench
    files: list[FileRecords]

    async def search(self, filters: Any) -> list[SearchHit]:
        return await self.bench.search(SearchRequest(self.bench.config, vector=unit_vectors("q", 1)[0], k=200, filters=filters))

    def stays_inside_its_scope(self, hits: list[SearchHit]) -> bool:
        return {(hit.record.tenant_id, hit.record.export_config_id) for hit in hits} <= {(self.bench.tenant, self.bench.config)}


@pytest.fixture
async def filled(sink: SinkUnderTest) -> AsyncIterator[Filled]:
    """Every hostile text once as a language, a tag and a name; and a foreign tenant and config that hold the same."""
    made = Bench(sink)
    await made.open().provision()
    await made.replace(*(files := _files(made)))
    stranger = Bench(sink, config=made.config)
    await stranger.open().provision()
    await stranger.replace(*_files(stranger))
    await made.replace(*(made.file(f"foreign-{n}", 1, config="another", metadata={"language": t}) for n, t in enumerate(HOSTILE)))
    yield Filled(made, files)
    for exporter in (*made.opened, *stranger.opened):
        await exporter.close()


def _files(bench: Bench) -> list[FileRecords]:
    usual = [{"year": 2021, "rating": 0.5}, {"year": -1, "rating": -4.5}, {"year": 2**53, "rating": 1e-7}, {}]
    numbers: list[dict[str, Any]] = [*usual * 5, *({"rating": large} for large in LARGE)]
    return [
        bench.file(
            f"dfl-{n}",
            1,
            name=HOSTILE[-1 - n],
            metadata={"language": text, "tags": [text, HOSTILE[n - 1]], "draft": n % 3 == 0, **numbers[n % len(numbers)]},
        )
        for n, text in enumerate(HOSTILE)
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(filters=SANE_FILTERS)
async def test_a_filter_selects_what_it_says_and_nothing_else(filled: Filled, filters: dict[str, Any]) -> None:
    hits = await filled.search(filters)
    found = [hit.record.parsed_directory_file_id for hit in hits]
    assert len(found) == len(set(found))
    assert set(found) == expected_files(filled.files, filters)
    assert filled.stays_inside_its_scope(hits)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(filters=ANY_FILTERS)
async def test_a_filter_of_any_shape_is_refused_or_stays_inside_its_scope(filled: Filled, filters: dict[str, Any]) -> None:
    try:
        hits = await filled.search(filters)
    except ValueError:
        return
    assert filled.stays_inside_its_scope(hits)
    assert filters.keys() <= {*FIELDS, "file_name", "parsed_directory_file_id"}
