"""Seeded documents and edits for the chunker's tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

_SYLLABLES = ("ka", "lo", "mi", "ren", "tos", "ver", "dal", "pun", "gri", "sho", "el", "nar", "tiv", "qua", "bes", "om", "fli")


SCRIPTS = {
    "English": (["pump", "valve", "pressure", "before", "maintenance", "closed", "oil", "carefully"], ". "),
    "quoted": (["pump", "valve", "pressure", "before", "maintenance", "closed", "oil", "carefully"], ".” "),
    "transcript": (["pump", "valve", "pressure", "before", "maintenance", "closed", "oil", "carefully"], " "),
    "list": (["pump", "valve", "pressure", "before", "maintenance", "closed", "oil", "carefully"], ", "),
    "JSON": (['{"pump":', '"valve"},', '"closed":', "[120,", "7],", '"oil":', "9999,"], " "),
    "Hindi": (["यह", "पंप", "सेवा", "वाल्व", "दबाव", "बंद", "करना", "चाहिए"], "। "),
    "Urdu": (["یہ", "پمپ", "والو", "دباؤ", "بند", "کریں", "دوبارہ", "جانچ"], "۔ "),
    "Arabic": (["المضخة", "الصمام", "المحرك", "الضغط", "الزيت", "قبل", "يجب"], "؟ "),
    "Arabic clauses": (["المضخة", "الصمام", "المحرك", "الضغط", "الزيت", "قبل", "يجب"], "، "),
    "Amharic": (["ፓምፕ", "ቫልቭ", "ግፊት", "ዘይት", "ዝጋ", "ጥገና", "በፊት"], "። "),
}
"""Words of scripts and kinds of text, and what ends a sentence in them."""


def one_line(rng: random.Random, script: str, sentences: int) -> str:
    vocabulary, end = SCRIPTS[script]
    return end.join(" ".join(rng.choices(vocabulary, k=rng.randint(8, 20))) for _ in range(sentences)) + end


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(count))


def sentence(rng: random.Random) -> str:
    return words(rng, rng.randint(6, 16)).capitalize() + "."


def paragraph(rng: random.Random) -> str:
    return " ".join(sentence(rng) for _ in range(rng.randint(1, 5)))


def plain_paragraphs(rng: random.Random, count: int) -> list[str]:
    return [paragraph(rng) for _ in range(count)]


def headed_paragraphs(rng: random.Random, count: int) -> list[str]:
    """Paragraphs under headings of three levels, a heading about every third block."""
    blocks = ["# " + words(rng, 3)]
    while len(blocks) < count:
        blocks.append("#" * rng.choice([2, 2, 3]) + " " + words(rng, 3))
        blocks.extend(paragraph(rng) for _ in range(rng.randint(1, 5)))
    return blocks


def edit_one(rng: random.Random, blocks: Sequence[str]) -> list[str]:
    """The blocks with one paragraph made longer or shorter somewhere inside."""
    edited = list(blocks)
    index = rng.choice([i for i, block in enumerate(blocks) if not block.startswith("#")])
    parts = edited[index].split()
    position = rng.randint(0, len(parts))
    if rng.random() < 0.5:
        parts[position:position] = words(rng, rng.randint(1, 25)).split()
    else:
        del parts[position : position + rng.randint(1, 15)]
    edited[index] = " ".join(parts) or "Gone."
    return edited


def table(rows: int) -> str:
    header = "| Item | Unit price | In stock | Remark |\n|---|---:|:---:|---|\n"
    return header + "".join(f"| part {i} | {i * 3}.50 | {i % 7} | ships from hall {i % 13} |\n" for i in range(rows))


def html_table(rows: int, joiner: str) -> str:
    """The same as LlamaParse writes it in HTML; ``joiner`` stands between the tags."""
    head, *body = [line.strip("| ").split(" | ") for line in table(rows).splitlines() if "---" not in line]
    parts = ["<table>", "<thead>", *_html_row("th", head), "</thead>", "<tbody>"]
    parts += [tag for row in body for tag in _html_row("td", row)]
    return joiner.join([*parts, "</tbody>", "</table>"])


def _html_row(cell: str, values: Sequence[str]) -> list[str]:
    return ["<tr>", *(f"<{cell}>{value}</{cell}>" for value in values), "</tr>"]
