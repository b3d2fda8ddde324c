"""Searching an export as its readers do."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pipeline.embedding.base import Vectors
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import EmbedderUnavailable
from pipeline.sinks.base import SearchMode
from pipeline.stages.detect import detect
from pipeline.stages.search import not_loaded, search
from pipeline_tests.conformance.harness import load_harness
from pipeline_tests.world import World, open_world

SETTINGS = {"lancedb": {}, "pgvector": {"dsn_env": "CONFORMANCE_PGVECTOR_DSN"}}

MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")
FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")


@pytest.fixture(params=sorted(SETTINGS))
def sink(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def world(tmp_path: Path, sink: str) -> Iterator[World]:
    with ExitStack() as stack:
        stack.enter_context(load_harness(sink)(tmp_path))
        yield stack.enter_context(open_world(tmp_path, sinks={sink: SETTINGS[sink]}))


def _found(world: World, sink: str, text: str, mode: SearchMode) -> set[str]:
    hits = asyncio.run(search(world.export, sink, text, mode=mode, k=2))
    return {hit.record.file_name for hit in hits}


@pytest.mark.parametrize("mode", ["text", "hybrid"])
def test_a_word_is_found_whether_its_letters_are_composed_or_not(world: World, sink: str, mode: SearchMode) -> None:
    for form in FORMS:
        world.write(f"{form}.md", unicodedata.normalize(form, "Die Druckbehälterprüfung in Đà Nẵng, 펌프.\n"))
    for number in range(6):
        world.write(f"{number}.md", f"Nothing of it, {number}.\n")
    world.ingest()
    for form in FORMS:
        for word in ("Druckbehälterprüfung", "Nẵng", "펌프", "zur Druckbehälterprüfung"):
            asked = unicodedata.normalize(form, word)
            assert _found(world, sink, asked, mode) == {"NFC.md", "NFD.md"}, (form, word)


def test_what_a_search_cannot_find_yet_is_counted(world: World, sink: str) -> None:
    for name in ("a.md", "b.md"):
        world.write(name, f"# {name}\n\nText.\n")
    world.ingest()
    assert not_loaded(world.export, sink) == 0
    world.write("c.md", "New.\n")
    world.refresh()
    asyncio.run(detect(world.export, complete=True))
    assert not_loaded(world.export, sink) == 1
    world.change(embedding={"provider": "constant", "constant_dimension": 24})
    assert not_loaded(world.export, sink) == 3
    world.ingest()
    assert not_loaded(world.export, sink) == 0


def test_a_letter_that_normalization_replaces_is_found_as_it_is(world: World, sink: str) -> None:
    """The sign of the ohm is the Greek letter in both forms, and a Korean page may hold a compatibility ideograph."""
    world.write("a.md", "Widerstand \u2126hm und \uf914.\n")
    world.ingest()
    assert _found(world, sink, "\u2126hm", "text") == {"a.md"}
    assert _found(world, sink, "\uf914", "text") == {"a.md"}


def test_half_a_surrogate_pair_in_a_question_is_said_in_one_line(world: World, sink: str) -> None:
    """As a shell hands over what is not in the encoding of its locale."""
    for mode in MODES:
        with pytest.raises(ValueError, match=r"^the search text 'caf\\udce9' is not UTF-8; type it as your locale has it$"):
            asyncio.run(search(world.export, sink, "caf\udce9", mode=mode))


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_question_is_refused_in_every_mode(world: World, sink: str, text: str) -> None:
    for mode in MODES:
        with pytest.raises(ValueError, match=r"^the search text is empty; type a question$"):
            asyncio.run(search(world.export, sink, text, mode=mode))


class Speechless(ConstantEmbedder):
    """Has no direction for a question."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = np.float32(value)

    async def embed_query(self, text: str) -> Vectors:
        return np.full(self.identity.dimension, self.value)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
def test_a_question_without_a_direction_is_the_model_s_failure_and_not_an_answer_of_nothing(
    tmp_path: Path, mode: SearchMode, value: float
) -> None:
    with open_world(tmp_path) as world:
        world.write("a.md", "Something.\n")
        world.ingest()
        world.export.embedder = Speechless(value)
        with pytest.raises(
            EmbedderUnavailable, match="constant answered the question with a vector that is not finite or all zero"
        ):
            _found(world, "lancedb", "something", mode)
