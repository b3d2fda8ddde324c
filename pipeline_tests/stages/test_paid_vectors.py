"""What an endpoint has answered is paid for: it is kept, whatever becomes of the texts beside it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.embedding.base import PartlyEmbedded, Vectors
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.errors import EmbedderUnavailable
from pipeline.ledger.models import MODEL
from pipeline.stages.chunk import chunk
from pipeline.stages.detect import detect
from pipeline.stages.embed import embed
from pipeline.stages.fetch import fetch
from pipeline_tests.embedding.openai_endpoint import KEY, Answer, Body, Endpoint, right, serving
from pipeline_tests.world import World, open_world

SECTIONS = 12


class Till:
    """An endpoint's answers, and how often each text was answered rightly. ``refuses`` decides by the texts paid for so far. A
    text that is asked for alone and was paid for before is one to know the weights by: ``compared`` counts these."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self.paid: Counter[str] = Counter()
        self.compared = 0
        self.refuses: Callable[[list[str]], Answer | None] = lambda _texts: None
        endpoint.script = [self.answer] * 1000

    def answer(self, request: Body) -> Answer:
        if refusal := self.refuses(request["input"]):
            return refusal
        texts = request["input"]
        if len(texts) == 1 and texts[0] != "text" and self.paid[texts[0]]:
            self.compared += 1
        else:
            self.paid.update(texts)
        return right(request)


@pytest.fixture
def till(monkeypatch: pytest.MonkeyPatch) -> Iterator[Till]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as endpoint:
        yield Till(endpoint)


@pytest.fixture
def world(tmp_path: Path, till: Till) -> Iterator[World]:
    openai = {"base_url": till.url, "native_dimension": 3, "max_attempts": 1, "request_items": 2, "concurrency": 1}
    embedding = {"provider": "openai", "model": "any-model", "openai": openai}
    with open_world(tmp_path, embedding=embedding, chunking={"max_tokens": 60}) as opened:
        opened.write("long.md", "\n\n".join(f"# Section {n}\n\nWhat is said in section {n}." for n in range(SECTIONS)))
        for n in range(3):
            opened.write(f"short-{n}.md", f"# Short {n}\n\nThe body of {n}.\n")
        yield opened


def stops_after(till: Till, texts: int) -> None:
    till.refuses = lambda _texts: (503, {"error": {"message": "overloaded"}}) if till.paid.total() >= texts else None


@pytest.mark.parametrize("answered", [2, 8, SECTIONS, SECTIONS + 2])
def test_an_endpoint_that_stops_half_way_is_asked_for_the_rest_alone(world: World, till: Till, answered: int) -> None:
    stops_after(till, answered)
    assert not world.sync().ok
    assert till.paid.total() == answered
    assert world.numbers("chunks")["chunks"] == SECTIONS + 3
    till.refuses = lambda _texts: None
    world.ingest()
    assert set(till.paid.values()) == {1}
    assert till.paid.total() == SECTIONS + 3
    assert till.compared == 1
    world.assert_settled()


def test_an_endpoint_that_stops_again_and_again_is_done_with_in_the_end(world: World, till: Till) -> None:
    for answered in (4, 6, 10):
        stops_after(till, answered)
        with pytest.raises(EmbedderUnavailable):
            world.ingest()
        assert till.paid.total() == answered
    till.refuses = lambda _texts: None
    world.ingest()
    assert set(till.paid.values()) == {1}
    assert till.compared == 3
    world.assert_settled()


def test_a_key_that_is_revoked_half_way_costs_nothing_that_was_answered(world: World, till: Till) -> None:
    till.refuses = lambda _texts: (401, {"error": {"message": "revoked"}}) if till.paid.total() >= 4 else None
    report = world.sync()
    assert any("OPENAI_API_KEY" in error for error in report.errors), report.errors
    till.refuses = lambda _texts: None
    world.ingest()
    assert set(till.paid.values()) == {1}


def test_a_text_that_is_refused_again_and_again_costs_none_of_its_file(world: World, till: Till) -> None:
    refusal: Answer = (400, {"error": {"message": "content filter"}})
    till.refuses = lambda texts: refusal if any("section 5" in text for text in texts) else None
    for _ in range(3):
        assert not world.sync().ok
        row = world.export.ledger.files()[world.file_id("long.md")]
        assert row.last_error == "the model refused chunk 5: HTTP 400: content filter"
        assert row.last_error in world.export.ledger.history(row.file_id)[-1].details
        world.release_failed()
    harmless = till.paid.pop("text")
    assert harmless == 3
    assert set(till.paid.values()) == {1}
    assert till.paid.total() == SECTIONS + 3 - 1
    assert world.names() == {f"short-{n}.md" for n in range(3)}


def test_a_refused_edit_costs_no_vector_of_the_version_before(world: World, till: Till) -> None:
    world.ingest()
    path = world.documents / "long.md"
    before = path.read_text()
    till.refuses = lambda texts: (400, {"error": {"message": "content filter"}}) if "refused" in str(texts) else None
    path.write_text(before.replace("in section 5", "in section 5, refused"))
    assert not world.sync().ok
    paid = till.paid.copy()
    path.write_text(before)
    world.ingest()
    assert till.paid == paid
    world.assert_settled()


def test_an_endpoint_that_answers_some_each_time_backs_off_as_after_a_first_failure(world: World, till: Till) -> None:
    for answered in (4, 6, 10):
        stops_after(till, answered)
        assert not world.sync().ok
        assert till.paid.total() == answered
        assert world.export.ledger.sink_states()[MODEL].attempts == 1
    stops_after(till, 0)
    world.sync()
    assert world.export.ledger.sink_states()[MODEL].attempts == 2


def test_what_was_answered_before_an_interruption_is_kept(world: World, till: Till) -> None:
    world.refresh()
    export = world.export
    asyncio.run(detect(export, complete=True))
    files = list(export.ledger.files())
    asyncio.run(fetch(export, files, run_id="run"))
    asyncio.run(chunk(export, files, run_id="run"))

    async def interrupted() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task

        def interrupt(_texts: list[str]) -> None:
            if till.paid.total() >= 6:
                loop.call_soon_threadsafe(task.cancel)

        till.refuses = interrupt
        await embed(export, files, run_id="run")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert 6 <= till.paid.total() < SECTIONS + 3
    answered = till.paid.copy()
    till.refuses = lambda _texts: None
    asyncio.run(embed(export, files, run_id="run"))
    again = till.paid - answered
    assert till.paid.total() - (SECTIONS + 3) <= 2  # the request under way when it was interrupted
    assert again.total() >= SECTIONS + 3 - answered.total()


class Failing(ConstantEmbedder):
    """Answers all texts but the last."""

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        vectors = await super().embed(texts, token_counts)
        vectors[-1] = np.nan
        cause = EmbedderUnavailable("the model failed")
        cause.__cause__ = MemoryError("no room")
        raise PartlyEmbedded(cause, vectors)


def test_the_error_is_the_model_s_own_with_its_reason(world: World) -> None:
    world.change(embedding={"provider": "constant"})
    world.refresh()
    export = world.export
    export.embedder = Failing()
    asyncio.run(detect(export, complete=True))
    files = list(export.ledger.files())
    asyncio.run(fetch(export, files, run_id="run"))
    asyncio.run(chunk(export, files, run_id="run"))
    with pytest.raises(EmbedderUnavailable, match="the model failed") as caught:
        asyncio.run(embed(export, files, run_id="run"))
    assert type(caught.value) is EmbedderUnavailable
    assert isinstance(caught.value.__cause__, MemoryError)


def test_the_old_version_answers_until_the_new_one_is_whole(world: World, till: Till) -> None:
    world.ingest()
    before = world.held()
    world.write("long.md", "\n\n".join(f"# Section {n}\n\nWhat is said now in section {n}." for n in range(SECTIONS)))
    stops_after(till, till.paid.total() + 6)
    with pytest.raises(EmbedderUnavailable):
        world.ingest()
    assert world.held() == before
    till.refuses = lambda _texts: None
    world.ingest()
    assert set(till.paid.values()) == {1}
    world.assert_settled()


def test_a_text_kept_of_a_file_that_is_not_whole_serves_another_file(world: World, till: Till) -> None:
    stops_after(till, 2)
    with pytest.raises(EmbedderUnavailable):
        world.ingest()
    till.refuses = lambda _texts: None
    [first, *_] = till.paid
    world.remove("long.md")
    world.write("other.md", first)
    world.ingest()
    assert till.paid[first] == 1
