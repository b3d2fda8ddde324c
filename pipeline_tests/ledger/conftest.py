"""A ledger on every database it supports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.ledger import Ledger
from pipeline_tests.ledger.clock import Clock
from pipeline_tests.postgres import fresh_database, postgres


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.fixture(params=["sqlite", "postgresql+psycopg2", "postgresql+psycopg"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'ledger.sqlite'}"
    return fresh_database(request.getfixturevalue("server")).replace("postgresql://", f"{request.param}://")


@pytest.fixture
def ledger(url: str, clock: Clock) -> Iterator[Ledger]:
    opened = Ledger(url, "default", clock=clock)
    yield opened
    opened.close()
