"""Which settings of a sink say where its records are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.sinks.plug_in import PlugInSettings
from pipeline.sinks.registry import exporter_class

ELSEWHERE: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "lancedb": ({"uri": "/here"}, [{"uri": "/there"}, {"uri": "s3://here"}, {"table_prefix": "other"}]),
    "storage_context": ({"uri": "s3://here/a"}, [{"uri": "s3://here/b"}, {"prefix": "other"}]),
    "pgvector": ({}, [{"dsn_env": "OTHER_DSN"}, {"schema_name": "other"}, {"table_prefix": "other"}]),
    "mongodb": ({}, [{"uri_env": "OTHER_URI"}, {"database": "other"}, {"collection_prefix": "other"}]),
    "qdrant": ({}, [{"url": "http://other:6333"}, {"path": "/there"}, {"collection_prefix": "other"}]),
    "pinecone": ({}, [{"controller_host": "http://other"}, {"index_prefix": "other"}]),
    "turbopuffer": ({}, [{"region": "other"}, {"base_url": "http://other"}, {"namespace_prefix": "other"}]),
    "azure_ai_search": ({}, [{"endpoint": "https://other.search.windows.net"}, {"index_prefix": "other"}]),
    "llama_docstore": (
        {"vector_sink": "pinecone"},
        [{"vector_sink": "qdrant"}, {"kvstore": {"class": "a:B", "args": {"uri": "x"}}}, {"prefix": "other"}],
    ),
}
"""Of each sink: settings, and changes each of which means another place."""

OTHER_VALUES: dict[str, Any] = {"errors": ["module:Error"], "analyzer": "de.microsoft", "text_search_config": "german"}


def place(kind: str, **settings: Any) -> tuple[object, ...]:
    return exporter_class(kind).settings_type(**settings).place()


def tuned(kind: str, settings: dict[str, Any], name: str) -> dict[str, Any]:
    value = getattr(exporter_class(kind).settings_type(**settings), name)
    if name in OTHER_VALUES:
        return {name: OTHER_VALUES[name]}
    return {name: not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_names_the_place_tells_two_apart_and_nothing_else_does(kind: str) -> None:
    settings, others = ELSEWHERE[kind]
    here = place(kind, **settings)
    assert here == place(kind, **settings)
    for change in others:
        assert place(kind, **{**settings, **change}) != here, change
    naming = {name for change in (settings, *others) for name in change}
    for name in exporter_class(kind).settings_type.model_fields.keys() - naming:
        assert place(kind, **settings, **tuned(kind, settings, name)) == here, name


@pytest.mark.parametrize(
    ("kind", "name", "setting", "value"),
    [
        ("pgvector", "SECOND_DSN", {"dsn_env": "SECOND_DSN"}, {"INDEXPORT_PGVECTOR_DSN": "postgresql://host/db"}),
        ("mongodb", "SECOND_URI", {"uri_env": "SECOND_URI"}, {"INDEXPORT_MONGODB_URI": "mongodb://host"}),
    ],
)
def test_two_variables_of_one_address_are_one_place(
    kind: str, name: str, setting: dict[str, Any], value: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [(first, address)] = value.items()
    monkeypatch.setenv(first, address)
    monkeypatch.setenv(name, address)
    assert place(kind) == place(kind, **setting)


@pytest.mark.parametrize(
    ("kind", "variable", "setting"),
    [
        ("qdrant", "QDRANT_URL", {"url": "http://host:6333/"}),
        ("azure_ai_search", "AZURE_SEARCH_ENDPOINT", {"endpoint": "https://name.search.windows.net/"}),
        ("turbopuffer", "TURBOPUFFER_REGION", {"region": "gcp-us-central1"}),
    ],
)
def test_an_address_of_the_settings_and_of_the_environment_are_one_place(
    kind: str, variable: str, setting: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [written] = setting.values()
    monkeypatch.setenv(variable, written.rstrip("/"))
    assert place(kind) == place(kind, **setting)


def test_a_folder_is_one_place_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    written = [f"{tmp_path}/data", "data", "./data/", f"file://{tmp_path}/data", "link", "data/../data"]
    assert len({place("lancedb", uri=uri) for uri in written}) == 1
    assert place("storage_context", uri="s3://bucket/a/") == place("storage_context", uri="s3://bucket/a")


@pytest.mark.usefixtures("ignores_spelling")
def test_a_folder_is_one_place_in_every_case_that_finds_it(tmp_path: Path) -> None:
    (tmp_path / "Store").mkdir()
    assert place("lancedb", uri=f"{tmp_path}/store") == place("lancedb", uri=f"file://{tmp_path}/Store")


def test_the_order_of_a_plugged_in_sinks_settings_makes_no_other_place() -> None:
    assert (
        PlugInSettings.model_validate({"url": "here", "space": "a"}).place()
        == PlugInSettings.model_validate({"space": "a", "url": "here"}).place()
    )
    assert PlugInSettings.model_validate({"url": "here"}).place() != PlugInSettings.model_validate({"url": "there"}).place()
