"""Finding a sink's class, and importing its SDK ahead of its first request."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.sinks.registry import import_sdk

IMPORTS = (
    "import sys; from pipeline.sinks import registry; registry.exporter_class('lancedb'); {}; print('lancedb' in sys.modules)"
)


@pytest.mark.parametrize(("then", "imported"), [("pass", "False"), ("registry.import_sdk('lancedb')", "True")])
def test_lancedb_is_imported_ahead_where_that_is_asked_for_alone(then: str, imported: str) -> None:
    answer = subprocess.run([sys.executable, "-c", IMPORTS.format(then)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == imported


@pytest.mark.parametrize("missing", ["lancedb", "pipeline.sinks.lancedb"])
def test_an_sdk_that_cannot_be_imported_is_left_for_the_sinks_own_step_to_tell(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    import_sdk("lancedb")
    import_sdk("no_sink_of_ours")
