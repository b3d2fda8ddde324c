"""The lake: ``{uri}/{export}/{dataset}/{partition}.parquet``, its texts in zstd, written whole or not at all.

What belongs here: naming, atomic writes and reads of single objects. What the tables mean is their stage's business.
Every object carries string metadata (digests of what it was made from), so the ledger can be rebuilt from the lake.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import quote, unquote

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, LakeError
from pipeline.files import unfinished, write_whole
from pipeline.lake.checksum import PLACE, is_damaged, put_checksum
from pipeline.lake.recent import RecentTables
from pipeline.object_stores import remove_folder
from pipeline.quoting import quoted
from pipeline.urls import DRIVER_REMEDY, without_secrets

Dataset = Literal["parsed_payloads", "chunks", "embeddings", "tombstones"]
DATASETS: tuple[Dataset, ...] = ("parsed_payloads", "chunks", "embeddings")
"""What a file consists of. ``tombstones`` has an empty partition an erased file, a copy of the ledger's."""

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")

_SUFFIX = ".parquet"
_STORE_REMEDY = "check INDEXPORT_LAKE_URI, the store and its credentials"
_LONGEST_NAME = 200
_COMPRESSED_FROM = 2_048
_REMOTE_THREADS = 16
"""A small object is mostly a round trip to a bucket; on a local disk it is mostly Python, which threads only slow down."""


class Lake:
    """The datasets of one export. Safe to use from several threads and processes: objects are replaced, never edited.

    Raises ConfigError for an address that no installed driver can open, LakeError for a server that does not answer.
    """

    def __init__(self, uri: str, export: str) -> None:
        self._fs: Any
        self._shown = without_secrets(uri)
        try:
            self._fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False)  # other processes write and delete, too
        except (ImportError, ValueError) as error:
            told = f"INDEXPORT_LAKE_URI: {self._shown} cannot be opened: {quoted(str(error))}; {DRIVER_REMEDY}"
            raise ConfigError(told) from None
        except Exception as error:  # noqa: BLE001 - as in _errors; some drivers connect at once
            raise LakeError(f"the lake at {self._shown} cannot be opened: {type(error).__name__}; {_STORE_REMEDY}") from None
        self._root = f"{root.rstrip('/')}/{_object_name(export)}"
        self._recent = RecentTables()
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def write(self, dataset: Dataset, partition: str, table: pa.Table, metadata: Mapping[str, str]) -> int:
        """Replace a partition atomically; answers its size in bytes. Raises LakeError (disk full, read-only, refused)."""
        buffer = pa.BufferOutputStream()
        stamped = table.replace_schema_metadata(dict(metadata))
        long = _long_texts(stamped)
        with pq.ParquetWriter(
            buffer,
            stamped.schema,
            compression=dict.fromkeys(long, "zstd"),
            compression_level=dict.fromkeys(long, 1),
            write_statistics=False,
            use_dictionary=False,
        ) as writer:
            writer.write_table(stamped)
            buffer.write(PLACE)
        data = memoryview(buffer.getvalue()).cast("B")
        put_checksum(data)
        path = self._path(dataset, partition)
        with self._errors(f"write {dataset} of {partition}"):
            if self._local:
                version = write_whole(Path(path), data)
                self._recent.keep(path, version, stamped, data.nbytes + sum(long.values()))
            else:
                self._fs.pipe_file(path, bytes(data))
        return data.nbytes

    def write_many(self, dataset: Dataset, objects: Iterable[tuple[str, pa.Table, Mapping[str, str]]]) -> list[int]:
        """``write`` of ``(partition, table, metadata)``; sizes in the order given."""
        return self._each(lambda written: self.write(dataset, *written), objects)

    def read(self, dataset: Dataset, partition: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """A partition's table with its metadata; ``None`` when there is none or it is damaged (it is then made again)."""
        if held := self._recent.take(self._path(dataset, partition)):
            return held if columns is None else held.select(list(columns))
        data = self._bytes(dataset, partition)
        if data is None or is_damaged(memoryview(data)):
            return None
        wanted = None if columns is None else list(columns)
        try:
            # Not pq.read_table: it goes through the dataset layer, which costs more than reading a small file does.
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                return file.read(columns=wanted, use_threads=False)
        except (pa.ArrowInvalid, OSError):  # the bytes are in memory: an OSError is Parquet's word for damage here
            return None

    def read_many(self, dataset: Dataset, partitions: Iterable[str], columns: Sequence[str] | None = None) -> dict[str, pa.Table]:
        """The tables of those partitions that are there."""
        names = list(partitions)
        tables = self._each(lambda name: self.read(dataset, name, columns), names)
        return {name: table for name, table in zip(names, tables, strict=True) if table is not None}

    def standing(self, partitions: Iterable[str]) -> int:
        """How many tables of these partitions are there, in all datasets of files together, readable or not."""
        named = list(product(DATASETS, partitions))
        return sum(self._each(lambda place: self._bytes(*place) is not None, named))

    def _each(self, work: Callable[[_Given], _Made], given: Iterable[_Given]) -> list[_Made]:
        if self._local:
            return [work(each) for each in given]
        with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
            return list(pool.map(work, given))

    def metadata(self, dataset: Dataset, partition: str) -> dict[str, str] | None:
        """The string metadata a partition was written with."""
        table = self.read(dataset, partition, columns=[])
        if table is None:
            return None
        return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}

    def delete(self, partition: str, datasets: Iterable[Dataset] = DATASETS) -> None:
        """Remove a partition from every dataset of files; a missing one is no error."""
        for dataset in datasets:
            with self._errors(f"delete {dataset} of {partition}"), suppress(FileNotFoundError):
                self._fs.rm_file(self._path(dataset, partition))

    def sweep(self, partitions: Iterable[str] = (), *, older_than: float) -> None:
        """Remove what killed writers have left: of these partitions all, of others what is older than so many seconds."""
        names, at = set(map(_file_name, partitions)), time.time()
        for name, path in self._unfinished():
            with suppress(OSError):  # its writer or another sweep was first; or it is refused, and erasure's proof counts it
                if name in names or path.stat().st_mtime < at - older_than:
                    path.unlink()

    def unfinished(self, partitions: Iterable[str]) -> int:
        """How many files writers of these partitions have begun and not finished."""
        names = set(map(_file_name, partitions))
        return sum(name in names for name, _ in self._unfinished())

    def _unfinished(self) -> list[tuple[str, Path]]:
        """A bucket has none: what is written there appears whole."""
        folders = [Path(self._root, dataset) for dataset in get_args(Dataset)] if self._local else []
        return [found for folder in folders for found in unfinished(folder)]

    def delete_many(self, partitions: Iterable[str]) -> None:
        """``delete`` of many partitions from every dataset of files."""
        self._each(self.delete, partitions)

    def drop(self) -> None:
        """Remove every partition of every dataset of files, and what killed writers have left. Tombstones stay."""
        for dataset in DATASETS:
            with self._errors(f"delete {dataset}"), suppress(FileNotFoundError):
                remove_folder(self._fs, f"{self._root}/{dataset}")
        if self._local:
            with suppress(OSError):  # not empty: there are tombstones
                Path(self._root).rmdir()

    def partitions(self, dataset: Dataset) -> list[str]:
        """Every partition of a dataset, sorted. Names longer than the file system allows come back as their digest."""
        paths: list[str] = []
        with self._errors(f"list {dataset}"), suppress(FileNotFoundError):
            paths = self._fs.ls(f"{self._root}/{dataset}", detail=False)
        names = (path.rsplit("/", 1)[-1] for path in paths)
        return sorted(unquote(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX))

    def uri(self, dataset: Dataset) -> str:
        """Where a dataset lies, for people."""
        return str(self._fs.unstrip_protocol(f"{self._root}/{dataset}"))

    def _path(self, dataset: Dataset, partition: str) -> str:
        return f"{self._root}/{dataset}/{_file_name(partition)}"

    def _bytes(self, dataset: Dataset, partition: str) -> bytes | None:
        path = self._path(dataset, partition)
        with self._errors(f"read {dataset} of {partition}"), suppress(FileNotFoundError):
            data: bytes = Path(path).read_bytes() if self._local else self._fs.cat_file(path)
            return data
        return None

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Whatever goes wrong is a LakeError. What a store's driver says (botocore's errors are no OSError) may hold secrets, and
        its type says enough."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - each driver raises what it likes
            reason, remedy = type(error).__name__, _STORE_REMEDY
            if self._local and isinstance(error, OSError):
                reason, remedy = error.strerror or reason, "check its space and rights"
            raise LakeError(f"the lake at {self._shown} cannot {action}: {reason}; {remedy}") from None


def _long_texts(table: pa.Table) -> dict[str, int]:
    """The columns worth compressing, with their bytes. Setting up the codec costs more than a short column takes, and vectors do
    not shrink."""
    texts = {field.name: table[field.name].nbytes for field in table.schema if pa.types.is_string(field.type)}
    return {name: size for name, size in texts.items() if size >= _COMPRESSED_FROM}


def _file_name(partition: str) -> str:
    return f"{_object_name(partition)}{_SUFFIX}"


def _object_name(name: str) -> str:
    """A name that cannot leave its folder: separators and a leading dot are escaped, over-long names digested."""
    escaped = quote(name, safe=" ")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    return escaped if len(escaped) <= _LONGEST_NAME else hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
