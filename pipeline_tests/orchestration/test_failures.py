"""Why a run failed, as the command line tells it: the cause by its type, foreign text never."""

from __future__ import annotations

import time

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster_postgres.utils import DagsterPostgresException, retry_pg_connection_fn

from pipeline.errors import SinkUnavailable
from pipeline.orchestration.launcher import failures


def told(error: Exception) -> list[str]:
    @dg.op
    def breaks() -> None:
        try:
            raise KeyError("canary01")
        except KeyError as cause:
            raise error from error.__cause__ or cause

    @dg.job
    def breaking() -> None:
        breaks()

    return failures(breaking.execute_in_process(raise_on_error=False))


def test_an_unexpected_error_is_told_by_the_type_of_its_cause_and_its_place_alone() -> None:
    (line,) = told(RuntimeError("canary02"))
    assert line.startswith("breaks: KeyError in ")
    assert f"{__file__}:20" in line
    assert "canary" not in line


@pytest.mark.parametrize("error", [SinkUnavailable("qdrant does not answer"), dg.Failure("qdrant does not answer")])
def test_an_error_of_our_own_is_told_in_its_words(error: Exception) -> None:
    assert told(error) == ["qdrant does not answer"]


def test_a_storage_of_dagsters_that_goes_away_in_a_run_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    engine = sa.create_engine("postgresql+psycopg2://user:canary@127.0.0.1:9/dagster")
    with pytest.raises(DagsterPostgresException) as gone:
        retry_pg_connection_fn(engine.connect)
    (line,) = told(gone.value)
    assert line == "breaks: the storage of the Dagster instance went away; check that it runs, then sync again"
