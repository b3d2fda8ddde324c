"""Figures: what was measured, what it should be, and how both are shown.

What belongs here: no measuring. Ratios are of medians of interleaved rounds of one run, so that a busy machine is busy for
everyone; processor time stands beside wall time because a shared machine disturbs the latter more.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.processes import Measured

_PACKAGES = ("dagster", "fastembed", "lancedb", "onnxruntime", "pyarrow", "tokenizers")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. Without a ``limit`` it is shown for comparison only."""

    name: str
    measured: float
    limit: float | None = None
    at_most: bool = True
    unit: str = ""
    remark: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """``None`` where there is no target."""
        if self.limit is None:
            return None
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    @property
    def target(self) -> str:
        return "" if self.limit is None else f"{'≤' if self.at_most else '≥'} {shown(self.limit)}{self.unit}"


def shown(value: float) -> str:
    """As many digits as matter."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if 0.999 < value < 1 else f"{value:.3g}"


def ratio_figure(
    name: str, ours: Sequence[Measured], theirs: Sequence[Measured], *, limit: float, remark: str, extra: dict[str, Any]
) -> Figure:
    """Median wall time over median wall time, with the processor time's ratio in the remark."""
    wall = statistics.median(m.seconds for m in ours) / statistics.median(m.seconds for m in theirs)
    processor = statistics.median(m.cpu_seconds for m in ours) / statistics.median(m.cpu_seconds for m in theirs)
    seconds = f"{statistics.median(m.seconds for m in ours):.1f} s / {statistics.median(m.seconds for m in theirs):.1f} s"
    return Figure(
        name,
        wall,
        limit,
        remark=f"{seconds}; processor time {processor:.2f}; {remark}",
        details={
            "processor_ratio": processor,
            "ours": [m.figures() for m in ours],
            "theirs": [m.figures() for m in theirs],
            **extra,
        },
    )


def print_table(console: Console, figures: Sequence[Figure]) -> None:
    """The one table."""
    table = Table("what", "target", "measured", "", "how", title="Indexport benchmarks")
    verdicts = {True: "[green]pass[/green]", False: "[red]fail[/red]", None: ""}
    for figure in figures:
        table.add_row(
            figure.name, figure.target, f"{shown(figure.measured)}{figure.unit}", verdicts[figure.passed], figure.remark
        )
    console.print(table)


def write_json(path: Path, figures: Sequence[Figure], *, quick: bool) -> None:
    """Everything measured, with the machine it was measured on."""
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": {"cpus": os.cpu_count(), "load": os.getloadavg(), "python": platform.python_version()},
        "packages": {name: version(name) for name in _PACKAGES},
        "figures": [{**asdict(figure), "passed": figure.passed} for figure in figures],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
