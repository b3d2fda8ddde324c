"""Other weights under the name of an endpoint's model never stand beside the old ones."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ledger.models import MODEL
from pipeline_tests.embedding.openai_endpoint import KEY, Answer, Body, Endpoint, right, serving
from pipeline_tests.world import World, open_world


class Served:
    """An endpoint whose operator may put other weights behind the name of the model, and the texts it was asked for, those of the
    ``first`` load apart."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self.turned = 0.0
        self.refused = ""
        self.first: list[str] = []
        self.texts: list[str] = []
        endpoint.script = [self.answer] * 1000

    def answer(self, request: Body) -> Answer:
        if self.refused and any(self.refused in text for text in request["input"]):
            return 400, {"error": {"message": "content filter"}}
        self.texts += request["input"]
        status, body = right(request)[:2]
        for entry in body["data"]:
            entry["embedding"] = self._turn(entry["embedding"])
        return status, body

    def _turn(self, given: Any) -> Any:
        """The vector, turned by an angle in its first two directions."""
        x, y, z = np.frombuffer(base64.b64decode(given), "<f4") if isinstance(given, str) else given
        cos, sin = np.cos(self.turned), np.sin(self.turned)
        turned = np.asarray([x * cos - y * sin, x * sin + y * cos, z], "<f4")
        return base64.b64encode(turned.tobytes()).decode() if isinstance(given, str) else turned.tolist()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as endpoint:
        yield Served(endpoint)


def embedding(served: Served, **openai: Any) -> dict[str, Any]:
    given = {"base_url": served.url, "native_dimension": 3, "max_attempts": 1, **openai}
    return {"provider": "openai", "model": "any-model", "openai": given}


@pytest.fixture
def world(tmp_path: Path, served: Served) -> Iterator[World]:
    with open_world(tmp_path, embedding=embedding(served)) as opened:
        opened.write("long.md", "# Long\n\nWhat is said in a document of some words.\n")
        opened.write("short.md", "# Short\n\nA word.\n")
        opened.ingest()
        served.first, served.texts = served.texts, []
        yield opened


def test_a_first_load_is_compared_with_nothing_and_a_later_one_with_one_text(world: World, served: Served) -> None:
    assert len(served.first) == 2
    world.write("new.md", "# New\n\nSomething.\n")
    world.ingest()
    [compared, new] = served.texts
    assert compared in served.first
    assert "Something" in new
    world.assert_settled()


def test_other_weights_embed_nothing_and_the_old_records_stay(world: World, served: Served) -> None:
    before = world.held()
    served.turned = 0.5
    world.write("new.md", "# New\n\nSomething.\n")
    report = world.sync()
    assert not report.ok
    assert any("cosine 0.8" in error and "embedding.openai.revision" in error for error in report.errors), report.errors
    assert not any("Something" in text for text in served.texts)
    assert world.held() == before
    assert "other weights" in (world.export.ledger.sink_states()[MODEL].last_error or "")
    served.turned = 0.01
    world.ingest()
    world.assert_settled()


def test_with_a_revision_all_is_embedded_anew(world: World, served: Served) -> None:
    served.turned = 0.5
    world.write("new.md", "# New\n\nSomething.\n")
    world.change(embedding=embedding(served, revision="2026-11"))
    world.ingest()
    assert len(served.texts) == len(set(served.texts)) == 3
    world.assert_settled()


def test_where_nothing_is_new_the_endpoint_is_not_asked(world: World, served: Served) -> None:
    text = (world.documents / "short.md").read_text()
    world.write("copy.md", text)
    world.ingest()
    assert served.texts == []
    world.assert_settled()


def test_a_text_that_is_refused_now_says_nothing_of_the_weights(world: World, served: Served) -> None:
    served.refused = "Short"
    world.write("new.md", "# New\n\nSomething.\n")
    world.ingest()
    assert "new.md" in world.names()
    world.assert_settled()


def test_a_model_on_this_machine_is_known_by_its_weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.change(embedding={"provider": "constant"})
    world.ingest()
    asked: list[str] = []
    embedder = world.export.embedder
    real = embedder.embed

    async def embed(texts: Any, counts: Any) -> Any:
        asked.extend(texts)
        return await real(texts, counts)

    monkeypatch.setattr(embedder, "embed", embed)
    world.write("new.md", "# New\n\nSomething.\n")
    world.ingest()
    assert len(asked) == 1
