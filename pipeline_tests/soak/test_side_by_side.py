"""Random commands side by side on one home, some of them killed, while the folder changes under them.

Once they are done, a few looks set everything right: on SQLite, on PostgreSQL with four sinks, and beside a whole
``indexport dev``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import pytest

from benchmarks.orchestration import use_postgres
from pipeline_tests.command_line import INDEXPORT, SYNC, assert_in_place
from pipeline_tests.emulators.qdrant import QdrantEmulator
from pipeline_tests.postgres import fresh_database, postgres, sqlalchemy_url
from pipeline_tests.soak import crowd_cli
from pipeline_tests.soak.kills import SECONDS, SEED, only_in_the_soak_of_seconds
from pipeline_tests.soak.operated import operated_world
from pipeline_tests.world import World, home_of, open_world

FILES = 14
SECONDS_TO_SETTLE = 240
"""Of looks: a file that failed in the crowd waits its minute, a sink half of one, and each may do so twice."""
SECONDS_EACH = SECONDS / 4
"""For each of the three homes."""
KILLED = -9
OTHERS: list[list[str]] = [
    ["verify"],
    ["verify", "--deep"],
    ["repair"],
    ["rebuild", "ledger"],
    ["rebuild", "lake"],
    ["erase", "doc-3.md"],
    ["erase", "doc-8.md"],
    ["plan", "--json"],
    ["removals"],
    ["prune", "--older-than-days", "0"],
]
OF_A_SINK: list[list[str]] = [
    ["rebuild", "sink"],
    ["repair", "--sink"],
    ["records", "--json", "--sink"],
    ["search", "gauge reads", "--json", "--sink"],
]

pytestmark = only_in_the_soak_of_seconds


class Crowd:
    """Who works on one home at the same time, and what came of each command."""

    def __init__(self, world: World, command: list[str] = INDEXPORT, sinks: Sequence[str] = ("lancedb",)) -> None:
        self._world = world
        self._command = command
        self._sinks = sinks
        self._others = OTHERS + [[*question, sink] for question in OF_A_SINK for sink in sinks]
        self._lock = Lock()
        self._version = 0
        self._endings: Counter[tuple[str, int]] = Counter()
        chance = random.Random(SEED)
        for _ in range(2 * FILES):
            self.edit(chance)

    def edit(self, chance: random.Random) -> None:
        """Another version of some file, or none of it; every other file shares a paragraph with its like."""
        with self._lock:
            self._version += 1
            number, version = chance.randrange(FILES), self._version
            name = f"doc-{number}.md"
            if (self._world.documents / name).exists() and chance.random() < 0.25:
                self._world.remove(name)
                return
            parts = [f"## Part {n}\n\n" + f"Gauge {number} reads {7 * version + n} metres. " * 24 for n in range(1 + version % 4)]
            shared = ["A paragraph that many files hold."] * (number % 2)
            self._world.write(name, "\n\n".join([f"# Document {number}", *parts, *shared, ""]))

    def _run(self, command: list[str], *, until_killed: float | None = None) -> tuple[int, str]:
        """Exit code and output. The code is 0, 1, 2 (nothing to work on) or of a kill ``until_killed`` seconds after the start;
        fails on any other and on a traceback."""
        process = subprocess.Popen([*self._command, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            told, errors = process.communicate(timeout=until_killed)
        except subprocess.TimeoutExpired:
            process.kill()
            told, errors = process.communicate()
        code = process.returncode
        with self._lock:
            self._endings[command[0], code] += 1
        assert code in (0, 1, 2) or (until_killed and code == KILLED), (command, code, told, errors)
        assert "Traceback" not in told + errors, (command, told, errors)
        return code, told

    def sync_and_edit(self, chance: random.Random) -> None:
        self.edit(chance)
        self.edit(chance)
        self._run(SYNC)

    def sync_to_be_killed(self, chance: random.Random) -> None:
        self.edit(chance)
        self._run(["sync", "--json"], until_killed=chance.choice([600.0, chance.uniform(2.0, 20.0)]))

    def run_another(self, chance: random.Random) -> None:
        self._run(chance.choice(self._others), until_killed=chance.choice([600.0, 600.0, chance.uniform(2.0, 20.0)]))

    def work_together(self, seconds: float) -> Crowd:
        """All of them, each with a seed of its own, until time is up."""
        deadline = time.monotonic() + seconds
        actors = [self.sync_and_edit, self.sync_to_be_killed, self.run_another]
        with ThreadPoolExecutor(len(actors)) as threads:

            def act(number: int) -> None:
                chance = random.Random(f"{SEED}-{number}")
                while time.monotonic() < deadline:
                    actors[number](chance)

            list(threads.map(act, range(len(actors))))
        print(dict(self._endings), file=sys.stderr)
        return self

    def settle(self) -> None:
        """A few looks and all is proved, without what was erased; what was erased is then let back."""
        self._look_until_done()
        self._run_well("verify", "--deep")
        erased = self._world.export.ledger.register.tombstones()
        for sink in self._sinks:
            held = {json.loads(line)["parsed_directory_file_id"] for line in self._run_well("records", "--json", "--sink", sink)}
            assert held
            assert held.isdisjoint(erased)
        if erased:
            self._run_well("release", *erased)
        self._look_until_done()

    def _look_until_done(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_SETTLE
        while (answer := self._run(SYNC))[0] != 0:
            if time.monotonic() > deadline:
                pytest.fail(f"work is left after {SECONDS_TO_SETTLE} s of looks: {answer[1]}")

    def _run_well(self, *command: str) -> list[str]:
        """The lines of its output."""
        code, told = self._run(list(command))
        assert code == 0, (command, told)
        return told.splitlines()


def test_commands_side_by_side_leave_everything_in_place(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        Crowd(world).work_together(SECONDS_EACH).settle()
        assert_in_place(world)


def test_commands_side_by_side_on_postgres_leave_every_sink_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres() as server, QdrantEmulator() as qdrant, open_world(tmp_path) as world:
        shared = sqlalchemy_url(fresh_database(server))
        use_postgres(home_of(tmp_path).root)
        for name, value in {
            "DAGSTER_PG_URL": shared,
            "INDEXPORT_LEDGER_URL": shared,
            "INDEXPORT_PGVECTOR_DSN": fresh_database(server),
            "QDRANT_URL": qdrant.url,
            "QDRANT_API_KEY": qdrant.api_key,
        }.items():
            monkeypatch.setenv(name, value)
        Crowd(world, [sys.executable, "-m", crowd_cli.__name__], crowd_cli.SINKS).work_together(SECONDS_EACH).settle()
        assert_in_place(world, crowd_cli.exports)


def test_commands_beside_a_deployment_leave_everything_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "documents").mkdir()
    with operated_world(tmp_path) as operated:
        crowd = Crowd(operated.world)
        with operated.running():
            crowd.work_together(SECONDS_EACH).settle()
            operated.wait_until_all_is_in_place()
