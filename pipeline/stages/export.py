"""An Export: the settings of one export together with everything that does its work.

What belongs here: putting the parts together, and the keys that say what an output was made from.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

from pydantic import ValidationError

from pipeline.documents.chunking import chunker_fingerprint
from pipeline.embedding.base import Embedder, ModelIdentity
from pipeline.embedding.loading import load_embedder
from pipeline.errors import ConfigError
from pipeline.home import Home
from pipeline.lake import Lake
from pipeline.ledger import Ledger
from pipeline.ledger.models import ExportState, FileRow, SinkCollection
from pipeline.llama_cloud.source import LlamaCloudSource
from pipeline.local_cloud.identity import PROJECT_ID as LOCAL_PROJECT
from pipeline.sinks.base import Exporter, SinkContext
from pipeline.sinks.plug_in import PlugInExporter, PlugInSettings, plug_in_class
from pipeline.sinks.records import RECORD_VERSION, json_string
from pipeline.sinks.registry import LOCAL_SINKS, exporter_class
from pipeline.stages.settings import ExportSettings, described


class Progress(Protocol):
    """Told how far a stage has come, in files."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass
class Export:
    """One export and its working parts, made on first use and kept for the life of the process."""

    settings: ExportSettings
    home: Home
    progress: Progress = silent
    run_is_live: Callable[[str], bool] = field(default=lambda _run_id: True)
    """Whether a run that holds a lease is still going; the orchestrator knows."""
    index_id: str | None = None
    """The index once found, so that a later look need not search for its name."""

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def lake(self) -> Lake:
        return Lake(self.home.lake_uri, self.name)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.home.ledger_url, self.name)

    @cached_property
    def embedder(self) -> Embedder:
        return load_embedder(self.settings.embedding)

    def source(self) -> LlamaCloudSource:
        """A new client of the index; use it as an async context manager."""
        settings = self.settings.index
        if self.index_id is not None:
            settings = settings.model_copy(update={"index_id": self.index_id, "index_name": None})
        return LlamaCloudSource(settings)

    @cached_property
    def chunker(self) -> str:
        """Fingerprint of the chunker as set."""
        return chunker_fingerprint(self.settings.chunking, self.embedder.tokens, self.embedder.max_tokens)

    @cached_property
    def settings_digest(self) -> str:
        """Digest of everything but the payload that decides a file's records: chunker, model, record schema."""
        return _digest(self.chunker, self.embedder.identity.fingerprint, RECORD_VERSION)

    @cached_property
    def failure_digest(self) -> str:
        """Digest of all settings a file's failure may be due to: with what a download or a sink may have refused it for."""
        index = self.settings.index
        download = (index.max_payload_bytes, index.allow_private_addresses)
        sinks, fields = sorted(self.settings.sinks.items()), sorted(self.settings.metadata_fields.items())
        return _digest(self.settings_digest, repr(download), repr(sinks), repr(fields))

    def grace_period(self, state: ExportState) -> int:
        """Seconds a file must have been missing before it may be deleted: as set, else an hour, but none for a folder behind the
        local cloud, which means what it says at once."""
        chosen = self.settings.removal.grace_period_seconds
        if chosen is not None:
            return chosen
        return 0 if state.tenant_id == LOCAL_PROJECT else 3600

    async def scope(self) -> tuple[str, str]:
        """(tenant_id, export_config_id) of the index, from the ledger or, the first time, from LlamaCloud. Raises ConfigError and
        SourceUnavailable."""
        state = self.ledger.state()
        if state.tenant_id and state.export_config_id:
            return state.tenant_id, state.export_config_id
        try:
            async with self.source() as source:
                index = await source.get_index()
        except ConfigError as error:  # who wants to read what a sync has written may only stand in another directory
            raise ConfigError(f"{error}; {self.nothing_exported}") from error
        self.ledger.update_state(tenant_id=index.project_id, export_config_id=index.export_config_id)
        return index.scope

    @property
    def nothing_exported(self) -> str:
        """What is said where the ledger knows no file."""
        return f"nothing was exported in {self.home.root} yet: `indexport sync` does, or INDEXPORT_HOME names another home"

    async def scopes(self) -> list[tuple[str, str]]:
        """The scope, and those of former indexes of the export, under which records may still stand. A former scope that another
        export uses now is left out: that export removes its own records."""
        present, known = await self.scope(), self.ledger.register.known_scopes()
        return [present, *(scope for scope in self.ledger.register.former_scopes() if scope not in known)]

    def sink(self, name: str, tenant_id: str) -> Exporter:
        """The exporter of a sink of this export, bound to the tenant and the model. Raises ConfigError."""
        self.check_sink(name)
        return self.collection(self.held_in(name), tenant_id)

    def check_sink(self, name: str) -> None:
        """Raise ConfigError unless this export has a sink of this name."""
        if name not in self.settings.sinks:
            raise ConfigError(f"export {self.name!r} has no sink {name!r}; it has: {', '.join(self.settings.sinks)}")

    def held_in(self, sink: str) -> SinkCollection:
        """Where a sink of this export keeps the present model's records."""
        settings = {"type": sink, **self.settings.sinks[sink]}
        if settings["type"] in LOCAL_SINKS:
            settings.setdefault("uri", self.home.sink_uri(settings["type"]))
        model = self.embedder.identity
        return SinkCollection(sink, model.slug, model.name, model.fingerprint, model.dimension, settings)

    def sink_hashes(self, file_ids: Collection[str] | None = None) -> dict[str, dict[str, str]]:
        """``Ledger.sink_hashes``, with nothing of a sink whose settings have changed since: it may be another place."""
        moved = self.ledger.register.moved(map(self.held_in, self.settings.sinks))
        return {sink: held for sink, held in self.ledger.sink_hashes(file_ids).items() if sink not in moved}

    def collection(self, held: SinkCollection, tenant_id: str) -> Exporter:
        """The exporter of any collection ever written, whether its sink and model are still the export's or not."""
        found, settings = self._sink_settings(held)
        identity = ModelIdentity(held.model, held.fingerprint, held.dimension)
        context = SinkContext(tenant_id, identity, self.settings.metadata_fields)
        return found(settings, context) if issubclass(found, Exporter) else PlugInExporter(found, settings, context)

    def _sink_settings(self, held: SinkCollection) -> tuple[type[Any], Any]:
        """The class of an exporter and its settings with the defaults filled in. Raises ConfigError."""
        given = dict(held.settings)
        kind = given.pop("type")
        found = plug_in_class(kind) if ":" in kind else exporter_class(kind)
        try:
            return found, (found.settings_type if issubclass(found, Exporter) else PlugInSettings)(**given)
        except ValidationError as error:
            raise ConfigError(f"sink {held.sink!r} of export {self.name!r}: {described(error)}") from error

    def present_name(self, held: SinkCollection) -> str | None:
        """Which sink of this export has, under another name than it had, the present model's records in this collection."""
        for sink in self.settings.sinks:
            now = self.held_in(sink)
            if sink != held.sink and now.slug == held.slug and self.is_same_place(now, held):
                return sink
        return None

    def is_same_place(self, one: SinkCollection, other: SinkCollection) -> bool:
        """Whether the sinks of two collections have the same type and keep their records in the same place."""
        if one.settings["type"] != other.settings["type"]:
            return False
        try:
            here, there = (self._sink_settings(held)[1].place() for held in (one, other))
            return bool(here == there)
        except ConfigError:  # settings of a former version: whoever opens them is told
            return False

    def chunks_key(self, row: FileRow) -> str | None:
        """What the chunks of this file should have been made from; ``None`` without a payload."""
        return _digest(row.text_digest, self.chunker) if row.text_digest else None

    def vectors_key(self, row: FileRow) -> str | None:
        """The same for its vectors; ``None`` while its chunks are not what they should be."""
        key = self.chunks_key(row)
        return _digest(key, self.embedder.identity.fingerprint) if key and key == row.chunks_key else None

    def records_key(self, row: FileRow, scope: tuple[str, str]) -> str | None:
        """The same for its records; ``None`` while its vectors are not what they should be."""
        key = self.vectors_key(row)
        if not key or key != row.vectors_key or row.provenance is None:
            return None
        return _digest(key, row.provenance, *scope, RECORD_VERSION)

    def vectors_are_current(self, row: FileRow) -> bool:
        return row.is_fetched and row.vectors_key is not None and row.vectors_key == self.vectors_key(row)

    def records_are_current(self, row: FileRow, scope: tuple[str, str]) -> bool:
        return row.records_key is not None and row.records_key == self.records_key(row, scope)

    def file_names(self) -> dict[str, str]:
        """The names of all known files by their ids."""
        return {file_id: row.display_name for file_id, row in self.ledger.files().items()}

    def claim(self, file_ids: list[str], run_id: str, *, leaving: bool = False) -> list[str]:
        """Lease the files to a run, taking over from runs that have ended; answers those it holds now. Of files that are
        being removed, or are gone, none unless it is them that are wanted (``leaving``)."""
        dead = {holder for holder in self.ledger.holders(file_ids) if holder != run_id and not self.run_is_live(holder)}
        return self.ledger.claim(file_ids, run_id, seconds=LEASE_SECONDS, dead_runs=dead, leaving=leaving)

    def held(self, rows: Iterable[FileRow]) -> set[str]:
        """Those of these files that a live run holds."""
        now = time.time()
        leased = {row.file_id: row.run_id for row in rows if row.run_id and (row.lease_until or 0.0) > now}
        live = {run_id for run_id in set(leased.values()) if self.run_is_live(run_id)}
        return {file_id for file_id, run_id in leased.items() if run_id in live}

    def record_failures(self, failures: dict[str, str], run_id: str, *, parks: bool = True) -> None:
        """Count a failed attempt of each file; one too many parks it, unless what failed may pass (``parks``)."""
        self.ledger.record_failures(
            failures,
            run_id=run_id,
            max_attempts=self.settings.detection.max_attempts if parks else None,
            backoff=file_backoff,
            settings_digest=self.failure_digest,
        )

    def record_sink_state(self, sink: str, error: str | None) -> None:
        """Note that a sink, or ``MODEL``, failed as a whole, and when it is tried again, or (``None``) that it answered."""
        self.ledger.record_sink_state(sink, error=error, backoff=_sink_backoff)

    def settle(self, file_ids: list[str], scope: tuple[str, str]) -> int:
        """Mark as done those files whose current records stand in every sink; answers how many."""
        rows = self.ledger.files(file_ids)
        held = self.sink_hashes(file_ids)
        done = [
            file_id
            for file_id, row in rows.items()
            if row.is_fetched
            and not row.is_leaving
            and self.records_are_current(row, scope)
            and all(held.get(sink, {}).get(file_id) == row.record_set_hash for sink in self.settings.sinks)
        ]
        self.ledger.record_done(done, self.settings_digest)
        return len(done)


LEASE_SECONDS = 900.0
"""A run renews what it holds while it works; a holder that stays silent for longer has died with its machine."""

LONGEST_FILE_WAIT, LONGEST_SINK_WAIT = 86_400.0, 1_800.0
"""Seconds."""


def file_backoff(attempts: int) -> float:
    """Seconds to the next attempt of a poison file: one minute, doubling to a day at most, with jitter."""
    return _backoff(attempts, 60.0, LONGEST_FILE_WAIT)


def _sink_backoff(attempts: int) -> float:
    """Seconds to the next attempt of a sink, or the model, that is down: 30 s, doubling to 30 minutes at most, with jitter."""
    return _backoff(attempts, 30.0, LONGEST_SINK_WAIT)


def _backoff(attempts: int, first: float, most: float) -> float:
    doubled = first * 2.0 ** min(attempts - 1, 30)
    return min(doubled, most / 1.2) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not a secret


@lru_cache(maxsize=8192)
def _digest(*parts: str) -> str:
    """Kept for the files of a few runs: every stage asks for the keys of the stages before it. A look asks for those of all
    files, so that their canonical JSON is put together here, in half the time."""
    text = f"[{','.join(map(json_string, parts))}]"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
