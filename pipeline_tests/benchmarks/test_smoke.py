"""The benchmarks still run and still compute what they say; how fast anything is, is not asserted here."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.corpus import made_documents, real_documents
from benchmarks.edits import edited, edits
from benchmarks.end_to_end import interleaved, smallest_cosine
from benchmarks.figures import Figure, print_table, ratio_figure, write_json
from benchmarks.orchestration import paired_runs
from benchmarks.processes import Measured, run_measured
from pipeline.local_cloud.environment import local_cloud_environment
from pipeline_tests.postgres import postgres, sqlalchemy_url


def measured(seconds: float, cpu: float = 1.0) -> Measured:
    return Measured(seconds, cpu, 0, "")


def test_a_ratio_is_of_medians() -> None:
    ours, theirs = [measured(1.0), measured(9.0), measured(2.0)], [measured(4.0), measured(4.0), measured(40.0)]
    figure = ratio_figure("cold", ours, theirs, limit=0.85, remark="", extra={})
    assert figure.measured == 0.5
    assert figure.passed
    assert figure.details["processor_ratio"] == 1.0


def test_a_target_can_be_a_floor_or_a_ceiling_or_absent() -> None:
    assert Figure("rate", 2.0, 2.5, at_most=False).passed is False
    assert Figure("ratio", 2.0, 2.5).passed is True
    assert Figure("rate", 2.0).passed is None


def test_rounds_are_interleaved_and_begin_with_another_run_each() -> None:
    order: list[str] = []

    def run(name: str) -> Measured:
        order.append(name)
        return measured(1.0)

    found = interleaved({"a": lambda _: run("a"), "b": lambda _: run("b")}, 2)
    assert order == ["a", "b", "b", "a"]
    assert [len(rounds) for rounds in found.values()] == [2, 2]


def test_the_smallest_cosine_of_two_sets_of_vectors() -> None:
    ours = np.array([[1, 0], [3, 4]], np.float32)
    theirs = np.array([[2, 0], [4, 3]], np.float32)
    assert smallest_cosine(ours, theirs) == pytest.approx(24 / 25)


def test_a_measured_command_answers_its_times_memory_and_output() -> None:
    found = run_measured(["sh", "-c", "sleep 0.2; echo told"], {})
    assert found.output == "told\n"
    assert found.seconds >= 0.2
    assert found.peak_bytes > 0


def test_a_failing_command_ends_the_benchmark_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="broken"):
        run_measured(["sh", "-c", "echo broken >&2; exit 3"], {})


def test_an_edit_replaces_one_paragraph_by_one_of_another_length() -> None:
    before, after = edited(random.Random(1), headings=True)
    pairs = list(zip(before.split("\n\n"), after.split("\n\n"), strict=True))
    [(old, new)] = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(old.split()) != len(new.split())


def test_real_documents_are_markdown_and_pdf(tmp_path: Path) -> None:
    characters = real_documents(tmp_path)
    markdown = list(tmp_path.glob("*.md"))
    assert len(markdown) >= 100
    assert characters >= 1_000_000
    assert len(list(tmp_path.glob("*.pdf"))) >= 3


def in_this_process(module: str, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[dict[str, Any], Measured]:
    """A worker whose imports are done; what processes it starts are its own."""
    told = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", [module, json.dumps(dict(arguments))])
        importlib.import_module(module).main()
    return json.loads(told.getvalue().splitlines()[-1]), measured(0.0)


def test_chunks_embedded_after_an_edit_are_counted_through_a_real_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.edits.run_worker", in_this_process)
    for figure in edits(tmp_path, quick=True):
        assert figure.measured >= 1
        assert all(of["chunks"] >= 90 and 1 <= of["embedded"] <= of["chunks"] for of in figure.details["files"].values())


def test_two_runs_at_once_on_a_new_postgresql_do_all_there_is_to_do_and_embed_what_is_new_to_both_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.orchestration.run_worker", in_this_process)
    documents = tmp_path / "documents"
    made_documents(documents, 10, 8)
    for document in list(documents.iterdir()):
        (documents / f"copy-of-{document.name}").write_bytes(document.read_bytes())
    with local_cloud_environment(str(documents), tmp_path / "cloud"), postgres() as uri:
        told = paired_runs(sqlalchemy_url(uri), tmp_path / "home", 20, {})
    assert (told["files"], told["runs"]) == (20, 2)
    assert told["chunks"] == 2 * told["embedded"] > 0


def test_table_and_json_say_the_same(tmp_path: Path) -> None:
    figures = [Figure("ratio", 0.5, 0.85, remark="how"), Figure("rate", 1234.0, 2500.0, at_most=False)]
    text = StringIO()
    print_table(Console(file=text, width=120), figures)
    write_json(tmp_path / "results" / "one.json", figures, quick=True)
    report = json.loads((tmp_path / "results" / "one.json").read_text(encoding="utf-8"))
    assert [figure["passed"] for figure in report["figures"]] == [True, False]
    assert "pass" in text.getvalue()
    assert "1,234" in text.getvalue()
