"""SIGKILL of anything below ``indexport dev`` at seeded moments; started again on the same home, it sets everything right."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline_tests.soak.kills import DAEMON_KILLS, SEED, only_in_the_soak, until_landed
from pipeline_tests.soak.operated import Operated, kill, operated_world
from pipeline_tests.soak.test_service_kills import write
from pipeline_tests.test_daemon import until

VICTIMS: dict[str, Callable[[str], bool]] = {
    "daemon": lambda command: "dagster._daemon" in command,
    "code server": lambda command: "code-server start" in command,
    "code": lambda command: "api grpc" in command,
    "run": lambda command: "spawn_main" in command,
    "everything": lambda _command: True,
}
"""Which of its processes are killed, by their command lines."""


@pytest.fixture
def operated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operated]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write(tmp_path, 0)
    with operated_world(tmp_path) as operated:
        yield operated


def kill_while_it_works(operated: Operated, victim: str, chance: random.Random) -> bool:
    """At some moment of the sensor's work on the folder; what is left of it may notice, or dies too. Answers whether there
    was still work to do and a victim to kill."""
    until(operated.is_working, "the sensor's runs")
    time.sleep(chance.uniform(0.0, 4.0))
    working = operated.is_working()
    landed = kill([one for one in operated.processes() if VICTIMS[victim](_command(one))])
    time.sleep(chance.choice([0.0, chance.uniform(0.0, 10.0)]) if victim != "everything" else 0.0)
    return working and landed


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.takes_long
def test_after_the_death_of_a_whole_deployment_a_restart_sets_everything_right(operated: Operated) -> None:
    with operated.running():
        assert kill_while_it_works(operated, "everything", random.Random(SEED))
    with operated.running():
        operated.wait_until_all_is_in_place()


@only_in_the_soak
def test_whatever_dies_of_a_deployment_a_restart_sets_everything_right(operated: Operated) -> None:
    chance = random.Random(SEED)

    def attempt(version: int) -> bool:
        with operated.running():
            write(operated.world.root, version)
            operated.world.refresh()
            landed = kill_while_it_works(operated, chance.choice(list(VICTIMS)), chance)
        with operated.running():
            operated.world.export.ledger.update_state(allowed_deletes=100)  # the fuse would soon stop so many in one hour
            operated.wait_until_all_is_in_place()
        return landed

    until_landed(DAEMON_KILLS, attempt)
