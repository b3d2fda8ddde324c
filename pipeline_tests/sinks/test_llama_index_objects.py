"""Objects named in settings: built from import paths, with secrets from the environment that nobody gets to see."""

from __future__ import annotations

import re
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import pytest

from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import ConfigError, SinkUnavailable
from pipeline.sinks.base import SinkContext
from pipeline.sinks.llama_index_objects import Builder, ObjectSettings
from pipeline.sinks.registry import exporter_class


def build(path: str, args: Any) -> Any:
    return Builder("vectors_minilm", 384).build(ObjectSettings.model_validate({"class": path, "args": args}))


def test_classes_factories_and_nested_objects_are_built() -> None:
    assert build("fractions:Fraction", {"numerator": 1, "denominator": 2}) == Fraction(1, 2)
    assert build("fractions:Fraction.from_float", [0.25]) == Fraction(1, 4)
    inner = {"class": "fractions:Fraction", "args": [3, 4]}
    assert build("builtins:dict", {"given": [inner, {"plain": inner}]}) == {"given": [Fraction(3, 4), {"plain": Fraction(3, 4)}]}


def test_the_models_name_and_dimension_and_the_environment_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "s3cret")
    built = build("builtins:dict", {"name": "x-{collection}", "dim": "{dimension}", "uri": "db://u:${STORE_PASSWORD}@h", "n": 3})
    assert built == {"name": "x-vectors_minilm", "dim": 384, "uri": "db://u:s3cret@h", "n": 3}


def test_what_is_wrong_with_a_description_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_PASSWORD", raising=False)
    for path, args, named in (
        ("no.such.module:Store", {}, "no.such.module"),
        ("fractions:NoSuchClass", {}, "NoSuchClass"),
        ("builtins:dict", {"uri": "${STORE_PASSWORD}"}, "STORE_PASSWORD"),
        ("fractions:Fraction", {"colour": 1}, "colour"),
    ):
        with pytest.raises(ConfigError, match=named):
            build(path, args)


@pytest.mark.skipif(
    find_spec("llama_index") is not None, reason="LlamaIndex is installed: the main environment, which never has it, runs this"
)
@pytest.mark.parametrize("kind", ["llama_docstore", "llama_index"])
async def test_without_llama_index_the_extra_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_URI", "mongodb://127.0.0.1:1")
    store = {"class": "llama_index.core.storage.docstore:SimpleDocumentStore"}
    settings = {"llama_docstore": {"vector_sink": "lancedb"}, "llama_index": {"vector_store": store, "docstore": store}}
    found = exporter_class(kind)
    sink = found(found.settings_type.model_validate(settings[kind]), SinkContext("project", ConstantEmbedder().identity))
    for opening in (sink.provision(), sink.list_snapshots(export_config_id="config")):
        with pytest.raises(ConfigError, match=r"pip install 'indexport\[llama-index\]'"):
            await opening


def test_secrets_are_named_instead_of_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "s3cret")
    builder = Builder("vectors", 3)
    builder.build(ObjectSettings.model_validate({"class": "builtins:dict", "args": {"p": "${STORE_PASSWORD}"}}))
    assert builder.shown("cannot log in with s3cret at h") == "cannot log in with ${STORE_PASSWORD} at h"


def test_arguments_refused_because_of_a_secret_do_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_PASSWORD", "s3cret")
    with pytest.raises(ConfigError) as caught:
        build("builtins:dict", [["${STORE_PASSWORD}"], "too", "many"])
    assert "s3cret" not in f"{caught.value!r}"


def misread(url: str) -> None:
    """As clients do with a password in which such a character is not escaped."""
    raise ValueError(f"Port could not be cast to integer value as {re.split('[#/?:@]', url)[4]!r}")


@pytest.mark.parametrize("character", "#/?:@")
def test_of_a_url_that_is_misread_no_part_of_the_password_is_shown(monkeypatch: pytest.MonkeyPatch, character: str) -> None:
    monkeypatch.setenv("STORE_URL", f"db://user:hunter2{character}extra@127.0.0.1:1")
    given = ObjectSettings.model_validate({"class": f"{__name__}:misread", "args": {"url": "${STORE_URL}"}})
    with pytest.raises(ConfigError, match=r"misread does not take .* as '\$\{STORE_URL\}'"):
        Builder("vectors", 3).build(given)
    named = Builder("vectors", 3, unavailable=("builtins:ValueError",))
    with pytest.raises(SinkUnavailable, match=r"cannot open: .* as '\$\{STORE_URL\}'"), named.errors("open"):
        named.build(given)


def test_what_a_message_needs_to_be_understood_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_URL", "db://user:p@127.0.0.1:1")
    builder = Builder("vectors", 3)
    builder.resolve(ObjectSettings.model_validate({"class": "builtins:dict", "args": {"p": "${STORE_URL}"}}))
    assert builder.shown("no reply from 127.0.0.1:1 to user") == "no reply from 127.0.0.1:1 to user"


def test_of_a_client_that_repeats_the_documents_it_was_given_the_beginning_is_told() -> None:
    named = Builder("vectors", 3, unavailable=("builtins:ValueError",))
    with pytest.raises(SinkUnavailable, match="write: batch op errors") as told, named.errors("write"):
        raise ValueError(f"batch op errors occurred, full error: {'The text of a document. ' * 1000}")
    assert len(str(told.value)) < 400
