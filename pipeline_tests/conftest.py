"""What holds for every test: hypothesis judges results, never how long a busy machine takes for them."""

from __future__ import annotations

import gc
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx._config
import httpx._transports.default
import llama_cloud._base_client
import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log import InMemoryEventLogStorage
from dagster._core.storage.event_log.schema import AssetKeyTable, SqlEventLogStorageMetadata
from hypothesis import HealthCheck, settings
from sqlalchemy import Connection, Engine

from pipeline.interpreter import look_for_garbage_less
from pipeline.orchestration import launcher
from pipeline.stages.settings import ExportSettings

pytest.register_assert_rewrite("pipeline_tests.world", "pipeline_tests.command_line", "pipeline_tests.conformance.services")

_new_ssl_context = httpx._config.create_ssl_context

# A worker imports a million objects that stay: looking among them for garbage takes a fifteenth of the suite's time.
gc.disable()

settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")


def pytest_collection_finish() -> None:
    """What is imported stays; from here on garbage is looked for, among what the tests make."""
    gc.freeze()
    look_for_garbage_less()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that in the end no worker is left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("takes_long") is None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Where reasons are not asked for (``-rs``), skips are a number: what an engine that is missing leaves untested is said."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = {where[2].removeprefix("Skipped: ") for where in skipped if isinstance(where, tuple)}
    for reason in sorted(reason for reason in reasons if "NOT TESTED" in reason):
        terminalreporter.write_line(reason, yellow=True)


@pytest.fixture(autouse=True)
def _no_test_leaves_its_home_to_the_next() -> Iterator[None]:
    """A command names Dagster's home in the environment of its process."""

    def ours() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith(("DAGSTER_HOME", "INDEXPORT_", "LLAMA_"))}

    before = ours()
    yield
    assert ours() == before, "put the environment back: monkeypatch.setenv, or patch.dict(os.environ)"


@cache
def _ssl_context(_bundle: str | None, **told: Any) -> Any:
    return _new_ssl_context(**told)


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Reading the bundle takes 30 ms, and nearly every test makes a client or ten."""

    def kept(**told: Any) -> Any:
        return _ssl_context(os.environ.get("SSL_CERT_FILE"), **told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx._transports.default, "create_ssl_context", kept)
        yield


@pytest.fixture(scope="session", autouse=True)
def _instances_in_memory_are_cheap() -> Iterator[None]:
    """Nearly every test has one. They are never migrated, and for the mark of it Dagster reads all of its migrations; their one
    connection is held anyway, and Dagster opens and sets up another for every statement; each compiles what all of them ask."""
    memory = "dagster._core.storage.{}.in_memory"

    @contextmanager
    def held(storage: InMemoryEventLogStorage) -> Iterator[Connection]:
        with storage._db_lock, storage._held_conn.begin():
            yield storage._held_conn

    with pytest.MonkeyPatch.context() as patch:
        for storage in ("event_log", "runs"):
            patch.setattr(f"{memory.format(storage)}.stamp_alembic_rev", lambda _config, _connection: None)
            patch.setattr(f"{memory.format(storage)}.create_engine", _SharingEngines())
        patch.setattr(InMemoryEventLogStorage, "_connect", held)
        patch.setattr(InMemoryEventLogStorage, "has_table", lambda _storage, name: name in SqlEventLogStorageMetadata.tables)
        patch.setattr(
            InMemoryEventLogStorage,
            "_has_asset_key_col_on_connection",
            lambda _storage, _connection, name: name in AssetKeyTable.columns,
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def _definitions_are_made_once() -> Iterator[None]:
    """As in a process that carries out run after run."""
    anew = launcher.jobs_of_a_sync
    made = cache(lambda settings_json: anew(ExportSettings.model_validate_json(settings_json)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "jobs_of_a_sync", lambda settings: made(settings.model_dump_json()))
        yield


class _SharingEngines:
    """Makes engines that compile a statement once for all of them."""

    def __init__(self) -> None:
        self._first: Engine | None = None

    def __call__(self, url: str, **told: Any) -> Engine:
        made = sa.create_engine(url, **told)
        if self._first is None:
            self._first = made
        made.dialect, made._compiled_cache = self._first.dialect, self._first._compiled_cache
        return made


@pytest.fixture
def impatient_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaCloud's SDK retries as often as ever, and waits a hundredth of its time in between."""
    for name in ("INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY"):
        monkeypatch.setattr(llama_cloud._base_client, name, getattr(llama_cloud._base_client, name) / 100)


@pytest.fixture
def ignores_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for a path under ``tmp_path`` finds what is there under any case and Unicode form of it, as on macOS."""

    def folded(name: str) -> str:
        return unicodedata.normalize("NFD", name).casefold()

    def found(path: Any) -> Any:
        if not isinstance(path, str | Path) or not Path(path).is_relative_to(tmp_path):
            return path
        here = tmp_path
        for name in Path(path).relative_to(tmp_path).parts:
            try:
                names = os.listdir(here)  # noqa: PTH208 - what Path has asks for what is patched here
            except OSError:
                names = []
            here /= name if name in names else next((entry for entry in names if folded(entry) == folded(name)), name)
        return here

    for asked in ("stat", "lstat"):
        real = getattr(os, asked)
        monkeypatch.setattr(os, asked, lambda path, real=real, **how: real(found(path), **how))
