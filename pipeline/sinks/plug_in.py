"""Exporters written for LlamaCloud's reference protocol, by import path.

What belongs here: the adapter that makes a class with only the reference's four methods (``export``, ``delete_file``,
``delete_files``, ``list_snapshots``) a sink. What such a class does not offer is reported as missing, never imitated.

Whatever such a class raises means that the sink cannot be used, so that it backs off alone: what its errors mean is not known,
nor what their texts give away. Only their type is told.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import ConfigDict

from pipeline.errors import ConfigError, SinkConflict, SinkUnavailable
from pipeline.sinks.base import (
    UNKNOWN_RECORD_SET,
    Exporter,
    ReplaceReport,
    SearchHit,
    SearchRequest,
    SinkContext,
    SinkSettings,
    Snapshot,
)
from pipeline.sinks.records import FileRecords, to_records

_REFERENCE_METHODS = ("export", "delete_file", "delete_files", "list_snapshots")


class PlugInSettings(SinkSettings):
    """Keyword arguments of the plugged-in class, as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)


def plug_in_class(path: str) -> type[Any]:
    """The class at ``module:Class``; one of ours, or one with the reference's four methods.

    Raises ConfigError naming what cannot be imported or which method is missing.
    """
    module, _, name = path.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the sink type {path!r} cannot be imported: {error}") from error
    missing = [method for method in _REFERENCE_METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigError(f"the sink type {path!r} lacks {', '.join(missing)} of the exporter protocol")
    return found


class PlugInExporter(Exporter):
    """A reference exporter as a sink.

    The reference leaves open what happens to the tail of a file that shrinks, so a file that shrinks, or whose snapshot does not
    count its records, is deleted first: for a moment it does not answer. Snapshots without a ``record_set_hash`` are compared by
    what the ledger recorded.
    """

    settings_type = PlugInSettings
    search_modes = frozenset()

    def __init__(self, plugged: type[Any], settings: PlugInSettings, context: SinkContext) -> None:
        super().__init__(settings, context)
        self._name = f"{plugged.__module__}:{plugged.__qualname__}"
        self._exporter = self._made(plugged, settings.model_extra or {})
        accepted = inspect.signature(self._exporter.list_snapshots).parameters
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
        self._snapshot_options: Mapping[str, str] = (
            {"embedding_model": context.model.name} if takes_any or "embedding_model" in accepted else {}
        )

    def _made(self, plugged: type[Any], given: Mapping[str, Any]) -> Any:
        try:
            return plugged(**given)
        except TypeError:
            raise ConfigError(f"{self._name} does not take the settings {', '.join(given) or 'it is given: none'}") from None
        except Exception as error:  # noqa: BLE001 - foreign code, see the module
            raise self._unavailable("its constructor", error) from None

    async def provision(self) -> None:
        """The reference provisions on the first export."""

    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        self.check_files(files)
        held = {
            (config, _value(item, "parsed_directory_file_id")): _value(item, "chunk_count")
            for config in dict.fromkeys(file.provenance.export_config_id for file in files)
            for item in await self._listed(config)
        }
        records = size = 0
        for file in files:
            config = file.provenance.export_config_id
            count = held.get((config, file.file_id), 0)
            if count is None or count > file.table.num_rows:
                await self.delete_file(parsed_directory_file_id=file.file_id, export_config_id=config)
            if file.table.num_rows:
                await self._use(
                    "export",
                    to_records(file.table),
                    project_id=self.context.tenant_id,
                    embeddings=file.table["embedding"].to_pylist(),
                    embedding_model=self.context.model.name,
                )
            records += file.table.num_rows
            size += file.table.nbytes
        return ReplaceReport(records, size)

    async def delete_file(self, *, parsed_directory_file_id: str, export_config_id: str) -> None:
        await self._use("delete_file", parsed_directory_file_id=parsed_directory_file_id, export_config_id=export_config_id)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        file_ids = list(parsed_directory_file_ids)
        await self._use("delete_files", parsed_directory_file_ids=file_ids, export_config_id=export_config_id)

    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        wanted = None if parsed_directory_file_ids is None else set(parsed_directory_file_ids)
        snapshots = [self._snapshot(item, export_config_id) for item in await self._listed(export_config_id)]
        return [s for s in snapshots if wanted is None or s.parsed_directory_file_id in wanted]

    def fetch_records(
        self,
        *,
        export_config_id: str,  # noqa: ARG002 - the protocol's
        parsed_directory_file_ids: Sequence[str] | None = None,  # noqa: ARG002 - the protocol's
    ) -> AsyncIterator[pa.Table]:
        raise SinkConflict(f"{self._name} implements only the reference protocol; its records cannot be read back")

    async def search(self, request: SearchRequest) -> list[SearchHit]:  # noqa: ARG002 - the protocol's
        raise ValueError(f"{self._name} implements only the reference protocol; it offers no search")

    async def close(self) -> None:
        if hasattr(self._exporter, "close"):
            await self._use("close")

    async def _use(self, method: str, *given: Any, **named: Any) -> Any:
        """Call the plugged-in exporter's method. Raises SinkUnavailable for whatever it raises; a cancellation passes."""
        try:
            outcome = getattr(self._exporter, method)(*given, **named)
            return await outcome if inspect.isawaitable(outcome) else outcome
        except Exception as error:  # noqa: BLE001 - foreign code, see the module
            raise self._unavailable(method, error) from None

    def _unavailable(self, method: str, error: Exception) -> SinkUnavailable:
        reason = f"{method} raised {type(error).__name__}"
        return SinkUnavailable(f"{self._name}: {reason}; look into this exporter and the store it writes to")

    async def _listed(self, export_config_id: str) -> Iterable[Any]:
        """Objects or mappings that have at least ``parsed_directory_file_id``, one a file that is held."""
        listed: Iterable[Any] = await self._use("list_snapshots", export_config_id=export_config_id, **self._snapshot_options)
        return listed

    def _snapshot(self, item: Any, export_config_id: str) -> Snapshot:
        def value(name: str, default: Any) -> Any:
            found = _value(item, name)
            return default if found is None else found

        return Snapshot(
            parsed_directory_file_id=value("parsed_directory_file_id", ""),
            export_config_id=value("export_config_id", export_config_id),
            content_fingerprint_hash=value("content_fingerprint_hash", ""),
            source_modified_at=value("source_modified_at", None),
            chunk_count=value("chunk_count", 0),
            embedding_model=value("embedding_model", self.context.model.fingerprint),
            record_set_hash=value("record_set_hash", UNKNOWN_RECORD_SET),
        )


def _value(item: Any, name: str) -> Any:
    """``None`` for what a snapshot does not say."""
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
