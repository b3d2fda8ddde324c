"""Erasure and retirement: what leaves every place an export ever wrote to, with proof.

A tombstone comes first and stays: whatever happens afterwards, no listing brings the file back. What the source itself
holds (LlamaCloud, the documents) is the source's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

from pipeline.errors import SINK_ERRORS, ConfigError, SinkConflict
from pipeline.ledger import Ledger
from pipeline.ledger.models import SinkCollection
from pipeline.sinks.base import Exporter
from pipeline.stages.export import LEASE_SECONDS, Export
from pipeline.stages.remove import delete_from
from pipeline.stages.tombstones import entomb
from pipeline.stages.work import borrowed, provisioned, read_whole_or_closed


@dataclass(frozen=True, slots=True)
class Proof:
    """What was looked for in one place after the erasure, how, and how many records of the files were found."""

    place: str
    checked: str
    records: int


@dataclass(slots=True)
class ErasureReport:
    """``problems`` say what could not be erased or proved yet; erasing again goes on from there. ``unproved`` names places where
    all was told to go and nobody can look: erasing again proves no more."""

    file_ids: list[str]
    proofs: list[Proof] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Nothing is left to do, and nothing was found wherever one can look."""
        return not self.problems and all(proof.records == 0 for proof in self.proofs)

    @property
    def proved(self) -> bool:
        return self.done and not self.unproved


@dataclass(frozen=True, slots=True)
class Retired:
    """A collection that holds nothing of this export any more; ``kept`` says why it was not dropped, ``None`` if it was."""

    sink: str
    slug: str
    files: int
    kept: str | None


async def erase(export: Export, file_ids: Sequence[str], *, run_id: str) -> ErasureReport:
    """Remove files from every collection ever written, old versions and old models included, from the lake and the vector
    index, and what the ledger has of their content, and look whether anything is left.

    Can be run again after any failure. Raises LakeError when the lake refuses.
    """
    report = ErasureReport(sorted(set(file_ids)))
    await asyncio.to_thread(entomb, export, report.file_ids)
    async with borrowed(export, run_id):
        free = await asyncio.to_thread(_claim, export, report, run_id)
        await asyncio.to_thread(export.ledger.forget_content, free)
        await asyncio.to_thread(export.lake.delete_many, free)
        await asyncio.to_thread(export.lake.sweep, free, older_than=LEASE_SECONDS)
        scopes = await export.scopes()
        for held in await asyncio.to_thread(_collections, export):
            for scope in scopes:
                former = [] if scope == scopes[0] else [f"former {scope[1]}"]
                place = f"{held.sink} ({', '.join([held.slug, *_set_up(export, held), *former])})"
                await _erase_from(export, held, place, scope, free, report)
        if not report.problems:
            await asyncio.to_thread(export.ledger.record_removed, free, run_id=run_id)
        await asyncio.to_thread(export.ledger.vectors.drop_ended, export.run_is_live)  # digests of texts, perhaps of these files
        await asyncio.to_thread(_prove_at_home, export, report)
        report.problems += await asyncio.to_thread(_known_to_others, export, scopes[0], report.file_ids)
        if report.proved:
            await asyncio.to_thread(export.ledger.register.record_proof, free)
        await asyncio.to_thread(export.ledger.log, [(f, "erased", {"proved": report.proved}) for f in free], run_id=run_id)
    return report


def _claim(export: Export, report: ErasureReport, run_id: str) -> list[str]:
    """Files no live run can write to meanwhile; the known ones are marked, so that no run takes them up again."""
    known = export.ledger.files(report.file_ids)
    held = set(export.claim(list(known), run_id, leaving=True))
    report.problems += [
        f"{file_id} is being worked on by a run; erase it again when that has ended" for file_id in known.keys() - held
    ]
    export.ledger.update_files([{"file_id": file_id, "status": "removing"} for file_id in sorted(held)])
    return [file_id for file_id in report.file_ids if file_id not in known or file_id in held]


def _collections(export: Export) -> list[SinkCollection]:
    """Every collection this export has written and not retired, those of one sink and model next to each other."""
    present = {sink: export.held_in(sink) for sink in export.settings.sinks}
    known = list(present.values())
    for held in export.ledger.register.collections():
        now = present.get(held.sink)
        if now is None:
            known.append(held)
        elif held.slug != now.slug:
            known += _places(export, held, now)
    return known


def _places(export: Export, held: SinkCollection, now: SinkCollection) -> list[SinkCollection]:
    """A former model's collection as its sink was set up when it was written and, since nobody can tell whether the store has
    moved with all it holds, as it is set up ``now``. Of a plug-in's settings those of now alone are known."""
    here = replace(held, settings=now.settings)
    if held.settings["type"] != now.settings["type"]:
        return [held]
    return [here] if ":" in str(held.settings["type"]) or export.is_same_place(held, here) else [held, here]


def _set_up(export: Export, held: SinkCollection) -> list[str]:
    """What tells a collection of a present sink from the one where that sink is now."""
    other = held.sink in export.settings.sinks and held.settings != export.held_in(held.sink).settings
    return ["as it was set up before"] if other else []


async def _erase_from(
    export: Export, held: SinkCollection, place: str, scope: tuple[str, str], file_ids: Sequence[str], report: ErasureReport
) -> None:
    tenant_id, config = scope
    try:
        async with _opened(export, held, tenant_id) as exporter:
            await delete_from(export, held.sink, exporter, config, file_ids)
            await exporter.purge_history()
            unread = await exporter.count_unread(export_config_id=config, parsed_directory_file_ids=report.file_ids)
            report.proofs.append(await _proof(exporter, place, config, report.file_ids, unread or 0))
            if unread is None:
                report.unproved.append(
                    f"{place}: it was told to delete what its searches read, and cannot be asked whether any is left"
                )
    except SINK_ERRORS as error:
        report.problems.append(f"{place}: {error}")


async def _proof(exporter: Exporter, place: str, config: str, file_ids: Sequence[str], unread: int) -> Proof:
    snapshots = await exporter.list_snapshots(export_config_id=config, parsed_directory_file_ids=file_ids)
    records = max(unread, sum(max(1, snapshot.chunk_count) for snapshot in snapshots))
    try:
        held = exporter.fetch_records(export_config_id=config, parsed_directory_file_ids=file_ids)
    except SinkConflict:
        return Proof(place, "snapshots", records)
    async with read_whole_or_closed(held) as tables:
        read = sum([table.num_rows async for table in tables])
    return Proof(place, "snapshots and records", max(records, read))


def _prove_at_home(export: Export, report: ErasureReport) -> None:
    left = export.lake.standing(report.file_ids) + export.lake.unfinished(report.file_ids)
    report.proofs.append(Proof("lake", "partitions", left))
    report.proofs.append(Proof("vector index", "entries", export.ledger.vectors.count(report.file_ids)))


async def retire(export: Export, *, model: str | None = None, sink: str | None = None) -> list[Retired]:
    """Remove what this export holds in an old model's collections, or in a sink that has left its settings.

    A collection is dropped where the store can do that and nobody else's records are in it. What a present sink has taken over
    under another name, or another export of the same index has there too, is left as it is. Raises ConfigError for what is in use
    or unknown, and when a run is working on the export: one that began before its settings changed would write there again, to
    what is in no register any more. Raises SinkUnavailable.
    """
    chosen = await asyncio.to_thread(_retirable, export, model, sink)
    await asyncio.to_thread(_check_that_no_run_works, export, "retire what it no longer uses")
    scopes = await export.scopes()
    retired = []
    for (of_sink, slug), places in groupby(chosen, lambda held: (held.sink, held.slug)):
        retired += [await _retire(export, held, scopes) for held in places]
        await asyncio.to_thread(export.ledger.register.forget_collection, of_sink, slug)
    return retired


async def end(export: Export) -> list[Retired]:
    """Remove all that an export without sinks, which is in no definitions any more, holds anywhere, its lake, and what the ledger
    knows of it; its tombstones stay.

    Can be run again after any failure. Raises ConfigError when a run is working on it, SinkUnavailable, LakeError.
    """
    await asyncio.to_thread(_check_that_no_run_works, export, "end it")
    retired = await retire(export) if await asyncio.to_thread(export.ledger.register.collections) else []
    await asyncio.to_thread(export.lake.drop)
    await asyncio.to_thread(export.ledger.register.forget_export)
    return retired


def _check_that_no_run_works(export: Export, then: str) -> None:
    if held := export.held(export.ledger.files().values()):
        raise ConfigError(f"export {export.name!r}: a run is working on {len(held)} of its files; {then} when that has ended")


def _retirable(export: Export, model: str | None, sink: str | None) -> list[SinkCollection]:
    written = _collections(export)
    known = [held for held in written if sink in (None, held.sink) and model in (None, held.slug)]
    if not known:
        there = ", ".join(f"{held.slug} in {held.sink}" for held in written)
        raise ConfigError(f"export {export.name!r} has written no such collection; it has: {there}")
    for held in known:
        if held.sink in export.settings.sinks and held.slug == export.embedder.identity.slug:
            raise ConfigError(
                f"{held.slug} in {held.sink} is in use; change the model or remove the sink from the export's YAML first"
            )
    return known


async def _retire(export: Export, held: SinkCollection, scopes: Sequence[tuple[str, str]]) -> Retired:
    if present := export.present_name(held):
        return Retired(held.sink, held.slug, 0, f"it is that of the sink {present!r} now; the former name alone is forgotten")
    if ":" in str(held.settings["type"]) and not export.settings.sinks:
        return Retired(held.sink, held.slug, 0, "the settings of a plugged-in sink are not kept; what it holds is left to you")
    shared = await asyncio.to_thread(_shared_with, export, held, scopes[0])
    files = 0
    for tenant_id, config in scopes[1:] if shared else scopes:
        async with _opened(export, held, tenant_id) as exporter:
            snapshots = await exporter.list_snapshots(export_config_id=config)
            file_ids = sorted({snapshot.parsed_directory_file_id for snapshot in snapshots})
            await exporter.delete_files(parsed_directory_file_ids=file_ids, export_config_id=config)
        files += len(file_ids)
    if shared:
        return Retired(held.sink, held.slug, files, shared)
    async with _opened(export, held, scopes[0][0]) as exporter:
        kept = await _drop_if_empty(exporter, scopes)
    return Retired(held.sink, held.slug, files, kept)


def _known_to_others(export: Export, scope: tuple[str, str], file_ids: Sequence[str]) -> list[str]:
    """Who would write these files again to a collection of this export."""
    theirs = export.ledger.register.collections_of_others(scope)
    others = {other for held in _collections(export) for other, _ in _sharing(export, held, theirs)}
    found = []
    for other in sorted(others):
        rows = Ledger(export.home.ledger_url, other).files(file_ids).values()
        if staying := [row.file_id for row in rows if not row.is_leaving]:
            found.append(
                f"the export {other!r} has the same place and would write them again; erase there too: indexport erase --export "
                f"{other} {' '.join(staying)}; or end it if it is in no definitions any more: indexport retire --export {other}"
            )
    return found


def _shared_with(export: Export, held: SinkCollection, scope: tuple[str, str]) -> str | None:
    """Which other export of the same index has its records in this collection: they are the very same records."""
    for other, sink in _sharing(export, held, export.ledger.register.collections_of_others(scope)):
        return f"the export {other!r} has the same records there, in its sink {sink!r}"
    return None


def _sharing(export: Export, held: SinkCollection, theirs: Iterable[tuple[str, SinkCollection]]) -> list[tuple[str, str]]:
    """Those of whom this collection is one of ``theirs`` too, each with the name of its sink."""
    return [(other, one.sink) for other, one in theirs if one.slug == held.slug and export.is_same_place(one, held)]


async def _drop_if_empty(exporter: Exporter, mine: Sequence[tuple[str, str]]) -> str | None:
    """Drop the collection unless it has others' records; answers why not. What has lost its first chunk is still ours."""
    scopes = await exporter.list_scopes()
    if scopes is None:
        return "this sink cannot say whether others have records in it"
    if scopes.difference(mine):
        return "others have records in it"
    try:
        await exporter.drop_collection()
    except SinkConflict as error:
        return str(error)
    return None


def _opened(export: Export, held: SinkCollection, tenant_id: str) -> AbstractAsyncContextManager[Exporter]:
    return provisioned(partial(_exporter, export, held, tenant_id))


def _exporter(export: Export, held: SinkCollection, tenant_id: str) -> Exporter:
    kind = str(held.settings["type"])
    if ":" in kind and (held.sink not in export.settings.sinks or export.held_in(held.sink).settings["type"] != kind):
        raise ConfigError(f"the settings of the plugged-in sink {held.sink!r} are not kept; put it back into the export's YAML")
    return export.collection(held, tenant_id)
