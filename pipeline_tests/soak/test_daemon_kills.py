"""SIGKILL of anything below ``indexport dev`` at seeded moments; started again on the same home, it sets everything right."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import httpx
import psutil
import pytest

from pipeline.orchestration.launcher import open_instance
from pipeline.orchestration.partitions import UNFINISHED
from pipeline_tests.soak.kills import DAEMON_KILLS, SEED, only_in_the_soak, until_landed
from pipeline_tests.soak.test_kills import assert_in_place
from pipeline_tests.soak.test_service_kills import write
from pipeline_tests.test_daemon import INDEXPORT, Deployment, free_port, until
from pipeline_tests.world import World, home_of, world_over

VICTIMS: dict[str, Callable[[str], bool]] = {
    "daemon": lambda command: "dagster._daemon" in command,
    "code server": lambda command: "code-server start" in command,
    "code": lambda command: "api grpc" in command,
    "run": lambda command: "spawn_main" in command,
    "everything": lambda _command: True,
}
"""Which of its processes are killed, by their command lines."""


@dataclass(frozen=True)
class CloudOfDev:
    """The local cloud that ``indexport dev`` serves."""

    base_url: str
    api_key: str = "local"


class Operated:
    """An ``indexport dev`` that is killed and started again, and the world it works on."""

    def __init__(self, world: World, deployment: Deployment) -> None:
        self.world = world
        self._deployment = deployment

    @contextmanager
    def running(self) -> Iterator[None]:
        """Until the end of the block, where whatever still lives of it is killed."""
        at = httpx.URL(self.world.cloud.base_url)
        ports = ["--port", str(self._deployment.ui), "--cloud-port", str(at.port)]
        command = [*INDEXPORT, "dev", "--documents", str(self.world.documents), *ports]
        with (self.world.root / "dev.log").open("ab") as log:
            process = subprocess.Popen(command, env=self._deployment.environment, stdout=log, stderr=log, start_new_session=True)
        try:
            until(lambda: httpx.get(self.world.cloud.base_url, timeout=5).status_code, "the local cloud")
            yield
        finally:
            until(self._none_is_left, "the death of everything")
            process.wait()

    def _none_is_left(self) -> bool:
        """What is killed may just have started another process."""
        kill(found := self.processes())
        return not found

    def processes(self) -> list[psutil.Process]:
        """Everything that works on this home, however far from its parents it has come."""
        home = str(home_of(self.world.root).root)
        return [process for process in psutil.process_iter() if _environment(process).get("INDEXPORT_HOME") == home]

    def is_working(self) -> bool:
        """Some run is queued or under way."""
        return bool(self.world.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), limit=1))

    def wait_until_all_is_in_place(self) -> None:
        try:
            until(self._is_in_place, "everything to be in its place")
        except pytest.fail.Exception:
            assert_in_place(self.world)  # says what is not

    def _is_in_place(self) -> bool:
        try:
            assert_in_place(self.world)
        except AssertionError:
            return False
        return True


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return {} if process == psutil.Process() else process.environ()
    except psutil.Error:
        return {}


def kill(processes: list[psutil.Process]) -> bool:
    """Nothing gets a chance to say goodbye. Answers whether any of them was still alive."""
    landed = False
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            landed |= process.status() != psutil.STATUS_ZOMBIE
            process.kill()
    psutil.wait_procs(processes, timeout=60)
    return landed


@pytest.fixture
def operated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operated]:
    cloud = CloudOfDev(f"http://127.0.0.1:{(port := free_port())}")
    deployment = Deployment(tmp_path, free_port(), port)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write(tmp_path, 0)
    with world_over(tmp_path, cloud) as world, open_instance(home_of(tmp_path)) as instance:
        yield Operated(World(tmp_path, cloud, instance, world.settings), deployment)


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
            operated.world.export.ledger.update_state(allowed_deletes=100)  # the fuse would soon stop so many in one hour
            operated.world.refresh()
            landed = kill_while_it_works(operated, chance.choice(list(VICTIMS)), chance)
        with operated.running():
            operated.wait_until_all_is_in_place()
        return landed

    until_landed(DAEMON_KILLS, attempt)
