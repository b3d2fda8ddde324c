"""An ``indexport dev`` that is killed and started again, and the world it works on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import httpx
import psutil
import pytest

from pipeline.orchestration.instance import open_instance
from pipeline.orchestration.partitions import UNFINISHED
from pipeline_tests.command_line import INDEXPORT, assert_in_place
from pipeline_tests.ports import free_port
from pipeline_tests.test_daemon import Deployment, until
from pipeline_tests.world import World, home_of, world_over


@dataclass(frozen=True)
class CloudOfDev:
    """The local cloud that ``indexport dev`` serves."""

    base_url: str
    api_key: str = "local"


class Operated:
    """The deployment, whatever of it lives, and its world."""

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


@contextmanager
def operated_world(root: Path) -> Iterator[Operated]:
    """A world under ``root`` whose cloud is the one of an ``indexport dev`` that nobody has started yet."""
    cloud = CloudOfDev(f"http://127.0.0.1:{(port := free_port())}")
    deployment = Deployment(root, free_port(), port)
    with world_over(root, cloud) as world, open_instance(home_of(root)) as instance:
        yield Operated(World(root, cloud, instance, world.settings), deployment)


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
