"""What needs doing: the ledger's rows compared with what they should be.

Reads the ledger; writes nothing and decides nothing about runs. Both the sensor and ``indexport plan`` ask here, so the plan is
what the sync does.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.clock import is_awaited
from pipeline.lake.lake import DATASETS
from pipeline.ledger.models import MODEL, FileRow
from pipeline.stages.export import LONGEST_FILE_WAIT, LONGEST_SINK_WAIT, Export


@dataclass(slots=True)
class Needs:
    """File ids by what they need. A file is in at most one of ``ingest`` (its subsets ``new``, ``changed``, ``stale``),
    ``alone`` and the lists of ``lagging``; one that waits for its next attempt (``backing_off``, ``parked``) may lag in sinks
    that have not refused it."""

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """Made with other settings."""
    alone: list[str] = field(default_factory=list)
    """Failed before and due again."""
    lagging: dict[str, list[str]] = field(default_factory=dict)
    """Sink -> files whose current records it does not hold."""
    unreachable: dict[str, list[str]] = field(default_factory=dict)
    """The same of sinks that are down and back off; under ``MODEL`` the files that wait for it."""
    backing_off: list[str] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)
    removable: list[str] = field(default_factory=list)
    awaiting_grace: list[str] = field(default_factory=list)
    awaiting_approval: list[str] = field(default_factory=list)
    removing: list[str] = field(default_factory=list)
    """Marked for removal by an earlier look."""
    blocked: list[str] = field(default_factory=list)
    """To be removed, and held by no sink but those that are down and back off."""
    standing: list[str] = field(default_factory=list)
    """Nothing is left to do for them, and they are not noted as done yet: asked for and in no live wave, or failed for what has
    left the settings."""
    removed: list[str] = field(default_factory=list)
    """Gone from every sink; their partition keys can go too."""
    approved_nothing: bool = False
    """An approval of deletes is left, and no file is missing."""

    @property
    def ingest(self) -> list[str]:
        return [*self.changed, *self.stale, *self.new]

    @property
    def wanted(self) -> list[str]:
        """The files that can be worked on now."""
        return [*self.ingest, *self.alone, *_of_any_sink(self.lagging)]

    @property
    def due(self) -> list[str]:
        """The files for which something can be done now."""
        return [*self.wanted, *self.removable, *self.removing]

    @property
    def without_a_sink(self) -> list[str]:
        """The files that some sink will not hold, or not let go, until it, or the model, is up again."""
        return [*_of_any_sink(self.unreachable), *self.blocked]


def _of_any_sink(files: Mapping[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(file_id for of_sink in files.values() for file_id in of_sink))


def needs_of(export: Export, scope: tuple[str, str], *, live_waves: Collection[str] = ()) -> Needs:
    """Sort every known file by what it needs now. ``live_waves`` are waves that unfinished runs still carry."""
    rows = export.ledger.files()
    hashes, refusals = export.sink_hashes(), export.ledger.register.refusals()
    needs = Needs(lagging={sink: [] for sink in export.settings.sinks})
    for row in rows.values():
        if row.missing_since is not None or row.is_leaving:
            continue
        _sort(export, row, scope, needs, hashes, refusals, live_waves)
    needs.new, needs.changed, needs.stale = (in_order_of_update(rows, of) for of in (needs.new, needs.changed, needs.stale))
    _sort_missing(export, rows, needs)
    down = {name for name, state in export.ledger.sink_states().items() if is_awaited(state.down_until, LONGEST_SINK_WAIT)}
    needs.unreachable = {sink: files for sink, files in needs.lagging.items() if sink in down}
    needs.lagging = {sink: files for sink, files in needs.lagging.items() if sink not in down}
    if needs.unreachable:
        _hold_back(needs, {file_id for sink in needs.lagging for file_id in hashes.get(sink, {})})
    if MODEL in down:
        needs.unreachable[MODEL] = [*needs.ingest, *needs.alone]
        needs.new, needs.changed, needs.stale, needs.alone = [], [], [], []
    return needs


def in_order_of_update(rows: Mapping[str, FileRow], file_ids: Iterable[str]) -> list[str]:
    """Those that LlamaCloud has updated one after the other are neighbours: of them a run asks for the listing of a short span of
    time, whose page has the URLs of all, while of files from all over the directory it would ask for most URLs one by one."""
    return sorted(file_ids, key=lambda file_id: (rows[file_id].updated_at or 0.0, file_id))


def awaiting_approval(export: Export, rows: Mapping[str, FileRow]) -> list[str]:
    """Those of these, all the files of the ledger, that the fuse keeps from being deleted. Needs no model."""
    needs = Needs()
    _sort_missing(export, rows, needs)
    return needs.awaiting_approval


def standing_files(export: Export, rows: Mapping[str, FileRow], scope: tuple[str, str]) -> dict[str, list[str]]:
    """Those of these files that need nothing more, by dataset of the lake and by sink."""
    hashes = export.sink_hashes(rows)
    made = [row for row in rows.values() if export.vectors_are_current(row)]
    current = [row for row in made if export.records_are_current(row, scope)]
    in_lake = [row.file_id for row in made]
    return dict.fromkeys(DATASETS, in_lake) | {
        sink: [row.file_id for row in current if _has(hashes, sink, row)] for sink in export.settings.sinks
    }


def _sort(
    export: Export,
    row: FileRow,
    scope: tuple[str, str],
    needs: Needs,
    hashes: Mapping[str, Mapping[str, str]],
    refusals: Mapping[str, Mapping[str, str]],
    live_waves: Collection[str],
) -> None:
    if row.status == "requested" and row.wave in live_waves:
        needs.in_flight.append(row.file_id)
    elif row.is_failing and row.settings_digest == export.failure_digest:
        if row.status == "parked":
            needs.parked.append(row.file_id)
        elif is_awaited(row.next_retry_at, LONGEST_FILE_WAIT):
            needs.backing_off.append(row.file_id)
        else:
            needs.alone.append(row.file_id)
            return
        if row.wave not in live_waves and export.records_are_current(row, scope):
            for sink, files in needs.lagging.items():
                if not (_has(hashes, sink, row) or _has(refusals, sink, row)):
                    files.append(row.file_id)
    elif not export.vectors_are_current(row):
        if row.record_set_hash is None:
            needs.new.append(row.file_id)
        else:
            made_so = row.settings_digest in (export.settings_digest, export.failure_digest)
            (needs.changed if made_so else needs.stale).append(row.file_id)
    else:
        current = export.records_are_current(row, scope)
        lagging = [files for sink, files in needs.lagging.items() if not (current and _has(hashes, sink, row))]
        for files in lagging:
            files.append(row.file_id)
        if not lagging and row.status != "done":
            needs.standing.append(row.file_id)


def _has(hashes: Mapping[str, Mapping[str, str]], sink: str, row: FileRow) -> bool:
    """Whether the present record set of this file is what is recorded of the sink."""
    return hashes.get(sink, {}).get(row.file_id) == row.record_set_hash


def _hold_back(needs: Needs, held: Collection[str]) -> None:
    """Of the files to be removed those that no sink which is up has ``held``: nothing can be done for them now."""
    needs.blocked = [file_id for file_id in (*needs.removing, *needs.removable) if file_id not in held]
    needs.removing = [file_id for file_id in needs.removing if file_id in held]
    needs.removable = [file_id for file_id in needs.removable if file_id in held]


def _sort_missing(export: Export, rows: Mapping[str, FileRow], needs: Needs) -> None:
    """Deletes need evidence: a complete listing after the grace period, and no more of them than the fuse lets through."""
    now = time.time()
    state = export.ledger.state()
    removal, grace = export.settings.removal, export.grace_period(state)
    ready: list[str] = []
    for row in rows.values():
        if row.status == "removing":
            needs.removing.append(row.file_id)
        elif row.status == "removed":
            needs.removed.append(row.file_id)
        elif row.missing_since is not None:
            over = row.missing_since + grace
            proven = state.complete_at is not None and over <= state.complete_at <= now
            (ready if proven else needs.awaiting_grace).append(row.file_id)
    window = max(grace, 3600)
    recent = export.ledger.count_removed(now - window, now + window)  # of a machine whose clock is ahead, but not for ever
    recent += len(set(needs.removing) - export.ledger.register.tombstones().keys())
    known = len(rows) - len(needs.removed) - len(needs.removing) + recent
    over_the_fuse = len(ready) + recent > removal.most_deletes(known) and len(ready) > state.allowed_deletes
    (needs.awaiting_approval if over_the_fuse else needs.removable).extend(ready)
    needs.approved_nothing = state.allowed_deletes > 0 and not (ready or needs.awaiting_grace)
