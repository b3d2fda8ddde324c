"""Processes under measurement: wall clock, processor seconds and peak memory of a command with all its children.

What belongs here: starting, sampling and reading back. Everything measured runs in a process of its own, so that neither
the local LlamaCloud nor the benchmark itself shares an interpreter with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

_SAMPLE_SECONDS = 0.05
_MODULE_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished command. ``cpu_seconds`` and ``peak_bytes`` (resident) include its children."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str

    def figures(self) -> dict[str, float]:
        """For the JSON report."""
        values = asdict(self)
        return {name: round(values[name], 3) for name in ("seconds", "cpu_seconds", "peak_bytes")}


def run_measured(command: list[str], environment: Mapping[str, str], *, cwd: Path | None = None) -> Measured:
    """Run a command to its end. Raises SystemExit with what it said when it fails."""
    before = os.times()
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**_inherited(), **environment},
        cwd=cwd or _MODULE_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        peak = _PeakMemory(process.pid)
        output, errors = process.communicate()
    seconds = time.perf_counter() - started
    after = os.times()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed with {process.returncode}:\n{output[-2000:]}\n{errors[-4000:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds, cpu, peak.stop(), output)


def _inherited() -> dict[str, str]:
    """This process's environment, with compiled modules kept as everywhere in use: else every start compiles them again."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class _PeakMemory:
    """Samples the resident memory of a process and its children until it is gone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        try:
            process = psutil.Process(self._pid)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                self._peak = max(self._peak, sum(_resident(each) for each in (process, *process.children(recursive=True))))
                time.sleep(_SAMPLE_SECONDS)
        except psutil.NoSuchProcess:
            return


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def local_cloud(documents: Path, state: Path) -> Iterator[dict[str, str]]:
    """A local LlamaCloud over a folder in a process of its own, its index parsed and ready; answers the environment to use."""
    command = [sys.executable, "-m", "benchmarks.cloud", str(documents), str(state)]
    with subprocess.Popen(
        command, cwd=_MODULE_ROOT, env=_inherited(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the local LlamaCloud did not start")
            yield dict(json.loads(line))
        finally:
            server.stdin.close()
            server.wait()


def run_worker(module: str, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any], Measured]:
    """Run ``python -m module`` with one JSON argument; answers the JSON of its last line, and the measures."""
    measured = run_measured([sys.executable, "-m", module, json.dumps(dict(arguments))], environment)
    return dict(json.loads(measured.output.strip().splitlines()[-1])), measured
