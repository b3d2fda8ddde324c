"""Two exports of one index know the same files in one ledger: nothing of the one shows or moves in the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline.ledger import Ledger, schema
from pipeline.ledger.models import ExportState, SinkCollection
from pipeline_tests.ledger.clock import Clock
from pipeline_tests.ledger.test_ledger import listed

SINK, MODEL = "lancedb", "m-4"
HELD = SinkCollection(SINK, MODEL, "m", "f", 4, {"type": "lancedb", "uri": "here"})
MOVED = replace(HELD, settings={"type": "lancedb", "uri": "there"})
FILES = ["there", "missing", "failed", "removing", "removed"]
"""Named for what has become of each."""

WRITES: dict[str, Callable[[Ledger], Any]] = {
    "begin_listing": lambda ledger: ledger.begin_listing(),
    "record_listing": lambda ledger: ledger.record_listing([listed("there"), listed("missing"), listed("failed", 2)], 1_000),
    "complete_listing": lambda ledger: ledger.complete_listing(2_000),
    "update_state": lambda ledger: ledger.update_state(change_key="another"),
    "update_files": lambda ledger: ledger.update_files([{"file_id": "there", "provenance": "another"}]),
    "request": lambda ledger: ledger.request(["there"], "another wave"),
    "mark_removing": lambda ledger: ledger.mark_removing(["missing"]),
    "release": lambda ledger: ledger.release(["failed"]),
    "renew": lambda ledger: ledger.renew("run", seconds=999),
    "claim": lambda ledger: ledger.claim(["there"], "another run", seconds=5, dead_runs=["run"]),
    "drop_leases": lambda ledger: ledger.drop_leases("run"),
    "record_failures": lambda ledger: ledger.record_failures(
        {"there": "reason"}, run_id="run", max_attempts=2, backoff=lambda _: 60.0, settings_digest="another"
    ),
    "record_done": lambda ledger: ledger.record_done(["failed"], "another"),
    "refetched": lambda ledger: ledger.refetched({"there": '{"team": "a"}'}),
    "record_sink": lambda ledger: ledger.record_sink(HELD, {"there": "another"}),
    "record_sink_state": lambda ledger: ledger.record_sink_state(SINK, error=None, backoff=lambda _: 60.0),
    "record_removed": lambda ledger: ledger.record_removed(["removing"], run_id="run"),
    "forget": lambda ledger: ledger.forget(["removed"], run_id="run"),
    "log": lambda ledger: ledger.log([("there", "loaded", {})], run_id="run"),
    "vectors.claim": lambda ledger: ledger.vectors.claim(MODEL, {"there": [b"3"]}, "run", seconds=5, is_live=lambda _: False),
    "vectors.replace": lambda ledger: ledger.vectors.replace(MODEL, {"there": [b"3"]}, "run"),
    "vectors.release": lambda ledger: ledger.vectors.release("run"),
    "vectors.drop_ended": lambda ledger: ledger.vectors.drop_ended(lambda _: False),
    "register.leave_scope": lambda ledger: ledger.register.leave_scope("tenant", "another"),
    "register.record_collection": lambda ledger: [ledger.register.record_collection(held) for held in (HELD, MOVED)],
    "register.record_refusals": lambda ledger: ledger.register.record_refusals(SINK, {"failed": "another"}),
    "register.let_go": lambda ledger: ledger.register.let_go(SINK, ["there"]),
    "register.end_waits": lambda ledger: ledger.register.end_waits(),
    "register.keep_only_of": lambda ledger: ledger.register.keep_only_of([]),
    "register.forget_collection": lambda ledger: ledger.register.forget_collection(SINK, MODEL),
    "register.reset_sink": lambda ledger: ledger.register.reset_sink(SINK),
    "register.adopt_orphans": lambda ledger: ledger.register.adopt_orphans({"there": ("another", 1)}),
    "register.entomb": lambda ledger: ledger.register.entomb(["erased"], erased_at=1.0),
    "register.record_proof": lambda ledger: ledger.register.record_proof(["erased"]),
    "register.lift": lambda ledger: ledger.register.lift(["erased"]),
}


@pytest.fixture
def other(url: str, clock: Clock) -> Iterator[Ledger]:
    """Another export's ledger, with rows in every table."""
    opened = Ledger(url, "other", clock=clock)
    fill(opened)
    yield opened
    opened.close()


def fill(ledger: Ledger) -> None:
    earlier, later = ledger.begin_listing(), ledger.begin_listing()
    ledger.update_state(tenant_id="tenant", export_config_id=ledger.export, change_key="key")
    ledger.record_listing([listed("missing")], earlier)
    ledger.record_listing([listed(name) for name in FILES if name != "missing"], later)
    ledger.complete_listing(later)
    ledger.claim(FILES, "run", seconds=60)
    ledger.update_files([{"file_id": f, "attempts": 1, "provenance": "p", "vectors_key": "k", "refetch": True} for f in FILES])
    ledger.update_files([{"file_id": status, "status": status} for status in ("failed", "removing", "removed")])
    ledger.log([("removed", "removed", {})], run_id="run")
    ledger.record_sink_state(SINK, error="down", backoff=lambda _: 60.0)
    ledger.vectors.replace(MODEL, {name: [b"1"] for name in FILES})
    ledger.vectors.claim(MODEL, {"there": [b"2"]}, "run", seconds=60, is_live=lambda _: True)
    ledger.register.leave_scope("tenant", "former")
    ledger.register.record_collection(HELD)
    ledger.record_sink(HELD, dict.fromkeys(FILES, "h"))
    ledger.register.record_refusals(SINK, {"failed": "h"})
    ledger.register.entomb(["erased"])


def rows(ledger: Ledger) -> dict[str, list[str]]:
    """All that the database has of the ledger's export, by table."""
    with ledger._engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table).where(table.c.export == ledger.export))))
            for table in schema.metadata.sorted_tables
        }


def answers(ledger: Ledger) -> dict[str, Any]:
    """What the reading methods say, but for the scopes of all exports."""
    return {
        "files": ledger.files(),
        "files by id": ledger.files(FILES),
        "files that fail": ledger.files(failing=True),
        "holders": ledger.holders(FILES),
        "sink_hashes": ledger.sink_hashes(),
        "sink_hashes by id": ledger.sink_hashes(FILES),
        "sink_hashes of a model": ledger.sink_hashes(slug=MODEL),
        "sink_states": ledger.sink_states(),
        "history": ledger.history("there"),
        "count_removed": ledger.count_removed(0, 1e12),
        "vectors.locate": ledger.vectors.locate(MODEL, [b"1"]),
        "vectors.count": ledger.vectors.count(FILES),
        "register.former_scopes": ledger.register.former_scopes(),
        "register.last_change": ledger.register.last_change(),
        "register.moved": ledger.register.moved([MOVED]),
        "register.collections": ledger.register.collections(),
        "register.refusals": ledger.register.refusals(),
        "register.tombstones": ledger.register.tombstones(),
    }


def test_no_write_of_one_export_touches_another(ledger: Ledger, other: Ledger) -> None:
    before = rows(other)
    assert all(before.values())
    for name, write in WRITES.items():
        fill(ledger)
        write(ledger)
        assert rows(other) == before, name


def test_no_read_of_one_export_shows_another(ledger: Ledger, other: Ledger) -> None:
    assert all(answers(other).values())
    assert not {name: answer for name, answer in answers(ledger).items() if answer}
    assert ledger.state() == ExportState()


def test_what_one_export_knows_decides_nothing_in_another(ledger: Ledger, other: Ledger) -> None:
    number = ledger.begin_listing()
    assert number == 1
    assert ledger.record_listing([listed("there"), listed("erased")], number) == (2, 0)
    assert ledger.complete_listing(number) == 0
    ledger.register.adopt_orphans({"failed": ("failed.md", 1)})
    assert list(ledger.files()) == ["erased", "failed", "there"]
    other.update_files([{"file_id": "there", "status": "removed"}])
    ledger.forget(["there"], run_id=None)
    assert "there" in ledger.files()
    ledger.record_removed(["erased"], run_id="run")
    assert ledger.count_removed(0, 1e12) == 1
    assert not ledger.vectors.claim(MODEL, {"there": [b"2"]}, "another run", seconds=60, is_live=lambda _: True).waiting
    ledger.register.leave_scope("tenant", "former")
    assert ledger.register.former_scopes() == [("tenant", "former")]
    assert not ledger.register.record_collection(MOVED)
    ledger.record_sink(MOVED, {"there": "h"})
    assert ledger.register.record_collection(MOVED)
