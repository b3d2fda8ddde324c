from __future__ import annotations

import dataclasses
import json
import random
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LedgerUnavailable
from pipeline.ledger import Ledger, schema
from pipeline.ledger.models import SinkCollection
from pipeline.llama_cloud.models import DirectoryFile
from pipeline_tests.ledger.clock import Clock

HELD = SinkCollection("lancedb", "m", "m", "m", 3, {"type": "lancedb"})


def listed(file_id: str, version: int = 1) -> DirectoryFile:
    return DirectoryFile(file_id, f"{file_id}.md", f"storage-{version}", {"team": "a"}, datetime(2026, 11, version, tzinfo=UTC))


def test_ledgers_opened_at_once_on_a_new_database_all_work(url: str) -> None:
    together = threading.Barrier(6)

    def open_and_write(number: int) -> None:
        together.wait()
        ledger = Ledger(url, f"export-{number}")
        ledger.record_listing([listed("a")], 1)
        ledger.close()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(open_and_write, range(6))) == [None] * 6


def test_a_process_that_ends_leaves_all_of_the_ledger_in_its_file(tmp_path: Path) -> None:
    holder = (
        "import sys; from pipeline.interpreter import look_for_garbage_less; from pipeline.ledger import Ledger;"
        "look_for_garbage_less(); held = [Ledger(sys.argv[1], 'default')]; held.append(held); held[0].update_state(listed_at=1.0)"
    )
    subprocess.run([sys.executable, "-c", holder, f"sqlite:///{tmp_path}/ledger.sqlite"], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]
    assert Ledger(f"sqlite:///{tmp_path}/ledger.sqlite", "default").state().listed_at == 1.0


def test_metadata_that_moves_alone_is_stored_and_the_file_fetched_again_until_that_has_been_seen(ledger: Ledger) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    moved = [dataclasses.replace(listed("a"), metadata={"team": "b"}), listed("b")]
    assert ledger.record_listing(moved, 2) == (0, 1)
    assert ledger.record_listing(moved, 3) == (0, 0)
    rows = ledger.files()
    assert (rows["a"].metadata, rows["a"].refetch, rows["b"].refetch) == ('{"team": "b"}', True, False)
    ledger.record_done(["a", "b"], "settings")
    ledger.refetched({"a": '{"team": "a"}'})
    assert ledger.files()["a"].refetch
    ledger.refetched({"a": '{"team": "b"}'})
    assert not ledger.files()["a"].refetch


@pytest.mark.parametrize(
    ("table", "index"),
    [("indexport_history", "indexport_history_by_event"), ("indexport_file_sinks", "indexport_file_sinks_by_file")],
)
def test_a_ledger_that_an_earlier_version_made_gets_the_index_it_lacks(ledger: Ledger, url: str, table: str, index: str) -> None:
    def names() -> set[str | None]:
        return {found["name"] for found in sa.inspect(engine).get_indexes(table)}

    engine = sa.create_engine(url)
    before = names()
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP INDEX {index}"))
    assert names() == before - {index}
    Ledger(url, "default").close()
    assert names() == before
    engine.dispose()


def test_which_sinks_hold_some_files_is_read_without_reading_the_rows_of_all_others(ledger: Ledger, url: str) -> None:
    engine = sa.create_engine(url)
    sinks = schema.file_sinks
    asked = sa.select(sinks.c.sink, sinks.c.record_set_hash).where(sinks.c.export == "default", sinks.c.file_id.in_(["a", "b"]))
    with engine.begin() as connection:
        rows = [{"export": "default", "sink": "s", "file_id": f"f{n}", "updated_at": 0.0} for n in range(10_000)]
        connection.execute(sa.insert(sinks), rows)
        connection.execute(sa.text("ANALYZE"))
        sql = asked.compile(engine, compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = str(connection.execute(sa.text(f"{explain} {sql}")).all())
    engine.dispose()
    assert "indexport_file_sinks_by_file" in plan


def test_looks_and_runs_that_write_the_same_files_in_any_order_wait_for_each_other(ledger: Ledger) -> None:
    names = [f"file-{number:03}" for number in range(200)]
    files = [listed(name) for name in names]
    ledger.record_listing(files, 1)
    ledger.register.record_collection(HELD)
    chance = random.Random(3)

    def look(number: int) -> None:
        ledger.record_listing(chance.sample(files, len(files)), number)

    def run(number: int) -> None:
        ledger.update_files([{"file_id": name, "chunk_count": number} for name in chance.sample(names, len(names))])
        ledger.record_sink(HELD, dict.fromkeys(chance.sample(names, len(names)), "digest"))

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(work, number) for number in range(2, 12) for work in (look, run, look, run)]
        assert [future.result() for future in done] == [None] * 40
    assert {row.chunk_count for row in ledger.files().values()} < set(range(2, 12))


def test_a_listing_tells_new_from_changed_from_known(ledger: Ledger) -> None:
    assert ledger.record_listing([listed("a"), listed("b")], 1) == (2, 0)
    assert ledger.record_listing([listed("a"), listed("b", 2)], 2) == (0, 1)
    rows = ledger.files()
    assert rows["a"].status == "new"
    assert rows["b"].storage_id == "storage-2"
    assert [event.event for event in ledger.history("b")] == ["listed", "changed"]


def test_the_changed_files_of_a_page_are_written_together(ledger: Ledger) -> None:
    names = [f"file-{n}" for n in range(50)]
    ledger.record_listing([listed(name) for name in names], 1)
    failures = dict.fromkeys(names[:20], "broken")
    ledger.record_failures(failures, run_id="run", max_attempts=3, backoff=float, settings_digest="s")
    written: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO indexport_files"):
            written.append(statement)

    sa.event.listen(ledger._engine, "before_cursor_execute", note)
    assert ledger.record_listing([listed(name, 2) for name in names], 2) == (0, 50)
    assert len(written) == 2
    assert {row.attempts for row in ledger.files().values()} == {0}


def test_a_page_that_repeats_an_item_counts_it_once(ledger: Ledger) -> None:
    assert ledger.record_listing([listed("a"), listed("a")], 1) == (1, 0)


def test_only_a_complete_listing_makes_a_file_missing_and_seeing_it_again_undoes_that(ledger: Ledger, clock: Clock) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    ledger.record_listing([listed("a")], 2)
    assert ledger.files()["b"].missing_since is None
    clock.now = 2_000.0
    assert ledger.complete_listing(2) == 1
    assert ledger.files()["b"].missing_since == 2_000.0
    ledger.record_listing([listed("a"), listed("b")], 3)
    assert ledger.files()["b"].missing_since is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_that_an_earlier_listing_shows_last_is_not_missing_in_a_later_one(ledger: Ledger, version: int) -> None:
    ledger.record_listing([listed("a")], ledger.begin_listing())
    earlier, later = ledger.begin_listing(), ledger.begin_listing()
    ledger.record_listing([listed("a")], later)
    ledger.record_listing([listed("a", version)], earlier)
    assert ledger.complete_listing(later) == 0


def test_every_listing_has_a_number_of_its_own(ledger: Ledger) -> None:
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(lambda _: ledger.begin_listing(), range(12)))
    assert sorted(numbers) == list(range(1, 13))
    assert ledger.state().listing_id == 12


@settings(max_examples=60, deadline=None)
@given(
    known=st.sets(st.sampled_from("abcdef")),
    pages=st.lists(st.sampled_from("abcdef"), min_size=6, max_size=6, unique=True),
    turns=st.lists(st.integers(0, 2), max_size=30),
)
def test_of_listings_at_once_none_makes_missing_what_is_there_and_all_find_what_is_gone(
    known: set[str], pages: list[str], turns: list[int]
) -> None:
    """Three looks at one directory, a page a file that changes, whose pages and ends come in any order."""
    ledger = Ledger("sqlite://", "default")
    ledger.record_listing([listed("gone"), *(listed(name) for name in sorted(known))], ledger.begin_listing())
    under_way: list[tuple[int, list[str]] | None] = [None, None, None]
    for turn in [*turns, *(look for look in range(3) for _ in range(8))]:
        number, left = under_way[turn] or (ledger.begin_listing(), list(pages))
        if left:
            ledger.record_listing([listed(left.pop(), 1 + number % 2)], number)
        else:
            ledger.complete_listing(number)
        under_way[turn] = number, left
        assert {row.file_id for row in ledger.files().values() if row.missing_since is not None} <= {"gone"} | known - set(pages)
    assert ledger.files()["gone"].missing_since is not None
    assert all(ledger.files()[name].missing_since is None for name in pages)
    ledger.close()


def test_a_run_gets_no_lease_on_a_file_that_is_being_removed_or_is_gone(ledger: Ledger) -> None:
    ledger.record_listing([listed("a"), listed("b"), listed("c")], 1)
    ledger.update_files([{"file_id": "a", "status": "removing"}, {"file_id": "b", "status": "removed"}])
    assert ledger.claim(["a", "b", "c"], "run-1", seconds=60) == ["c"]
    assert ledger.claim(["a", "b"], "removal", seconds=60, leaving=True) == ["a", "b"]


def test_a_lease_is_held_by_one_run_until_it_ends_or_expires(ledger: Ledger, clock: Clock) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    assert ledger.claim(["b", "a"], "run-1", seconds=60) == ["b", "a"]
    assert ledger.claim(["a"], "run-2", seconds=60) == []
    assert ledger.holders(["a", "b"]) == {"run-1"}
    assert ledger.claim(["a"], "run-2", seconds=60, dead_runs=["run-1"]) == ["a"]
    clock.now += 61
    assert ledger.claim(["b"], "run-3", seconds=60) == ["b"]
    ledger.drop_leases("run-3")
    assert ledger.claim(["b"], "run-4", seconds=60) == ["b"]


def test_a_run_renews_and_gives_back_its_own_leases_alone(ledger: Ledger, clock: Clock) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    ledger.claim(["a"], "run-1", seconds=60)
    ledger.claim(["b"], "run-2", seconds=60)
    ledger.renew("run-1", seconds=120)
    clock.now += 61
    assert ledger.holders(["a", "b"]) == {"run-1"}
    ledger.renew("run-2", seconds=60)
    ledger.drop_leases("run-1")
    assert ledger.holders(["a", "b"]) == {"run-2"}


def test_an_unknown_file_cannot_be_leased(ledger: Ledger) -> None:
    assert ledger.claim(["nobody"], "run-1", seconds=60) == []


def test_failures_back_off_then_park_and_a_change_releases(ledger: Ledger, clock: Clock) -> None:
    ledger.record_listing([listed("a")], 1)
    for attempt in (1, 2):
        ledger.record_failures({"a": "boom"}, run_id="r", max_attempts=2, backoff=lambda n: 10.0 * n, settings_digest="s")
        row = ledger.files()["a"]
        assert row.attempts == attempt
        assert row.next_retry_at == clock.now + 10.0 * attempt
    assert ledger.files()["a"].status == "parked"
    ledger.record_listing([listed("a", 2)], 2)
    assert ledger.files()["a"].status == "new"
    assert ledger.files()["a"].attempts == 0
    ledger.record_failures({"a": "boom"}, run_id="r", max_attempts=2, backoff=lambda n: 10.0 * n, settings_digest="s")
    assert (ledger.files()["a"].status, ledger.files()["a"].attempts) == ("failed", 1)


def test_failures_before_a_success_do_not_count_towards_parking(ledger: Ledger) -> None:
    def fail() -> str:
        ledger.record_failures({"a": "boom"}, run_id="r", max_attempts=3, backoff=lambda _: 0.0, settings_digest="s")
        return ledger.files()["a"].status

    ledger.record_listing([listed("a")], 1)
    assert [fail(), fail()] == ["failed", "failed"]
    ledger.record_done(["a"], "s")
    assert [fail(), fail(), fail()] == ["failed", "failed", "parked"]


def test_a_sink_that_is_down_backs_off_and_starts_over_once_it_has_answered(ledger: Ledger, clock: Clock) -> None:
    def told(*errors: str | None) -> tuple[int, float | None, str | None]:
        for error in errors:
            ledger.record_sink_state("qdrant", error=error, backoff=lambda n: 5.0 * n)
        state = ledger.sink_states()["qdrant"]
        return state.attempts, state.down_until, state.last_error

    assert told("refused", "refused") == (2, clock.now + 10.0, "refused")
    assert told(None, None) == (0, None, None)
    assert told("refused") == (1, clock.now + 5.0, "refused")


def test_a_file_listed_again_during_its_removal_starts_over(ledger: Ledger) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    ledger.update_files([{"file_id": f, "status": "removing", "fetched_token": "t", "payload_digest": "d"} for f in ("a", "b")])
    ledger.record_listing([listed("a")], 2)
    assert (ledger.files()["a"].fetched_token, ledger.files()["b"].fetched_token) == (None, "t")
    ledger.record_removed(["a", "b"], run_id="r")
    rows = ledger.files()
    assert (rows["a"].status, rows["a"].fetched_token) == ("new", None)
    assert (rows["b"].status, rows["b"].fetched_token, rows["b"].payload_digest) == ("removed", None, None)


def test_a_file_that_is_being_removed_by_now_is_not_done(ledger: Ledger) -> None:
    ledger.record_listing([listed("a"), listed("b"), listed("c")], 1)
    ledger.update_files([{"file_id": "a", "status": "removing"}, {"file_id": "b", "status": "removed"}])
    ledger.record_done(["a", "b", "c"], "digest")
    assert [row.status for row in ledger.files().values()] == ["removing", "removed", "done"]


def test_what_was_decided_of_a_file_before_it_was_listed_again_is_not_done(ledger: Ledger) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    ledger.record_listing([listed("b")], 2)
    ledger.complete_listing(2)
    ledger.mark_removing(["a", "b"])
    assert {file_id: row.status for file_id, row in ledger.files().items()} == {"a": "removing", "b": "new"}
    ledger.request(["a", "b"], "wave")
    assert {file_id: row.status for file_id, row in ledger.files().items()} == {"a": "removing", "b": "requested"}
    ledger.record_removed(["a"], run_id="r")
    ledger.record_listing([listed("a")], 3)
    ledger.forget(["a"], run_id=None)
    assert ledger.files()["a"].status == "new"


def make(ledger: Ledger, file_id: str) -> None:
    """Note what a run notes of a file: vectors, a sink that holds it, another that refuses it."""
    ledger.vectors.replace("m", {file_id: [b"1" * 16]})
    ledger.register.record_collection(HELD)
    ledger.record_sink(HELD, {file_id: "hash"})
    ledger.register.record_refusals("pinecone", {file_id: "hash"})


def test_of_a_removed_file_its_history_alone_is_left(ledger: Ledger, url: str) -> None:
    engine = sa.create_engine(url)

    def left() -> set[str]:
        with engine.begin() as connection:
            tables = [table for table in schema.metadata.sorted_tables if "file_id" in table.c]
            return {table.name for table in tables if connection.execute(sa.select(table).filter_by(file_id="a")).first()}

    ledger.record_listing([listed("a")], 1)
    make(ledger, "a")
    ledger.update_files([{"file_id": "a", "status": "removing"}])
    ledger.record_removed(["a"], run_id="r")
    assert left() == {schema.files.name, schema.history.name}
    make(ledger, "a")  # by a run that has slept longer than its lease
    ledger.forget(["a"], run_id="r")
    assert left() == {schema.history.name}
    assert [event.event for event in ledger.history("a")] == ["listed", "removed", "forgotten"]
    engine.dispose()


def test_of_an_erased_file_the_ledger_tells_that_it_failed_and_not_why(ledger: Ledger, tmp_path: Path) -> None:
    def fail(*file_ids: str) -> None:
        why = dict.fromkeys(file_ids, "Zwiebelfisch is no year")
        ledger.record_failures(why, run_id="r", max_attempts=3, backoff=lambda _: 0.0, settings_digest="s")

    ledger.record_listing([dataclasses.replace(listed(file_id), metadata={"year": "Zwiebelfisch"}) for file_id in ("a", "b")], 1)
    before = ledger.files()["b"].metadata
    fail("a", "b")
    ledger.forget_content(["a"])
    assert [(row.last_error, row.metadata) for row in ledger.files().values()] == [
        (None, "{}"),
        ("Zwiebelfisch is no year", before),
    ]
    assert [event.event for event in ledger.history("a")] == ["listed", "failed"]
    assert [json.loads(event.details) for event in ledger.history("a")] == [{}, {"attempt": 1}]
    assert "Zwiebelfisch" in ledger.history("b")[-1].details
    fail("a")
    fail("a")
    assert ledger.files()["a"].status == "parked", "what it has failed before counts"
    ledger.forget_content(["a", "b", "unknown"])
    ledger.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"Zwiebelfisch" in path.read_bytes()]


def test_two_exports_share_a_database_without_seeing_each_other(ledger: Ledger, url: str) -> None:
    other = Ledger(url, "other")
    other.record_listing([listed("a")], 1)
    other.update_state(change_key="k")
    assert ledger.files() == {}
    assert ledger.state().change_key is None
    assert other.state().change_key == "k"
    other.close()


def test_thousands_of_files_are_recorded_and_read_back(ledger: Ledger) -> None:
    ids = [f"dfl-{n:05d}" for n in range(3_000)]
    assert ledger.record_listing((listed(file_id) for file_id in ids), 1) == (3_000, 0)
    assert list(ledger.files(ids[500:2_500])) == ids[500:2_500]
    assert ledger.claim(ids, "run", seconds=60) == ids


def test_a_database_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "default")
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute(f"DROP TABLE {schema.history.name}")
    with pytest.raises(LedgerUnavailable, match=r"ledger\.sqlite cannot be used: no such table: .*; check its space"):
        ledger.log([("dfl-1", "listed", {})], run_id=None)


def test_only_what_is_failed_or_parked_gets_a_fresh_start(ledger: Ledger) -> None:
    ledger.record_listing([listed(name) for name in ("done", "failed", "parked")], 1)
    ledger.record_done(["done"], "settings")
    for name in ("failed", "parked"):
        ledger.update_files([{"file_id": name, "status": name, "attempts": 5}])
    ledger.release(["done", "failed", "parked"])
    assert {row.file_id: (row.status, row.attempts) for row in ledger.files().values()} == {
        "done": ("done", 0),
        "failed": ("new", 0),
        "parked": ("new", 0),
    }
