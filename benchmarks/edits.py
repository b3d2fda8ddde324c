"""How many chunks one edited paragraph costs, measured through the real sync.

Files of about 100 chunks, with headings and without. In every file one paragraph, chosen at random, is replaced by another
of another length; one sync later the embedder has said which texts it was asked for.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

from benchmarks.corpus import made_paragraph
from benchmarks.figures import Figure
from benchmarks.processes import local_cloud, run_worker

_PARAGRAPHS = 280
"""About 100 chunks of the default size."""
_PARAGRAPHS_A_SECTION = 6
_SHORTEST, _LONGEST = 20, 110
_LIMITS = {"headings": 3.0, "plain": 6.0}


def edits(work: Path, *, quick: bool) -> list[Figure]:
    """The median number of chunks embedded after one edit in a file, with headings and without."""
    documents, changes = work / "documents", work / "changes"
    for folder in (documents, changes):
        folder.mkdir(parents=True)
    for number in range(2 if quick else 20):
        for kind in _LIMITS:
            before, after = edited(random.Random(f"{kind}{number}"), headings=kind == "headings")
            (documents / f"{kind}-{number:02}.md").write_text(before, encoding="utf-8")
            (changes / f"{kind}-{number:02}.md").write_text(after, encoding="utf-8")
    home = {"INDEXPORT_HOME": str(work / "home"), "DAGSTER_HOME": str(work / "home" / "dagster")}
    with local_cloud(documents, work / "cloud") as environment:
        arguments = {"documents": str(documents), "changes": str(changes)}
        told, _ = run_worker("benchmarks.edit_worker", arguments, {**environment, **home})
    return [
        _figure(kind, limit, {name: of for name, of in told.items() if name.startswith(kind)}) for kind, limit in _LIMITS.items()
    ]


def edited(rng: random.Random, *, headings: bool) -> tuple[str, str]:
    """A document before and after one of its paragraphs was replaced by a longer or shorter one."""
    paragraphs = [made_paragraph(rng, rng.randint(_SHORTEST, _LONGEST)) for _ in range(_PARAGRAPHS)]
    chosen = rng.randrange(_PARAGRAPHS)
    words = len(paragraphs[chosen].split())
    other = rng.choice([length for length in range(_SHORTEST, _LONGEST + 1) if length != words])
    changed = [*paragraphs[:chosen], made_paragraph(rng, other), *paragraphs[chosen + 1 :]]
    return _document(paragraphs, headings=headings), _document(changed, headings=headings)


def _document(paragraphs: list[str], *, headings: bool) -> str:
    parts = []
    for number, paragraph in enumerate(paragraphs):
        if headings and number % _PARAGRAPHS_A_SECTION == 0:
            parts.append(f"## Section {number // _PARAGRAPHS_A_SECTION + 1}")
        parts.append(paragraph)
    return "\n\n".join(parts) + "\n"


def _figure(kind: str, limit: float, told: dict[str, Any]) -> Figure:
    embedded = [of["embedded"] for of in told.values()]
    chunks = statistics.median(of["chunks"] for of in told.values())
    how = "with headings" if kind == "headings" else "without headings"
    return Figure(
        f"chunks embedded after one edit, {how}",
        statistics.median(embedded),
        limit,
        remark=f"median of {len(embedded)} files of about {chunks:.0f} chunks; most {max(embedded)}",
        details={"files": told},
    )
