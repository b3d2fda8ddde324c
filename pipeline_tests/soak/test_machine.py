"""Any sequence of edits, outages, faults and deaths; once work settles, every sink holds what the source says.

`make test` runs a few short sequences, `make soak` new ones for SOAK_SECONDS.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from pipeline.errors import SinkUnavailable, SourceUnavailable
from pipeline.orchestration.partitions import UNFINISHED
from pipeline.sinks.base import Exporter
from pipeline.sinks.lancedb import LanceDBExporter
from pipeline.sinks.qdrant import QdrantExporter
from pipeline_tests.emulators.qdrant import QdrantEmulator
from pipeline_tests.soak.crash import Killed, dies_at_write
from pipeline_tests.soak.kills import SECONDS, only_in_the_soak_of_seconds
from pipeline_tests.soak.watcher import Watcher
from pipeline_tests.world import open_world

NAMES = st.sampled_from(["a.md", "b.md", "c.md"])
SINKS = ("lancedb", "qdrant")
ANCHOR = "anchor.md"
LOOKS_TO_SETTLE = 4
QDRANT_WRITES = ("upsert", "delete", "set_payload", "delete_payload", "batch")
CUT_LISTINGS: list[dict[str, Any]] = [{"fail_listing_at_page": 2, "page_size_cap": 1}, {"hidden_files": ["*"]}]
BOUNDS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)


def text(name: str, paragraphs: int, word: str) -> str:
    """An empty file, or one of about as many chunks as paragraphs."""
    body = "\n\n".join(f"## Part {n}\n\n" + f"The {word} gauge of {name} reads {n} metres. " * 6 for n in range(paragraphs))
    return f"# {name}\n\n{body}\n" if paragraphs else ""


class Machine(RuleBasedStateMachine):
    """A folder, its cloud, an export and two sinks: one atomic, one not."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.emulator = self.stack.enter_context(QdrantEmulator())
        self.watcher = Watcher(self.emulator)
        self.down: set[str] = set()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("QDRANT_API_KEY", self.emulator.api_key)
        for name, exporter in (("lancedb", LanceDBExporter), ("qdrant", QdrantExporter)):
            patch.setattr(exporter, "provision", self._unless_down(name, exporter))
        root = Path(self.stack.enter_context(TemporaryDirectory()))
        self.world = self.stack.enter_context(
            open_world(
                root,
                sinks={"lancedb": {}, "qdrant": {"url": self.emulator.url}},
                chunking={"max_tokens": 64},
                removal={"grace_period_seconds": 0, "max_delete_fraction": 1.0},
            )
        )
        self.metadata: dict[str, dict[str, str]] = {}
        """Of every file there is; ANCHOR is always there, because an empty directory deletes nothing."""
        self.protected: set[str] = set()
        self.protected_model = 384
        self.poisoned: set[str] = set()
        self.faulty = False
        self.write(ANCHOR, 2, "anchor")
        self.settle()

    def _unless_down(self, name: str, exporter: type[Exporter]) -> Callable[[Exporter], Awaitable[None]]:
        provision = exporter.provision

        async def reached(sink: Exporter) -> None:
            if name in self.down:
                raise SinkUnavailable(f"{name} does not answer")
            await provision(sink)

        return reached

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.stack.close()

    @rule(name=NAMES, paragraphs=st.integers(0, 6), word=st.sampled_from(["river", "rain", "frost"]))
    def write(self, name: str, paragraphs: int, word: str) -> None:
        """Adds, edits, grows, shrinks, empties, brings back."""
        if not paragraphs:
            self._may_go(name)
        self.world.write(name, text(name, paragraphs, word))
        self.metadata.setdefault(name, {})

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        if name in self.metadata:
            self._may_go(name)
            self._unlink(name)

    @rule(name=NAMES, other=NAMES)
    def rename(self, name: str, other: str) -> None:
        """To a free name, or over another file."""
        if name not in self.metadata or name == other:
            return
        content = (self.world.documents / name).read_text(encoding="utf-8")
        self.remove(name)
        self.remove(other)
        self.world.write(other, content)
        self.metadata[other] = {}

    @rule(name=NAMES, team=st.sampled_from(["gauges", "boats", "O'Brien"]))
    def change_metadata(self, name: str, team: str) -> None:
        if name in self.metadata:
            self.world.write(f"{name}.meta.json", json.dumps({"team": team}))
            self.metadata[name] = {"team": team}

    @rule(dimension=st.sampled_from([24, 384]))
    def change_model(self, dimension: int) -> None:
        self.world.change(embedding={"provider": "constant", "constant_dimension": dimension})

    @rule(max_tokens=st.sampled_from([48, 96]))
    def change_chunker(self, max_tokens: int) -> None:
        self.world.change(chunking={"max_tokens": max_tokens})

    @rule(sink=st.sampled_from(SINKS))
    def sink_down_or_up(self, sink: str) -> None:
        self.down ^= {sink}

    @rule(name=NAMES)
    def poison_or_cure(self, name: str) -> None:
        self.poisoned ^= {name}
        self._cloud_faults()

    @rule(requests=st.integers(1, 4))
    def throttle(self, requests: int) -> None:
        self._cloud_faults(rate_limited_requests=requests, retry_after_seconds=0.01, expired_blob_requests=requests)
        self.emulator.fail("upsert", 429, retry_after="0")

    @rule(operation=st.sampled_from(QDRANT_WRITES), times=st.integers(1, 2))
    def lose_answers(self, operation: str, times: int) -> None:
        """A timeout after the request was done."""
        self.emulator.lose_answer(operation, times=times)

    @rule(fault=st.sampled_from(CUT_LISTINGS))
    def sync_with_a_cut_listing(self, fault: dict[str, Any]) -> None:
        """Nothing is deleted on its word."""
        self._cloud_faults(**fault)
        self.sync()
        self._cloud_faults()

    @rule()
    def sync(self) -> None:
        try:
            self.world.sync()
        except SourceUnavailable:
            assert self.faulty
        self._check_readers()

    @rule(after=st.integers(1, 90))
    def kill(self, after: int) -> None:
        """The process dies at one of its writes, or lives where it has fewer."""
        with dies_at_write(after, LanceDBExporter, QdrantExporter) as death:
            try:
                self.world.sync()
            except (Killed, SourceUnavailable):
                assert death.struck or self.faulty
        self._check_readers()

    @rule(name=NAMES, paragraphs=st.integers(1, 6), after=st.integers(1, 90), same_time=st.booleans())
    def kill_and_undo(self, name: str, paragraphs: int, after: int, same_time: bool) -> None:
        """The process dies over an edit that is then taken back."""
        if name not in self.metadata:
            return
        path = self.world.documents / name
        before, times = path.read_text(encoding="utf-8"), path.stat()
        self.world.write(name, text(name, paragraphs, "flood"))
        self.kill(after)
        self.world.write(name, before)
        if same_time:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    @rule()
    def settle(self) -> None:
        """All faults end, and with as many looks as a sensor would soon take, everything stands."""
        self.down.clear()
        self.poisoned.clear()
        self._cloud_faults()
        self.emulator.heal()
        for _ in range(LOOKS_TO_SETTLE):
            ledger = self.world.export.ledger
            ledger.release([file_id for file_id, row in ledger.files().items() if row.is_failing])
            for sink in SINKS:
                ledger.record_sink_state(sink, error=None, backoff=lambda _attempts: 0.0)
            report = self.world.sync()
            if report.ok:
                break
        else:
            pytest.fail(f"after {LOOKS_TO_SETTLE} looks there is still: {report.needs}")
        self._check_settled()

    def _check_settled(self) -> None:
        with_records = {name for name in self.metadata if (self.world.documents / name).stat().st_size}
        for sink in SINKS:
            self.world.assert_settled(sink)
            assert {r.file_name: r.metadata for r in self.world.held(sink)} == {n: self.metadata[n] for n in with_records}
        self._check_readers()
        rows = self.world.export.ledger.files()
        assert {row.display_name: row.status for row in rows.values()} == dict.fromkeys(self.metadata, "done")
        assert set(self.world.instance.get_dynamic_partitions("default_files")) == set(rows)
        assert not self.world.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        assert not [run_id for run_id in self.world.export.ledger.holders(list(rows)) if self.world.export.run_is_live(run_id)]
        self.protected = {file_id for file_id, row in rows.items() if row.display_name in with_records}
        self.protected_model = self.world.export.embedder.identity.dimension
        self.watcher.protect(self.protected)

    def _check_readers(self) -> None:
        """Never neither version, and in the atomic store never a mix of both."""
        assert not self.watcher.violations
        versions: dict[str, set[str]] = defaultdict(set)
        counts: dict[str, list[int]] = defaultdict(list)
        for record in self.world.held("lancedb") if "lancedb" not in self.down else ():
            versions[record.parsed_directory_file_id].add(record.record_set_hash)
            counts[record.parsed_directory_file_id].append(record.chunk_count)
        assert all(len(of_file) == 1 for of_file in versions.values()), versions
        assert all(set(of_file) == {len(of_file)} for of_file in counts.values()), counts
        if "lancedb" not in self.down and self.world.export.embedder.identity.dimension == self.protected_model:
            assert self.protected <= versions.keys()

    def _cloud_faults(self, **faults: Any) -> None:
        self.faulty = bool(faults or self.poisoned)
        self.world.faults(payloads=dict.fromkeys(sorted(self.poisoned), "truncated"), **faults)

    def _may_go(self, name: str) -> None:
        """What the sinks hold of this file need not stay."""
        ids = {file_id for file_id, row in self.world.export.ledger.files().items() if row.display_name == name}
        self.protected -= ids
        self.watcher.protect(self.protected)

    def _unlink(self, name: str) -> None:
        self.world.remove(name)
        (self.world.documents / f"{name}.meta.json").unlink(missing_ok=True)
        del self.metadata[name]


def test_work_settles_after_any_short_sequence() -> None:
    run_state_machine_as_test(Machine, settings=settings(BOUNDS, max_examples=2, stateful_step_count=8, phases=[Phase.generate]))


@only_in_the_soak_of_seconds
def test_work_settles_after_any_long_sequence_until_time_is_up() -> None:
    deadline = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < deadline:
        run_state_machine_as_test(
            Machine, settings=settings(BOUNDS, max_examples=2, stateful_step_count=40, phases=[Phase.generate])
        )
        rounds += 1
    assert rounds
