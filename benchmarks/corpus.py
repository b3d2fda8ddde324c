"""What is synced: real documents for the end-to-end figures, made ones where only their number and size matter."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from typing import cast

SAMPLES = Path(__file__).parents[1] / "samples"
SYSTEM_PDFS = Path("/usr/share/doc")
_SHORTEST, _LONGEST = 2_000, 40_000
_LONGEST_PDF_BYTES = 400_000
_WORDS = [
    "gauge",
    "river",
    "station",
    "level",
    "flow",
    "sensor",
    "valve",
    "mast",
    "cable",
    "reading",
    "alarm",
    "flood",
    "bank",
    "weir",
    "lock",
    "pump",
    "report",
    "inspector",
    "archive",
    "battery",
    "panel",
    "antenna",
    "signal",
    "record",
    "summer",
    "winter",
    "channel",
    "bridge",
    "permit",
    "crew",
    "survey",
    "depth",
    "rain",
    "season",
    "chart",
]


def descriptions() -> Iterator[tuple[str, str]]:
    """(name, long description) of every installed package that has one, by name."""
    for package in sorted(distributions(), key=lambda package: package.metadata["Name"].lower()):
        text = cast(Message, package.metadata).get_payload()
        if isinstance(text, str):
            yield package.metadata["Name"], text


def real_documents(folder: Path, most: int | None = None) -> int:
    """Copies real documents into a folder; answers the characters of Markdown among them.

    Markdown is the long descriptions of the packages installed here (2,000 to 40,000 characters), PDF the project's samples
    and what Debian's packages have left on this machine. The same for the same installation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = copied = 0
    for name, text in descriptions():
        if not _SHORTEST <= len(text) <= _LONGEST or copied == most:
            continue
        (folder / f"{name}.md").write_text(text, encoding="utf-8", errors="replace")
        copied += 1
        total += len(text)
    pdfs = [path for path in sorted(SAMPLES.rglob("*.pdf")) if path.name != "broken.pdf"]
    pdfs += [path for path in sorted(SYSTEM_PDFS.rglob("*.pdf")) if path.stat().st_size <= _LONGEST_PDF_BYTES]
    for path in pdfs:
        shutil.copyfile(path, folder / path.name)
    return total


def made_documents(folder: Path, files: int, sections: int) -> None:
    """Markdown files of so many sections, each a chunk of its own, about as long as the chunks of real documents; seeded."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        rng = random.Random(number)
        (folder / f"document-{number:05}.md").write_text(made_document(rng, number, sections), encoding="utf-8")


def made_document(rng: random.Random, number: int, sections: int) -> str:
    """One title and so many sections of prose."""
    parts = [f"# Document {number}"]
    for section in range(1, sections + 1):
        parts += [f"## Section {section}", made_paragraph(rng, 150)]
    return "\n\n".join(parts) + "\n"


def made_paragraph(rng: random.Random, words: int) -> str:
    """Prose of about as many tokens as words and full stops."""
    sentences = []
    while words > 0:
        length = min(words, rng.randint(8, 16))
        sentences.append(" ".join(rng.choices(_WORDS, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)
