"""Whatever is wrong with a defs.yaml is said in one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.components.index_export import export_definitions
from pipeline.errors import ConfigError
from pipeline.stages.settings import ExportSettings, load_exports

TYPE = "type: pipeline.components.IndexExport\n"


def write(root: Path, text: str, name: str = "x") -> Path:
    path = root / name / "defs.yaml"
    path.parent.mkdir()
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TYPE + "attributes: {name: a, sinks: {lancedb: {}}\n", "line 3: .*expected ',' or '}'"),
        (TYPE + "attributes:\n\tname: canary\n", "line 3: .*cannot start any token"),
        (TYPE + "attributes:\n  name: \x07\n", "not allowed"),
        ("type: elsewhere.Component\n---\n" + TYPE + "attributes: {name: canary!}\n", "name: .*pattern"),
        (TYPE + "attributes: {name: a}\n---\n" + TYPE + "attributes: {name: b\n", "line 6: .*expected ',' or '}'"),
        (TYPE + "attributes: {name: a, index: {index_name: '{{ canary }}'}}\n", "index.index_name: .*{{ env.NAME }}"),
        (TYPE + "attributes: {name: a, sinks: {x: {uri: 'canary/{{ env.NO_SUCH }}'}}}\n", "sinks.x.uri: .*NO_SUCH, which is not"),
        (TYPE + "attributes: {name: !canary x}\n", "line 2: .*a constructor for the tag"),
        (TYPE + "attributes: {name: *canary}\n", "line 2: .*alias"),
        (TYPE + "attributes:\n", "attributes"),
        (TYPE + "attributes: [canary]\n", "attributes"),
        (TYPE, "attributes"),
        (TYPE + "attributes: {1: 2}\n", "string"),
        ("- a\n- b\n", "a mapping"),
        ("canary\n", "a mapping"),
        ("type: 5\n", "`type` must be .*pipeline.components.IndexExport"),
        ("type: pipeline.components.IndexExprot\nattributes: {name: canary}\n", "type: .*pipeline.components.IndexExport"),
        ("type: pipelines.component.IndexExport\nattributes: {name: canary}\n", "type: .*pipeline.components.IndexExport"),
        (TYPE + "attributes: {name: a, sinks: {}}\n", "sinks: .*at least one"),
        (TYPE + "attributes: {name: a, sinks: {x: {type: 5}}}\n", "sinks: .*'x': its `type` must be a string"),
        (TYPE + "attributes: {name: a, sinks: {chunks: {type: lancedb}}}\n", "sinks: .*'chunks' cannot name a sink"),
        (TYPE + "attributes: {name: a, sinks: {'my sink': {type: lancedb}}}\n", "sinks: .*'my sink' cannot name a sink"),
        (TYPE + "attributes: {name: a, sinks: {pgvector-eu: {type: lancedb}}}\n", "sinks: .*'pgvector-eu' cannot name a sink"),
        (TYPE + "attributes: {name: a, sinks: {lancedb: }}\n", "sinks.lancedb: "),
    ],
)
def test_what_is_wrong_is_a_configuration_error_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_exports(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_files_cannot_have_an_export_of_one_name(tmp_path: Path) -> None:
    first, second = (write(tmp_path, TYPE + "attributes: {name: a}\n", name) for name in ("one", "two"))
    with pytest.raises(ConfigError, match=f"{second}: .*'a'.*{first}"):
        load_exports(tmp_path)


def test_components_of_others_and_empty_files_are_left_to_dagster(tmp_path: Path) -> None:
    write(tmp_path, "type: elsewhere.Component\nattributes: 5\n", "one")
    write(tmp_path, "", "two")
    assert load_exports(tmp_path) == {}


def test_a_file_may_hold_several_components_as_dagsters_do(tmp_path: Path) -> None:
    texts = [TYPE + "attributes: {name: a}\n", "type: elsewhere.Component\n", "", TYPE + "attributes: {name: b}\n"]
    write(tmp_path, "---\n".join(texts))
    assert list(load_exports(tmp_path)) == ["a", "b"]


def test_a_file_may_be_called_as_dagster_finds_it_too(tmp_path: Path) -> None:
    write(tmp_path, TYPE + "attributes: {name: a}\n").rename(tmp_path / "x" / "defs.yml")
    assert list(load_exports(tmp_path)) == ["a"]


def test_settings_take_variables_of_the_environment_as_components_of_dagster_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WHICH": "handbook", "TOKENS": "128", "BUCKET": "docs", "BRACES": "{{ env.WHICH }}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_SUCH", raising=False)
    attributes = """attributes:
  name: a
  index: {index_name: "{{ env.WHICH }}"}
  chunking: {max_tokens: '{{ env("TOKENS") }}'}
  embedding: {model: "{{env('NO_SUCH', 'small')}}", query_prefix: "{{ env.BRACES }}"}
  sinks:
    x: {type: lancedb, uri: "s3://{{ env.BUCKET }}/{{ env('WHICH') }}", tags: ["{{ env.BUCKET }}"]}
"""
    write(tmp_path, TYPE + attributes)
    settings = load_exports(tmp_path)["a"]
    assert (settings.index.index_name, settings.chunking.max_tokens) == ("handbook", 128)
    assert (settings.embedding.model, settings.embedding.query_prefix) == ("small", "{{ env.WHICH }}")
    assert settings.sinks == {"x": {"type": "lancedb", "uri": "s3://docs/handbook", "tags": ["docs"]}}
    assert ExportSettings.model_validate_json(settings.model_dump_json()) == settings


def test_no_sink_is_called_as_an_asset_of_every_export_is() -> None:
    graph = export_definitions(ExportSettings(name="x")).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        if key.path[-1] != "lancedb":
            with pytest.raises(ValueError, match="sink"):
                ExportSettings(name="x", sinks={key.path[-1]: {"type": "lancedb"}})
