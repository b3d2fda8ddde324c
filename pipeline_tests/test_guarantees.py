"""Every promise of docs/guarantees.md names a test, and every test it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROMISES = re.findall(r"^- \*\*(.+?)\*\*(.*?)(?=^- |^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
NAMED = [
    (path, name)
    for path, names in re.findall(r"\]\((\S+\.py)\):((?:[^\[]|\[(?!test_))*)", TEXT)
    for name in re.findall(r"`(test_\w+)`", names)
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise[0][:40])
def test_a_promise_names_the_test_that_shows_it(promise: tuple[str, str]) -> None:
    assert re.search(r"\]\(\S+\.py\):\s+`test_\w+`", promise[1])


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value.rsplit("/", 1)[-1])
def test_a_named_test_exists(path: str, name: str) -> None:
    tree = ast.parse((PAGE.parent / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_name_on_the_page_stands_behind_its_file() -> None:
    assert len(NAMED) == len(re.findall(r"`test_\w+`", TEXT)) > 40
    assert len(PROMISES) == TEXT.count("\n- **")
