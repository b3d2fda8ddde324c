"""A defs.yaml as Dagster loads it."""

from __future__ import annotations

import traceback
from pathlib import Path

import dagster as dg
import pytest
from pydantic import BaseModel

from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.sinks.base import SinkSettings
from pipeline.sinks.plug_in import PlugInSettings
from pipeline.stages.settings import ExportSettings


@pytest.mark.parametrize(
    "misplaced",
    ["index:\n    api_key: llx-canary", "chunking: llx-canary", "embedding: {openai: {key: llx-canary}}", "llx: llx-canary"],
)
def test_a_secret_in_the_wrong_place_is_refused_without_being_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misplaced: str
) -> None:
    project = tmp_path / "project_of_a_test"
    (project / "defs" / "x").mkdir(parents=True)
    (project / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "project_of_a_test"\n'
    )
    (project / "defs" / "x" / "defs.yaml").write_text(
        f"type: pipeline.components.IndexExport\nattributes:\n  name: x\n  {misplaced}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match="x") as caught:
        dg.load_from_defs_folder(path_within_project=project)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    nested = [f.annotation for f in model.model_fields.values()]
    return {model}.union(*(_models(each) for each in nested if isinstance(each, type) and issubclass(each, BaseModel)))


def test_no_settings_repeat_what_was_given_to_them() -> None:
    roots: list[type[BaseModel]] = [ExportSettings, LocalCloudSettings, SinkSettings, PlugInSettings]
    models = set().union(*(_models(root) for root in roots))
    assert len(models) > 8
    assert not [model for model in models if not model.model_config.get("hide_input_in_errors")]
