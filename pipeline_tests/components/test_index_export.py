"""A defs.yaml as Dagster loads it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import dagster as dg
import pytest
from pydantic import BaseModel

from pipeline.errors import ConfigError
from pipeline.local_cloud.settings import LocalCloudSettings
from pipeline.orchestration.resources import EXPORTS
from pipeline.sinks.base import SinkSettings
from pipeline.sinks.plug_in import PlugInSettings
from pipeline.stages.settings import ExportSettings, load_exports


def load(root: Path, monkeypatch: pytest.MonkeyPatch, attributes: str) -> dg.Definitions:
    """What Dagster makes of a project with one export."""
    project = root / "project_of_a_test"
    (project / "defs" / "x").mkdir(parents=True)
    (project / "__init__.py").touch()
    (root / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "project_of_a_test"\n'
    )
    (project / "defs" / "x" / "defs.yaml").write_text(f"type: pipeline.components.IndexExport\nattributes:\n  {attributes}\n")
    monkeypatch.syspath_prepend(root)
    for known in [name for name in sys.modules if name.startswith(project.name)]:
        monkeypatch.delitem(sys.modules, known)
    return dg.load_from_defs_folder(path_within_project=project)


@pytest.mark.parametrize(
    "misplaced",
    [
        "index:\n    api_key: llx-canary",
        "chunking: llx-canary",
        "embedding: {openai: {key: llx-canary}}",
        "llx: llx-canary",
        "chunking: {max_tokens: '{{ env.LLX }}'}",
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_without_being_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misplaced: str
) -> None:
    monkeypatch.setenv("LLX", "llx-canary")
    with pytest.raises(Exception, match="x") as caught:
        load(tmp_path, monkeypatch, f"name: x\n  {misplaced}")
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_component_and_the_commands_see_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME_OF_A_TEST", "handbook")
    loaded = load(tmp_path, monkeypatch, 'name: "{{ env.NAME_OF_A_TEST }}"')
    keys = {key.path[0] for key in loaded.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {"handbook"} == {*load_exports(tmp_path / "project_of_a_test" / "defs")}


@pytest.mark.parametrize("settings", ["sinks: {lancedb: {}}\n  sinks: {qdrant: {}}", "sinks: {lancdb: {}}"])
def test_what_the_commands_refuse_is_refused_by_the_component_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    with pytest.raises(Exception, match="x") as caught:
        load(tmp_path, monkeypatch, f"name: x\n  {settings}")
    with pytest.raises(ConfigError) as told:
        load_exports(tmp_path)
    assert str(told.value) in "".join(traceback.format_exception(caught.value))


def test_a_component_whose_file_is_edited_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensor = load(tmp_path, monkeypatch, "name: x").resolve_sensor_def("x_directory_changes")
    file = tmp_path / "project_of_a_test" / "defs" / "x" / "defs.yaml"
    file.write_text(file.read_text() + "  chunking: {max_tokens: 40}\n")
    monkeypatch.setenv("INDEXPORT_HOME", str(tmp_path / "home"))
    with dg.DagsterInstance.ephemeral() as instance:
        answer = sensor(dg.build_sensor_context(instance=instance, resources={"indexport": EXPORTS}))
    assert isinstance(answer, dg.SkipReason)
    assert str(answer.skip_message).startswith(f"{file} was edited")


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    nested = [f.annotation for f in model.model_fields.values()]
    return {model}.union(*(_models(each) for each in nested if isinstance(each, type) and issubclass(each, BaseModel)))


def test_no_settings_repeat_what_was_given_to_them() -> None:
    roots: list[type[BaseModel]] = [ExportSettings, LocalCloudSettings, SinkSettings, PlugInSettings]
    models = set().union(*(_models(root) for root in roots))
    assert len(models) > 8
    assert not [model for model in models if not model.model_config.get("hide_input_in_errors")]
