"""Addresses: of a file in a sink, and of the records of each of its versions.

What belongs here: what ids follow from. What a store holds of a version is ``generations``'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from pipeline.sinks.records import FileRecords, chunk_ids

MOST_NAMED: Final = 2**21
"""Records of a generation that is deleted by computed ids; one that has more, or says so, is left to the sweep."""


@dataclass(frozen=True, slots=True, order=True)
class FileKey:
    """The address of a file in a sink."""

    tenant_id: str
    export_config_id: str
    file_id: str

    @classmethod
    def of(cls, file: FileRecords) -> Self:
        return cls(file.provenance.tenant_id, file.provenance.export_config_id, file.file_id)

    def ids(self, generation: Generation) -> list[str]:
        """The record ids of a generation, its head's first."""
        indices = range(generation.chunk_count)
        return chunk_ids(self.tenant_id, self.export_config_id, self.file_id, indices, generation.record_set_hash)


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """One version of a file: enough to compute the ids of all its records."""

    record_set_hash: str
    chunk_count: int

    @classmethod
    def of(cls, file: FileRecords) -> Self:
        return cls(file.record_set_hash, file.table.num_rows)

    def __str__(self) -> str:
        return f"{self.record_set_hash}:{self.chunk_count}"

    @property
    def has_ids(self) -> bool:
        """Whether its records can be deleted by their ids."""
        return 0 < self.chunk_count <= MOST_NAMED


def by_config(keys: Iterable[FileKey]) -> dict[tuple[str, str], list[str]]:
    """File ids by tenant and config."""
    configs: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        configs.setdefault((key.tenant_id, key.export_config_id), []).append(key.file_id)
    return configs
