"""Whatever is wrong with a defs.yaml is said in one line that names the file."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest
from dagster.components.core.defs_module import ComponentFileModel

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
        (TYPE + "attributes:\n  name: a\n  sinks: {lancedb: {}}\n  sinks: {x: canary}\n", "line 5: 'sinks' .*line 4 .*join them"),
        (TYPE + "attributes: {name: a, sinks: {lancedb: {}, lancedb: {uri: canary}}}\n", "line 2: 'lancedb' .*join them"),
        (TYPE + "type: x\n" + TYPE + "attributes: {name: canary}\n", "line 2: 'type' .*line 1 .*join them"),
        (TYPE + "attributes: {name: a}\n---\n" + TYPE + "attributes: {name: b, name: canary}\n", "line 5: 'name'"),
        (TYPE + "attributes: {index: {index_name: {{ env.canary }}}}\n", "line 2: .*a template stands in quotes"),
        (TYPE + "attributes: {name: a, sinks: &a {canary: *a}}\n", "an alias .* within what it names"),
        (TYPE + f"attributes: {{name: a, sinks: {'[' * 3000}canary{']' * 3000}}}\n", "nested too deeply"),
        (TYPE + "attributes: {name: a}\nsinks: {x: canary}\n", "sinks: .*indent it under `attributes`"),
        ("attributes: {name: canary}\n", "`type` is missing; an export's is pipeline.components.IndexExport"),
        ("name: canary\n", "`type` is missing"),
        ("type: IndexExport\nattributes: {name: canary}\n", "type: .*pipeline.components.IndexExport"),
        ("type: indexport.IndexExport\nattributes: {name: canary}\n", "type: .*pipeline.components.IndexExport"),
        ("", "it holds no component"),
        ("# canary\n---\n", "it holds no component"),
        ("type: 5\n", "`type` must be .*pipeline.components.IndexExport"),
        ("type: pipeline.components.IndexExprot\nattributes: {name: canary}\n", "type: .*pipeline.components.IndexExport"),
        ("type: pipelines.component.IndexExport\nattributes: {name: canary}\n", "type: .*pipeline.components.IndexExport"),
        (TYPE + "attributes: {name: a, sinks: {}}\n", "sinks: .*at least one"),
        (TYPE + "attributes: {name: a, sinks: {x: {type: 5}}}\n", "sinks: .*'x': its `type` must be a string"),
        (TYPE + "attributes: {name: a, sinks: {chunks: {type: lancedb}}}\n", "sinks: .*'chunks' cannot name a sink"),
        (TYPE + "attributes: {name: a, sinks: {'my sink': {type: lancedb}}}\n", "sinks: .*'my sink' cannot name a sink"),
        (TYPE + "attributes: {name: a, sinks: {pgvector-eu: {type: lancedb}}}\n", "sinks: .*'pgvector-eu' cannot name a sink"),
        (TYPE + "attributes: {name: a, sinks: {lancedb: }}\n", "sinks.lancedb: "),
        (
            TYPE + "attributes: {name: a, sinks: {lancdb: {uri: canary}}}\n",
            "sinks.lancdb: unknown sink 'lancdb'; known: .*lancedb",
        ),
        (TYPE + "attributes: {name: a, sinks: {x: {type: lancdb}}}\n", "sinks.x: unknown sink 'lancdb'"),
        (TYPE + "attributes: {name: a, sinks: {x: {type: your.module.Class}}}\n", "sinks.x: .*your.module:Class"),
        (TYPE + "attributes: {name: a, sinks: {lancedb: {table_prefx: canary}}}\n", "sinks.lancedb.table_prefx: Extra"),
        (TYPE + "attributes: {name: a, sinks: {pgvector: {dsn_env: 'pg://canary'}}}\n", "sinks.pgvector.dsn_env: .*pattern"),
        (TYPE + "attributes: {name: a, sinks: {qdrant: {url: canary, path: canary}}}\n", "sinks.qdrant: .*not both"),
        (TYPE + "attributes: {name: a, sinks: {llama_docstore: {}}}\n", "sinks.llama_docstore.vector_sink: Field required"),
        (
            TYPE + "attributes: {name: a, sinks: {llama_docstore: {vector_sink: x}}}\n",
            "sinks.llama_docstore: unknown sink 'x'; kn",
        ),
        (TYPE + "attributes: {name: a, metadata_fields: {content: string}}\n", "metadata field 'content' cannot be declared"),
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


@pytest.mark.parametrize(
    "text",
    [
        "type: elsewhere.Component\nattributes: 5\n",
        "type: elsewhere.OfIndexExport\nname: x\nanything: {a: 1, a: 2}\n",
        "type: elsewhere.Component\nattributes: &a {a: *a}\n",
        "type: elsewhere.Component\n---\n# empty\n",
    ],
)
def test_components_of_others_are_left_to_dagster(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    assert load_exports(tmp_path) == {}


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 3), ("utf-16", 1)])
def test_a_file_that_is_not_utf8_is_named_with_the_line_and_the_remedy(tmp_path: Path, encoding: str, line: int) -> None:
    path = write(tmp_path, "")
    path.write_bytes((TYPE + "attributes:\n  name: canary-größe\n").encode(encoding))
    with pytest.raises(ConfigError, match=rf"^{path}: line {line}: it is not UTF-8 .*; save it as UTF-8$") as caught:
        load_exports(tmp_path)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_an_alias_and_a_merged_mapping_whose_values_are_replaced_repeat_no_key(tmp_path: Path) -> None:
    sinks = "{a: &a {type: lancedb, uri: /a, <<: {uri: /x}}, b: {<<: *a, uri: /b}, c: {<<: [*a], <<: *a, uri: /c}}"
    write(tmp_path, TYPE + f"attributes: {{name: a, sinks: {sinks}}}\n")
    assert [sink["uri"] for sink in load_exports(tmp_path)["a"].sinks.values()] == ["/a", "/b", "/c"]


def test_what_is_beside_the_settings_of_a_component_is_what_dagster_knows(tmp_path: Path) -> None:
    beside = "".join(f"{name}: {{}}\n" for name in ComponentFileModel.model_fields.keys() - {"type", "attributes"})
    write(tmp_path, TYPE + beside + "attributes: {name: a}\n")
    assert list(load_exports(tmp_path)) == ["a"]


def test_a_class_of_ones_own_and_a_store_whose_sdk_is_missing_are_not_asked_for_when_settings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    for module in [name for name in sys.modules if name.startswith("pipeline.sinks.qdrant")]:
        monkeypatch.delitem(sys.modules, module)
    sinks = "{mine: {type: 'no.such.module:Class', path: /rows}, qdrant: {url: 'http://127.0.0.1:9'}}"
    write(tmp_path, TYPE + f"attributes: {{name: a, sinks: {sinks}}}\n")
    assert list(load_exports(tmp_path)["a"].sinks) == ["mine", "qdrant"]


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
    x: {type: "a.module:Class", uri: "s3://{{ env.BUCKET }}/{{ env('WHICH') }}", tags: ["{{ env.BUCKET }}"]}
"""
    write(tmp_path, TYPE + attributes)
    settings = load_exports(tmp_path)["a"]
    assert (settings.index.index_name, settings.chunking.max_tokens) == ("handbook", 128)
    assert (settings.embedding.model, settings.embedding.query_prefix) == ("small", "{{ env.WHICH }}")
    assert settings.sinks == {"x": {"type": "a.module:Class", "uri": "s3://docs/handbook", "tags": ["docs"]}}
    assert ExportSettings.model_validate_json(settings.model_dump_json()) == settings


def test_no_sink_is_called_as_an_asset_of_every_export_is() -> None:
    graph = export_definitions(ExportSettings(name="x")).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        if key.path[-1] != "lancedb":
            with pytest.raises(ValueError, match="sink"):
                ExportSettings(name="x", sinks={key.path[-1]: {"type": "lancedb"}})
