"""SIGKILL of real processes at seeded random points; whatever dies, running again ends with everything in its place."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline_tests.command_line import INDEXPORT, SYNC, assert_in_place, invoke
from pipeline_tests.soak.kills import CLOUD_KILLS, DAEMON_KILLS, KILLS, SEED, UsualTime, only_in_the_soak, until_landed
from pipeline_tests.world import World, open_world

FILES = 6
MOST_WRITES = 60
"""About as many writes as a sync of the edits below makes: a few kills come too late, as in life."""


class Victim:
    """A folder behind a local cloud and the ``indexport sync`` that is killed while it exports it."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.usual = UsualTime(0.0)
        self.edits = 0

    def edit(self) -> None:
        """Change some files, grow or shrink one, remove one, add one."""
        for number in range(FILES):
            name = f"doc-{number}.md"
            path = self.world.documents / name
            if not path.exists() or self.random.random() < 0.4:
                parts = self.random.randrange(1, 4)
                self.edits += 1
                body = "\n\n".join(f"## Part {n}\n\nGauge {number} reads {self.edits}. " * 8 for n in range(parts))
                self.world.write(name, f"# Document {number}\n\n{body}\n")
        self.world.remove(f"doc-{self.random.randrange(FILES)}.md")

    def killed_at_a_moment(self) -> int:
        """Kill ``indexport sync`` somewhere in its usual time; its exit code."""
        process = subprocess.Popen([*INDEXPORT, *SYNC], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if not self.usual.has_ended(process, self.random.uniform(0.2, 1.0)):
            process.kill()
        return process.wait()

    def killed_at_a_write(self) -> int:
        """Let ``indexport sync`` kill itself at one of its writes; its exit code."""
        after = str(self.random.randrange(1, MOST_WRITES))
        command = [sys.executable, "-m", "pipeline_tests.soak.mortal_cli", after, *SYNC]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode

    def run_undisturbed(self) -> None:
        """In a process of its own, to learn how long that takes."""
        started = time.monotonic()
        subprocess.run([*INDEXPORT, *SYNC], stdout=subprocess.DEVNULL, check=True)
        self.usual = UsualTime(time.monotonic() - started)
        assert_in_place(self.world)

    def run_again(self) -> None:
        invoke(*SYNC)
        assert_in_place(self.world)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    with open_world(tmp_path) as world:
        victim = Victim(world, SEED)
        victim.edit()
        victim.run_undisturbed()
        yield victim


def kill_and_run_again(victim: Victim, kills: int) -> None:
    """Kills at writes and at moments in turns, each made good at once."""

    def attempt(number: int) -> bool:
        victim.edit()
        code = victim.killed_at_a_write() if number % 2 else victim.killed_at_a_moment()
        assert code in (0, -signal.SIGKILL), code
        victim.run_again()
        return code == -signal.SIGKILL

    until_landed(kills, attempt)


@pytest.mark.takes_long
def test_a_killed_sync_is_made_good_by_the_next_one(victim: Victim) -> None:
    kill_and_run_again(victim, 2)


@only_in_the_soak
def test_many_killed_syncs_are_made_good_each_by_the_next_one(victim: Victim) -> None:
    kill_and_run_again(victim, KILLS - DAEMON_KILLS - CLOUD_KILLS)
