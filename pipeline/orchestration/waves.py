"""Waves: needs turned into runs that carry many files each.

Appending keys is always safe; moving or deleting them waits for a quiet moment, because a queued range would otherwise
resolve to other keys. Everything here can be repeated: a crash between two lines is healed by the next look.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from pipeline.lake.lake import DATASETS
from pipeline.orchestration.assets import asset_key
from pipeline.orchestration.broken_runs import note_what_stands
from pipeline.orchestration.liveness import end_dead_runs
from pipeline.orchestration.partitions import (
    EXPORT_TAG,
    FILES_TAG,
    LANE_TAG,
    RANGE_END,
    RANGE_START,
    WAVE_TAG,
    add_keys,
    contiguous_ranges,
    delete_keys,
    is_quiet,
    key_order,
    told_by,
    unfinished_runs,
)
from pipeline.orchestration.standing import report_standing
from pipeline.stages.export import Export
from pipeline.stages.needs import Needs, in_order_of_update, needs_of
from pipeline.stages.settings import ExportSettings

MAX_RANGES = 8
"""More ranges than this cost more in run starts than moving the keys together does."""
_KEYS_A_RUN = 100
"""More keys than this that are moved for one run less are not worth it: where nearly all are wanted, they stay as they lie."""
_MAX_RUNS = 50
"""Runs handed out at once; the next look hands out more."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run: these files through these assets (``None``: every asset of the export)."""

    keys: tuple[str, ...]
    assets: tuple[str, ...] | None
    wave: str
    lane: str
    alone: bool = False

    @property
    def partition_key(self) -> str | None:
        """A lone file is a plain partition, so that its failure is a failed partition anyone can see; others are a range."""
        return self.keys[0] if self.alone else None

    def selection(self, settings: ExportSettings) -> list[dg.AssetKey] | None:
        """``assets`` as Dagster takes them."""
        return [asset_key(settings, asset) for asset in self.assets] if self.assets else None

    def tags(self, export: str) -> dict[str, str]:
        tags = {EXPORT_TAG: export, WAVE_TAG: self.wave, LANE_TAG: self.lane, FILES_TAG: str(len(self.keys))}
        return tags if self.alone else {**tags, RANGE_START: self.keys[0], RANGE_END: self.keys[-1]}


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What a look hands out. ``waiting_since`` is when scattered changes began to wait for a quiet moment."""

    needs: Needs
    runs: tuple[RunSpec, ...]
    removals: tuple[str, ...]
    waiting_since: float | None
    restoring: bool
    """Dagster is not told of all that stands yet."""
    settled: bool = False
    """Nothing runs and nothing is to be run."""


def dispatch(
    instance: dg.DagsterInstance,
    export: Export,
    scope: tuple[str, str],
    *,
    waiting_since: float | None = None,
    restore: bool = False,
    wanted: Callable[[RunSpec], bool] = lambda _spec: True,
) -> Dispatch:
    """Decide which runs to start now, and note in the ledger what they carry. Changes the order of partition keys.

    With ``restore`` Dagster is told again of every file and of all that stands, as after the loss of the instance.
    Runs that are not ``wanted`` are not handed out, and their files stay as they are.
    """
    end_dead_runs(instance, export.name)
    note_what_stands(instance, export, scope)
    running = unfinished_runs(instance, export.name)
    needs = needs_of(export, scope, live_waves={told_by(run, WAVE_TAG) or "" for run in running})
    if needs.standing:
        export.settle(needs.standing, scope)
    restoring = restore and not _restored(instance, export, scope)
    quiet = is_quiet(instance, export.name)
    if quiet and needs.removed:
        delete_keys(instance, export.name, needs.removed)
        export.ledger.forget(needs.removed, run_id=None)
    if quiet and restore:
        _drop_keys_of_erased_files(instance, export)
    removals = _mark_removals(export, needs, any(run.tags.get(LANE_TAG) == "removal" for run in running))
    if not needs.wanted:
        return Dispatch(needs, (), removals, None, restoring, settled=quiet and not (running or removals))
    _add_new_keys(instance, export.name, needs.wanted)
    wave = uuid.uuid4().hex
    lagging = needs.lagging
    up = None if len(lagging) == len(export.settings.sinks) else (*DATASETS, *lagging)
    alone = [RunSpec((key,), up, wave, "retry", alone=True) for key in needs.alone]
    runs, waits = [], []
    for assets, lane, files in ((up, "incremental", needs.ingest), *((of, "sinks", f) for of, f in _by_sinks(lagging).items())):
        ranges, since = _arrange(instance, export, files, quiet=quiet, waiting_since=waiting_since)
        runs += [RunSpec(tuple(keys), assets, wave, lane) for keys in ranges]
        waits += [since] if since is not None else []
    runs = sorted(runs + alone, key=lambda run: run.lane == "sinks")
    runs = [run for run in runs if wanted(run)][:_MAX_RUNS]
    waiting = {*needs.backing_off, *needs.parked}
    export.ledger.request(sorted({key for run in runs for key in run.keys}), wave, waiting=waiting)
    return Dispatch(needs, tuple(runs), removals, min(waits, default=None), restoring)


def _restored(instance: dg.DagsterInstance, export: Export, scope: tuple[str, str]) -> bool:
    """Give every known file its partition key, and Dagster what it lacks of what stands; answers whether that is all."""
    rows = {file_id: row for file_id, row in export.ledger.files().items() if not row.is_leaving}
    _add_new_keys(instance, export.name, in_order_of_update(rows, rows))
    return report_standing(instance, export, rows, scope, made_by="a run that a former instance knew")


def _drop_keys_of_erased_files(instance: dg.DagsterInstance, export: Export) -> None:
    """Of those that were erased before the loss of the ledger, which knows their tombstones alone since."""
    erased = export.ledger.register.tombstones().keys() & key_order(instance, export.name)
    delete_keys(instance, export.name, erased - export.ledger.files(erased).keys())


def _by_sinks(lagging: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], list[str]]:
    """Files by the set of sinks they lag in, so that one run serves them all."""
    sinks_of: dict[str, list[str]] = defaultdict(list)
    for sink, files in lagging.items():
        for file_id in files:
            sinks_of[file_id].append(sink)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for file_id, sinks in sinks_of.items():
        groups[tuple(sinks)].append(file_id)
    return groups


def _mark_removals(export: Export, needs: Needs, running: bool) -> tuple[str, ...]:
    """Mark what may go; answers what a removal run should take now: not what another holds. An approval is used up by what
    it was for, and not kept for what goes missing later."""
    if needs.removable:
        export.ledger.mark_removing(needs.removable)
    if needs.removable or needs.approved_nothing:
        export.ledger.update_state(allowed_deletes=0)
    going = [*needs.removing, *needs.removable]
    if running or not going:
        return ()
    held = export.held(export.ledger.files(going).values())
    return tuple(file_id for file_id in going if file_id not in held)


def _add_new_keys(instance: dg.DagsterInstance, export: str, wanted: Sequence[str]) -> None:
    have = set(key_order(instance, export))
    missing = [key for key in wanted if key not in have]
    if missing:
        add_keys(instance, export, missing)


def _arrange(
    instance: dg.DagsterInstance,
    export: Export,
    wanted: Sequence[str],
    *,
    quiet: bool,
    waiting_since: float | None,
) -> tuple[list[list[str]], float | None]:
    """Contiguous ranges of the wanted keys, and since when they wait: as they lie when there are few, or not many more than there
    must be, else moved to the tail in a quiet moment."""
    detection = export.settings.detection
    ranges = list(contiguous_ranges(key_order(instance, export.name), wanted, detection.files_per_run))
    needed = -(-len(wanted) // detection.files_per_run)
    if len(ranges) <= max(MAX_RANGES, needed) or len(wanted) > _KEYS_A_RUN * (len(ranges) - needed):
        return ranges, None
    if quiet:
        delete_keys(instance, export.name, wanted)
        add_keys(instance, export.name, wanted)
        return list(contiguous_ranges(key_order(instance, export.name), wanted, detection.files_per_run)), None
    now = time.time()
    since = min(waiting_since or now, now)  # one to come is of a clock that was ahead
    if now - since >= detection.max_wait_seconds:
        return ranges[:MAX_RANGES], since
    full = [keys for keys in ranges if len(keys) >= detection.files_per_run]
    return full, since
