"""Generations: complete, never changed versions of one config's index, each in a folder of its own.

What belongs here: how a generation is laid out, written from its predecessor, and read. A generation holds the files of a
LlamaIndex StorageContext and two of ours: ``records.parquet``, from which all others are made and which keeps vectors and
metadata exact, and ``manifest.json``: the size of every file and what ``list_snapshots`` answers. ``CURRENT`` beside the
generations names the one that counts; it is written last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sinks.base import Snapshot
from pipeline.sinks.generations import PENDING_PREFIX
from pipeline.sinks.records import canonical_json
from pipeline.sinks.storage_context_layout import storage_files

RECORDS: Final = "records.parquet"
MANIFEST: Final = "manifest.json"
_ROW_GROUP_BYTES: Final = 16 * 2**20

Scope = tuple[str, str]
"""(tenant_id, export_config_id)."""


@dataclass(frozen=True, slots=True)
class HeldFile:
    """What a generation holds of one file; ``size`` is the bytes of its records in memory."""

    snapshot: Snapshot
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a generation consists of: whose it is, its files' sizes, and the exported files it holds, by their ids."""

    scope: Scope
    sizes: dict[str, int]
    held: dict[str, HeldFile]

    def encode(self) -> bytes:
        held = [{**asdict(item.snapshot), "size": item.size} for item in self.held.values()]
        return canonical_json({"scope": self.scope, "sizes": self.sizes, "held": held}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        found = json.loads(data)
        held = (HeldFile(Snapshot.from_json(item), item["size"]) for item in found["held"])
        tenant_id, export_config_id = found["scope"]
        return cls((tenant_id, export_config_id), found["sizes"], {item.snapshot.parsed_directory_file_id: item for item in held})


def altered(snapshot: Snapshot) -> Snapshot:
    """The snapshot of a file whose generation somebody else has edited: it matches nothing, so it is written again."""
    return replace(snapshot, record_set_hash=PENDING_PREFIX + snapshot.record_set_hash)


def write_generation(folder: Path, scope: Scope, schema: pa.Schema, tables: Iterable[pa.Table], held: dict[str, HeldFile]) -> int:
    """Write a generation of these records into an empty folder; answers its size in bytes. The index is called as the config."""
    records = folder / RECORDS
    with pq.ParquetWriter(records, schema, compression="zstd", compression_level=1, use_dictionary=False) as writer:
        for table in _regrouped(tables):
            writer.write_table(table, row_group_size=table.num_rows)
    with pq.ParquetFile(records) as written:
        for name, content in storage_files(scope[1]).items():
            with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(content(lambda columns: row_groups(written, columns)))
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_bytes(Manifest(scope, sizes, held).encode())
    return sum(sizes.values())


def _regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about 16 MB; what came in one table stays together."""
    waiting: list[pa.Table] = []
    size = 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def row_groups(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of every group that has any; files never lie in two groups."""
    for number in range(file.num_row_groups):
        table = file.read_row_group(number, columns=None if columns is None else list(columns))
        if table.num_rows:
            yield table


def without_files(tables: Iterable[pa.Table], file_ids: Iterable[str]) -> Iterator[pa.Table]:
    gone = pa.array(sorted(file_ids), pa.string())
    for table in tables:
        kept = table.filter(pc.invert(pc.is_in(table["parsed_directory_file_id"], value_set=gone)))
        if kept.num_rows:
            yield kept
