"""What is recorded of sinks and models, each beside others of the same export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.ledger import Ledger
from pipeline.ledger.models import SinkCollection
from pipeline_tests.ledger.test_ledger import listed


def hold(ledger: Ledger, sink: str, model: str, hashes: Mapping[str, str]) -> SinkCollection:
    """A run has taken a sink into use and loaded these files."""
    held = SinkCollection(sink, model, model, model, 3, {"type": "lancedb", "uri": "here"})
    ledger.register.record_collection(held)
    ledger.record_sink(held, hashes)
    return held


def test_what_is_loaded_where_a_sink_is_no_more_counts_for_nothing(ledger: Ledger) -> None:
    former = hold(ledger, "lancedb", "m", {"a": "hash"})
    present = replace(former, settings={"type": "lancedb", "uri": "there"})
    ledger.register.record_collection(present)
    ledger.record_sink(former, {"a": "hash"})
    assert ledger.sink_hashes() == {}
    ledger.record_sink(present, {"b": "hash"})
    assert ledger.sink_hashes() == {"lancedb": {"b": "hash"}}


def test_where_a_former_model_was_written_says_nothing_of_the_present_one(ledger: Ledger) -> None:
    former = SinkCollection("lancedb", "old", "Old", "old@1", 3, {"type": "lancedb", "uri": "there"})
    present = SinkCollection("lancedb", "new", "New", "new@1", 3, {"type": "lancedb", "uri": "here"})
    for held in (former, present):
        ledger.register.record_collection(held)
        ledger.record_sink(held, {"a": "hash"})
    assert ledger.register.record_collection(present)


def test_what_one_sink_lets_go_another_still_holds(ledger: Ledger) -> None:
    for sink in ("first", "second"):
        hold(ledger, sink, "m", {"a": "hash", "b": "hash"})
    ledger.register.let_go("first", ["a"])
    assert ledger.sink_hashes() == {"first": {"b": "hash"}, "second": {"a": "hash", "b": "hash"}}


def test_a_retired_model_takes_nothing_of_the_present_one_along(ledger: Ledger) -> None:
    hold(ledger, "lancedb", "old", {"a": "hash"})
    hold(ledger, "lancedb", "new", {"b": "hash"})
    ledger.register.forget_collection("lancedb", "old")
    assert ledger.sink_hashes() == {"lancedb": {"b": "hash"}}


def test_a_removed_file_that_is_found_in_a_sink_is_missing_again(ledger: Ledger) -> None:
    ledger.record_listing([listed("a"), listed("b")], 1)
    ledger.update_files([{"file_id": "a", "status": "removed"}])
    ledger.register.adopt_orphans({"a": ("a.md", 3), "b": ("b.md", 1)})
    rows = ledger.files()
    assert (rows["a"].status, rows["a"].chunk_count, rows["b"].missing_since) == ("done", 3, None)
    assert rows["a"].missing_since is not None
