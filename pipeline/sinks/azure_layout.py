"""The Azure AI Search index: its definition, and whether one that exists fits.

What belongs here: names, types and attributes of fields. Beside a record's own fields a document has what LlamaIndex reads
(``metadata``, a node's metadata as JSON, and ``doc_id``), one typed field for every declared metadata key, the list of these
keys, ``pending`` of the replace protocol and ``sort_key``, the order documents are paged in. Field attributes cannot be
changed once the index exists; fields can be added. The vector profile's name carries the digest of the model's fingerprint:
it is created with the index and cannot be changed while the field uses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import pyarrow as pa

from pipeline.embedding.base import ModelIdentity
from pipeline.errors import ConfigError, SinkConflict
from pipeline.sinks.base import MetadataType
from pipeline.sinks.records import record_schema

Definition = dict[str, Any]

PENDING: Final = "pending"
SORT_KEY: Final = "sort_key"
FILTER_FIELDS: Final = "key_filter_fields"
"""The declared metadata keys a document was written for; a key declared later is not among them. No key has this field."""

SEMANTIC: Final = "indexport-semantic"
"""Name of the semantic configuration."""

DIMENSIONS: Final = range(2, 4097)
"""Vector sizes the service indexes; documented by the vendor."""

_ALGORITHM: Final = "indexport-hnsw"
_PROFILE: Final = "indexport-model-"
_RENAMED: Final = {"metadata": "metadata_json"}
_FILTERABLE: Final = frozenset(
    {
        "tenant_id",
        "export_config_id",
        "parsed_directory_file_id",
        "file_name",
        "chunk_index",
        "page_range_start",
        "page_range_end",
        "source_modified_at",
        "embedding_model",
        "record_set_hash",
    }
)
_SORTABLE: Final = frozenset({"file_name", "chunk_index", "source_modified_at"})
_FACETABLE: Final = frozenset({"parsed_directory_file_id", "file_name", "embedding_model"})
_DECLARED_TYPES: Final[Mapping[MetadataType, str]] = {
    "string": "Edm.String",
    "integer": "Edm.Int64",
    "float": "Edm.Double",
    "boolean": "Edm.Boolean",
    "string_list": "Collection(Edm.String)",
}
_PLAIN_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ENCODED: Final = "key_"
_ANOTHER: Final = "choose another index_prefix, or delete the index if nothing needs it"


def attribute_name(record_field: str) -> str:
    """The field a record's own field is kept in."""
    return _RENAMED.get(record_field, record_field)


def record_attributes(*, vectors: bool) -> list[str]:
    """The fields that make up a record, with or without its vector."""
    return [attribute_name(name) for name in record_schema(1, vectors=vectors).names]


def _field(name: str, kind: str, **attributes: Any) -> Definition:
    flags = {"key": False, "searchable": False, "filterable": False, "sortable": False, "facetable": False, "retrievable": True}
    return {"name": name, "type": kind, **flags, **attributes}


def _record_field(field: pa.Field) -> Definition:
    name = field.name
    return _field(
        attribute_name(name),
        _edm_type(field.type),
        filterable=name in _FILTERABLE,
        sortable=name in _SORTABLE,
        facetable=name in _FACETABLE,
    )


def _edm_type(arrow: pa.DataType) -> str:
    if pa.types.is_integer(arrow):
        return "Edm.Int64" if arrow.bit_width > 32 else "Edm.Int32"
    return "Edm.DateTimeOffset" if pa.types.is_timestamp(arrow) else "Edm.String"


def _own_fields(model: ModelIdentity, analyzer: str) -> list[Definition]:
    special = {
        "id": _field("id", "Edm.String", key=True, filterable=True),
        "content": _field("content", "Edm.String", searchable=True, analyzer=analyzer),
        "embedding": _field(
            "embedding",
            "Collection(Edm.Single)",
            searchable=True,
            dimensions=model.dimension,
            vectorSearchProfile=profile_name(model),
        ),
    }
    return [
        *(special.get(field.name) or _record_field(field) for field in record_schema(1)),
        _field("metadata", "Edm.String"),
        _field("doc_id", "Edm.String", filterable=True),
        _field(PENDING, "Edm.String", filterable=True),
        _field(SORT_KEY, "Edm.Int64", filterable=True, sortable=True),
    ]


def declared_field(key: str, kind: MetadataType) -> Definition:
    """The field of a declared metadata key."""
    several = kind == "string_list"
    return _field(field_name(key), _DECLARED_TYPES[kind], filterable=True, facetable=True, sortable=not several)


def field_name(key: str) -> str:
    """The field a declared metadata key is kept in: the key itself where it is a field name nothing else uses.

    A field name is a letter, then letters, digits and underscores, and does not begin with ``azureSearch`` (documented by
    the vendor). Any other key becomes ``key_``, what is left of it, and a digest.
    """
    taken = key.startswith(_ENCODED) or key.lower().startswith("azuresearch") or key.lower() in _OWN_NAMES
    if _PLAIN_NAME.fullmatch(key) and not taken:
        return key
    return f"{_ENCODED}{re.sub(r'[^A-Za-z0-9]+', '_', key)}_{sha256(key.encode()).hexdigest()[:8]}"


def profile_name(model: ModelIdentity) -> str:
    return _PROFILE + sha256(model.fingerprint.encode()).hexdigest()[:32]


_OWN_NAMES: Final = frozenset(field["name"] for field in _own_fields(ModelIdentity("", "", 1), ""))


@dataclass(frozen=True, slots=True)
class IndexDesign:
    """What an index of this sink must be."""

    name: str
    model: ModelIdentity
    declared: Mapping[str, MetadataType]
    analyzer: str
    semantic: bool

    def check_model(self) -> None:
        """Raises ConfigError for a model whose vectors no index could hold."""
        if self.model.dimension not in DIMENSIONS:
            raise ConfigError(
                f"{self.model.name} makes vectors of {self.model.dimension} dimensions, Azure AI Search holds "
                f"{DIMENSIONS.start} to {DIMENSIONS.stop - 1:,}; choose another model, or fewer dimensions if the model can"
            )

    def definition(self) -> Definition:
        """The whole index, as it is created."""
        hnsw = {"metric": "cosine", "m": 4, "efConstruction": 400, "efSearch": 500}
        definition: Definition = {
            "name": self.name,
            "fields": [*_own_fields(self.model, self.analyzer), *self._later_fields()],
            "vectorSearch": {
                "algorithms": [{"name": _ALGORITHM, "kind": "hnsw", "hnswParameters": hnsw}],
                "profiles": [{"name": profile_name(self.model), "algorithm": _ALGORITHM}],
            },
        }
        return definition | ({"semantic": {"configurations": [_semantic_configuration()]}} if self.semantic else {})

    def _later_fields(self) -> list[Definition]:
        """What an index that exists may lack: an earlier version has made it, or for fewer keys."""
        declared = [declared_field(key, kind) for key, kind in self.declared.items()]
        return [_field(FILTER_FIELDS, "Collection(Edm.String)", filterable=True), *declared]

    def extended(self, found: Definition) -> Definition | None:
        """An existing index with what it lacks; ``None`` where it lacks nothing.

        Raises SinkConflict, which says what to do, when it is not ours, or does not fit the model, the analyzer or a field.
        """
        held = {field["name"]: field for field in found["fields"]}
        self._check_vectors(held.get("embedding"), found.get("vectorSearch") or {})
        for wanted in _own_fields(self.model, self.analyzer):
            self._check_field(held.get(wanted["name"]), wanted, _ANOTHER)
        for wanted in self._later_fields():
            if wanted["name"] in held:
                self._check_field(held[wanted["name"]], wanted, "declare it as before, or export to another index_prefix")
        missing = [field for field in self._later_fields() if field["name"] not in held]
        semantic = found.get("semantic") or {}
        configurations: list[Definition] = semantic.get("configurations") or []
        lacks_semantic = self.semantic and SEMANTIC not in {item["name"] for item in configurations}
        if not missing and not lacks_semantic:
            return None
        extended = {key: value for key, value in found.items() if not key.startswith("@")}
        extended["fields"] = [*found["fields"], *missing]
        if lacks_semantic:
            extended["semantic"] = {**semantic, "configurations": [*configurations, _semantic_configuration()]}
        return extended

    def _check_vectors(self, field: Definition | None, search: Definition) -> None:
        if field is None:
            raise SinkConflict(f"Azure AI Search index {self.name!r} has no field 'embedding': it is not this sink's; {_ANOTHER}")
        if field.get("dimensions") != self.model.dimension:
            raise SinkConflict(
                f"Azure AI Search index {self.name!r} holds vectors of {field.get('dimensions')} dimensions, "
                f"{self.model.name} makes {self.model.dimension}; {_ANOTHER}"
            )
        profile = field.get("vectorSearchProfile")
        if profile != profile_name(self.model):
            raise SinkConflict(
                f"Azure AI Search index {self.name!r} holds vectors of another model than {self.model.name!r} "
                f"(its vector profile is {profile!r}); {_ANOTHER}"
            )
        algorithm = _named(search.get("profiles"), profile).get("algorithm")
        metric = (_named(search.get("algorithms"), algorithm).get("hnswParameters") or {}).get("metric")
        if metric != "cosine":
            raise SinkConflict(f"Azure AI Search index {self.name!r} ranks vectors by {metric}, not by HNSW cosine; {_ANOTHER}")

    def _check_field(self, held: Definition | None, wanted: Definition, remedy: str) -> None:
        if held is None:
            raise SinkConflict(f"Azure AI Search index {self.name!r} has no field {wanted['name']!r}; {remedy}")
        for attribute, value in wanted.items():
            if held.get(attribute) != value:
                raise SinkConflict(
                    f"Azure AI Search index {self.name!r}: field {wanted['name']!r} has {attribute} {held.get(attribute)!r}, "
                    f"not {value!r}, and no field can be changed; {remedy}"
                )


def _named(items: Sequence[Definition] | None, name: Any) -> Definition:
    return next((item for item in items or () if item["name"] == name), {})


def _semantic_configuration() -> Definition:
    """Without a title: the fields it names must be searchable (documented by the vendor), and only the text is."""
    prioritized = {"prioritizedContentFields": [{"fieldName": "content"}], "prioritizedKeywordsFields": []}
    return {"name": SEMANTIC, "prioritizedFields": prioritized}
