"""What the whole suite says of itself."""

from __future__ import annotations

from types import SimpleNamespace

from pipeline_tests.conformance.mongodb_harness import NO_ENGINE
from pipeline_tests.conftest import pytest_terminal_summary


def test_what_a_missing_engine_leaves_untested_is_said_once_at_the_end() -> None:
    said: list[str] = []
    reasons = [NO_ENGINE, NO_ENGINE, "needs a real server"]
    skipped = [SimpleNamespace(longrepr=("test_a.py", 1, f"Skipped: {reason}")) for reason in reasons]
    pytest_terminal_summary(SimpleNamespace(stats={"skipped": skipped}, write_line=lambda line, **_: said.append(line)))
    assert said == [NO_ENGINE]
