"""``python -m benchmarks [--sink NAME] [--json PATH] [--quick]``: one table, one JSON file.

Without ``--sink`` the targets are measured: a cold sync beside fastembed and LlamaIndex, the orchestration alone, edits,
memory. With it, one sink beside its vendor's own client. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks import edits, end_to_end, orchestration
from benchmarks.figures import Figure, print_table, write_json

RESULTS = Path(__file__).parent / "results"
_ROUNDS = 3


def measure_targets(work: Path, *, quick: bool, rounds: int, say: Console) -> list[Figure]:
    """Every target, the quickest first."""
    found: list[Figure] = []
    say.print("chunks embedded after one edit")
    found += edits.edits(work / "edits", quick=quick)
    say.print("orchestration alone: constant vectors, PostgreSQL and SQLite in turns")
    found += orchestration.throughput(work / "throughput", rounds=rounds, quick=quick)
    say.print("memory of a large sync")
    found += orchestration.memory(work / "memory", quick=quick)
    say.print("cold sync, fastembed alone and LlamaIndex in turns")
    found += end_to_end.figures(work / "cold", rounds=rounds, quick=quick)
    return found


def measure_sink(name: str, path: Path | None, *, quick: bool) -> int:
    """Run ``benchmarks.sink`` for one sink: its table, or its JSON into a file; answers the exit code."""
    command = [sys.executable, "-m", "benchmarks.sink", name, *(["--records", "2000"] if quick else [])]
    if path is None:
        return subprocess.run(command, check=False).returncode
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        return subprocess.run([*command, "--json"], stdout=file, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Indexport beside what it competes with.")
    parser.add_argument("--sink", help="measure this sink beside its vendor's own client instead of the targets")
    parser.add_argument("--json", type=Path, help="where the figures go; default: benchmarks/results/<time>.json")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: a smoke test, not a measurement")
    parser.add_argument("--rounds", type=int, help=f"interleaved repeats; default {_ROUNDS}")
    options = parser.parse_args()
    if options.sink:
        sys.exit(measure_sink(options.sink, options.json, quick=options.quick))
    console, say = Console(), Console(stderr=True)
    rounds = options.rounds or (1 if options.quick else _ROUNDS)
    with tempfile.TemporaryDirectory(prefix="indexport-bench-") as work:
        found = measure_targets(Path(work), quick=options.quick, rounds=rounds, say=say)
    print_table(console, found)
    path = options.json or RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    write_json(path, found, quick=options.quick)
    say.print(f"written to {path}")
    if not options.quick and any(figure.passed is False for figure in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
