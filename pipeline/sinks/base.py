"""The Exporter protocol: what every sink promises.

What belongs here: the protocol, its data types and the behaviour all sinks share. The four methods of LlamaCloud's
reference exporters keep their names and keyword arguments, so an exporter written for those can be plugged in here and
ours can be used elsewhere.

Two ways in, one protocol: ``replace_files`` is what the pipeline calls (Arrow, many files at once); ``export`` is the
reference entry point and ends in ``replace_files``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.documents.models import MetadataValue
from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, RecordRefused, SinkConflict
from pipeline.sinks.records import ChunkRecord, FileRecords, from_records, record_schema, split_files

SearchMode = Literal["vector", "text", "hybrid"]
MetadataType = Literal["string", "integer", "float", "boolean", "string_list"]
Filters = Mapping[str, MetadataValue | Mapping[str, MetadataValue | Sequence[MetadataValue]]]
"""``{key: value}`` for equality or ``{key: {operator: value}}`` with operator eq, ne, in, nin, gt, gte, lt or lte, all
together (AND). Keys are ``parsed_directory_file_id``, ``file_name`` or metadata keys declared for the sink.
``pipeline.sinks.filters`` says what they mean."""

RESERVED_KEYS = frozenset(field.name for field in record_schema(1)) | {
    "text",
    "vector",
    "document_id",
    "doc_id",
    "ref_doc_id",
    "metadata_json",
}
"""What no metadata field that is declared can be called: a record's own fields, by any store's name for them."""

_METADATA_KEY = re.compile(r"[^\W_][\w \-]{0,63}")


UNKNOWN_RECORD_SET = ""
"""``Snapshot.record_set_hash`` of a plugged-in exporter that keeps none."""


class SinkSettings(BaseModel):
    """Base of every sink's settings. Secrets are never settings: a sink reads them from the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def place(self) -> tuple[object, ...]:
        """What decides where the records are: two sinks of one type and of equal places have the same. Settings that only tune
        belong to no place: what another export still uses would be deleted as if nobody did."""
        return tuple(sorted(self.model_dump().items()))


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What binds an exporter to one tenant, one model and the metadata keys it must be able to filter on."""

    tenant_id: str
    model: ModelIdentity
    metadata_fields: Mapping[str, MetadataType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_metadata_fields(self.metadata_fields)


def check_metadata_fields(names: Iterable[str]) -> None:
    """Raise ConfigError for a metadata field no store could keep beside a record's own fields."""
    for name in names:
        if name in RESERVED_KEYS or not _METADATA_KEY.fullmatch(name):
            raise ConfigError(
                f"metadata field {name!r} cannot be declared for filtering: use a letter or digit, then up to 63 letters, "
                f"digits, spaces, '_' or '-', and none of the names of a record's own fields"
            )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a sink holds of one file, read from its chunk 0.

    A half-finished replace never answers like a finished one: ``record_set_hash`` is then ``pending:`` and the rest.
    """

    parsed_directory_file_id: str
    export_config_id: str
    content_fingerprint_hash: str
    source_modified_at: datetime | None
    chunk_count: int
    embedding_model: str
    record_set_hash: str

    @classmethod
    def of(cls, file: FileRecords) -> Snapshot:
        """Of a file with at least one record."""
        (first,) = file.table.slice(0, 1).select(SNAPSHOT_FIELDS).to_pylist()
        return cls(**first)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Snapshot:
        """From its fields, as JSON has them; other values may stand beside them."""
        modified = values["source_modified_at"]
        own = {name: values[name] for name in SNAPSHOT_FIELDS}
        return cls(**{**own, "source_modified_at": modified and datetime.fromisoformat(modified)})


SNAPSHOT_FIELDS: Final = tuple(item.name for item in fields(Snapshot))


@dataclass(frozen=True, slots=True)
class ReplaceReport:
    """What ``replace_files`` did: record and byte counts of what was written; refused files keep their old version."""

    records_written: int
    bytes_written: int
    refused: tuple[RecordRefused, ...] = ()

    def __add__(self, other: ReplaceReport) -> ReplaceReport:
        return ReplaceReport(
            self.records_written + other.records_written,
            self.bytes_written + other.bytes_written,
            (*self.refused, *other.refused),
        )


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """``vector`` (shape (dimension,)) for modes vector and hybrid, ``text`` for text and hybrid."""

    export_config_id: str
    mode: SearchMode = "vector"
    vector: npt.NDArray[np.float32] | None = None
    text: str | None = None
    k: int = 10
    filters: Filters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchHit:
    """``score`` is larger for better hits: cosine similarity in mode vector, store-defined in mode text, and in mode hybrid from
    0 to 1 among the hits of one answer (``fusion.relative_score_fusion``), store-defined where the store fuses by itself."""

    record: ChunkRecord
    score: float


class Exporter(ABC):
    """A sink bound to one tenant and one model.

    Every read and every delete is scoped by (tenant_id, export_config_id). All methods are async and safe to run again
    after any failure. They raise SinkUnavailable when the store cannot be used at all and SinkConflict when what exists
    there is not ours or does not fit.
    """

    settings_type: ClassVar[type[SinkSettings]] = SinkSettings
    search_modes: ClassVar[frozenset[SearchMode]] = frozenset({"vector"})
    atomic_replace: ClassVar[bool] = False
    """True when readers see a file's old version or its new one, never a mix."""
    ids_by_version: bool = False
    """True when a record's id carries its record set's digest (``FileKey.ids``), so that two versions can stand side by side."""
    chunks_at_once: ClassVar[int] = 8_192
    """Most chunks that ``replace_files`` is given at once, unless a file alone has more. All are in memory: about 40 MB of text
    and 384-dimensional vectors. A sink that rewrites more than it is given asks for more."""
    holds_vectors: ClassVar[bool] = True
    """False for a sink beside another one that has them: its ``fetch_records`` has no column ``embedding``."""

    def __init__(self, settings: SinkSettings, context: SinkContext) -> None:
        self.settings = settings
        self.context = context

    @abstractmethod
    async def provision(self) -> None:
        """Create what is missing, idempotently, and validate what exists (dimension, metric, model). Called before first use."""

    async def check_provisioned(self) -> None:
        """Raises SinkUnavailable where the collection does not exist yet, and SinkConflict where it is not ours.

        For readers that something else must tell: other clients of a store may make a collection that they do not find. One
        request, for a file there is not: a store that takes a missing collection for an empty one asks after it instead.
        """
        await self.list_snapshots(export_config_id="none", parsed_directory_file_ids=["none"])

    @abstractmethod
    async def replace_files(self, files: Sequence[FileRecords]) -> ReplaceReport:
        """Make the store hold exactly these record sets for these files; an empty set removes the file's records.

        Never touches another file. A file the store cannot hold is reported as refused and keeps its old version.
        """

    @abstractmethod
    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        """Remove every record of these files, whatever wrote them; a missing file is no error.

        With them goes every record of this tenant and config whose file id another program has removed: it may be of any file,
        and nothing else would ever find it.
        """

    async def delete_file(self, *, parsed_directory_file_id: str, export_config_id: str) -> None:
        """``delete_files`` of one file."""
        await self.delete_files(parsed_directory_file_ids=[parsed_directory_file_id], export_config_id=export_config_id)

    @abstractmethod
    async def list_snapshots(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> list[Snapshot]:
        """One snapshot a file, in a bounded number of requests; all files of the config unless some are named."""

    @abstractmethod
    def fetch_records(
        self, *, export_config_id: str, parsed_directory_file_ids: Sequence[str] | None = None
    ) -> AsyncIterator[pa.Table]:
        """Everything held, as tables of ``record_schema`` of bounded size; a file's rows come together, by chunk_index.

        Without named files also what ``delete_files`` removes for want of a file id, with null for it.

        Without the column ``embedding`` where ``holds_vectors`` is False. A sink that looks at the copies its filters read
        names altered ones in the record's metadata (``copies.ALTERED``).
        """

    async def count_unread(
        self,
        *,
        export_config_id: str,  # noqa: ARG002 - most stores show all they hold
        parsed_directory_file_ids: Sequence[str],  # noqa: ARG002 - likewise
    ) -> int | None:
        """How much is held of these files where neither ``list_snapshots`` nor ``fetch_records`` looks, for an erasure's proof.

        ``None`` where there is such a place and the store cannot be asked what is in it.
        """
        return 0

    async def unfound_files(self, records: pa.Table) -> frozenset[str]:  # noqa: ARG002 - most stores search what they show
        """Files of these records, as ``fetch_records`` gives them, that searches do not find, for deep verification.

        None where searches read what ``fetch_records`` does.
        """
        return frozenset()

    @abstractmethod
    async def search(self, request: SearchRequest) -> list[SearchHit]:
        """The best ``request.k`` records, best first.

        Raises ValueError for a mode outside ``search_modes``, a request without what its mode needs, or filters
        ``parse_filters`` refuses.
        """

    async def optimize(self) -> None:  # noqa: B027 - most stores look after themselves
        """Compact and index what a run has written; called once at the end of a run."""

    async def check_beside(self, *, export_config_id: str) -> Sequence[str]:  # noqa: ARG002 - most stores keep nothing of the kind
        """What the store keeps of a config beside its files, and not as it should, in words. For deep verification; an exporter
        that was asked has it mended by ``optimize``."""
        return ()

    async def purge_history(self) -> None:  # noqa: B027 - most stores keep no old versions
        """Remove the old versions a store keeps, so that an erased file cannot be read back from them.

        Ends readers of old versions; called after an erasure, while no run writes.
        """

    async def renew(self, *, export_config_id: str) -> None:  # noqa: B027 - most stores see to their files themselves
        """Make good what is damaged in the files of the collection; files that are lost are loaded again after it. What snapshots
        cannot vouch for is no more listed as complete, so that all of this config is loaded again.

        Called when a person has it rebuilt. Raises SinkDamaged where that needs more than may be taken from other exports.
        """

    async def list_scopes(self) -> frozenset[tuple[str, str]] | None:
        """Every (tenant_id, export_config_id) the collection holds records of, whoever wrote them, for verification alone.

        ``None`` where the store cannot say in a bounded number of requests.
        """
        return None

    async def drop_collection(self) -> None:
        """Remove the collection of this exporter's model, with everything in it. Raises SinkConflict where not supported."""
        raise SinkConflict(f"{type(self).__name__} cannot drop a collection; the empty one of {self.context.model.slug} stays")

    @abstractmethod
    async def close(self) -> None:
        """Release connections and threads."""

    async def export(
        self,
        outputs: Sequence[ChunkRecord],
        *,
        project_id: str,
        embeddings: Sequence[Sequence[float]] | None = None,
        embedding_model: str | None = None,
    ) -> ReplaceReport:
        """The reference entry point: complete record sets of one or more files, with their vectors, row i to row i.

        Raises ValueError for a foreign project, a foreign model or missing embeddings.
        """
        if project_id != self.context.tenant_id:
            raise ValueError(f"this exporter serves project {self.context.tenant_id!r}, not {project_id!r}")
        if embedding_model not in (None, self.context.model.name, self.context.model.fingerprint):
            raise ValueError(f"this exporter holds vectors of {self.context.model.name!r}, not of {embedding_model!r}")
        if embeddings is None or len(embeddings) != len(outputs):
            raise ValueError(f"{len(outputs)} outputs need as many embeddings, got {len(embeddings or ())}")
        table = from_records(outputs, embeddings, self.context.model.dimension)
        return await self.replace_files(split_files(table))

    def check_files(self, files: Sequence[FileRecords]) -> None:
        """What ``replace_files`` may be given: this tenant's files, this model's vectors, no file twice.

        Raises ValueError otherwise: a caller's mistake, never one file's.
        """
        schema = record_schema(self.context.model.dimension)
        seen: set[tuple[str, str]] = set()
        for file in files:
            if file.provenance.tenant_id != self.context.tenant_id:
                raise ValueError(f"{file.file_id} belongs to project {file.provenance.tenant_id!r}, not to this exporter's")
            if not file.table.schema.equals(schema):
                raise ValueError(f"{file.file_id}: its table is not of record_schema({self.context.model.dimension})")
            address = (file.provenance.export_config_id, file.file_id)
            if address in seen:
                raise ValueError(f"{file.file_id} is given twice in one replace")
            seen.add(address)

    def check_search(self, request: SearchRequest) -> None:
        """Raises ValueError for a mode this sink lacks, or a request without what its mode needs."""
        if request.mode not in self.search_modes:
            raise ValueError(f"search mode {request.mode!r} is not one of {', '.join(sorted(self.search_modes))}")
        if request.k < 1:
            raise ValueError(f"k must be at least 1, not {request.k}")
        dimension = self.context.model.dimension
        if request.mode != "text" and (request.vector is None or request.vector.shape != (dimension,)):
            raise ValueError(f"search mode {request.mode!r} needs a vector of shape ({dimension},)")
        if request.mode != "vector" and not (request.text or "").strip():
            raise ValueError(f"search mode {request.mode!r} needs a text")
