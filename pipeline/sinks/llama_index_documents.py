# mypy: disable-error-code="import-not-found"
# LlamaIndex has an environment of its own, which the type checker does not see.
"""What the llama_index sink keeps in a docstore: nodes, record sets and snapshots.

What belongs here: the codec between these and LlamaIndex's documents. Nodes lie in a namespace LlamaIndex reads, so that
indexes over vector stores without texts work; a file's record set is one document, in Arrow's format, vectors included;
what is known of a file is another small one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

import pyarrow as pa
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from pipeline.sinks.base import Snapshot
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.generations import PENDING_PREFIX
from pipeline.sinks.llama_node import NODE_TYPE, node_contents
from pipeline.sinks.records import FileRecords, canonical_json, with_ids

MARKER: Final = "indexport"
"""Id of the document that says what the namespaces are."""

FILE_ID: Final = "parsed_directory_file_id"
"""Key in a node's metadata."""

_ADDRESS: Final = ("tenant_id", "record_set_hash")


@dataclass(frozen=True, slots=True)
class FileState:
    """What the docstore says of one file. ``generations`` are all that may have nodes; several of them, or ``pending``, say
    that a replace has not ended. ``snapshot`` is of the version that was complete last, or of the first one to come."""

    tenant_id: str
    snapshot: Snapshot
    generations: tuple[Generation, ...]
    pending: bool

    @property
    def key(self) -> FileKey:
        return FileKey(self.tenant_id, self.snapshot.export_config_id, self.snapshot.parsed_directory_file_id)

    def to_snapshot(self) -> Snapshot:
        """As ``list_snapshots`` answers it: one that matches nothing while a replace has not ended."""
        if not self.pending:
            return self.snapshot
        marker = ",".join(map(str, self.generations))
        return replace(self.snapshot, record_set_hash=f"{PENDING_PREFIX}{marker}")


def state_id(key: FileKey) -> str:
    return canonical_json([key.tenant_id, key.export_config_id, key.file_id])


def records_id(key: FileKey, generation: Generation) -> str:
    return canonical_json([key.tenant_id, key.export_config_id, key.file_id, generation.record_set_hash])


def encode_state(state: FileState) -> str:
    content = {
        "tenant_id": state.tenant_id,
        "snapshot": asdict(state.snapshot),
        "generations": [[item.record_set_hash, item.chunk_count] for item in state.generations],
        "pending": state.pending,
    }
    return canonical_json(content)


def decode_state(text: str) -> FileState:
    content = json.loads(text)
    return FileState(
        content["tenant_id"],
        Snapshot.from_json(content["snapshot"]),
        tuple(Generation(digest, count) for digest, count in content["generations"]),
        content["pending"],
    )


def encode_records(file: FileRecords) -> str:
    """The record set as text: Arrow's IPC format, compressed, in base64."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, file.table.schema, options=options) as writer:
        writer.write_table(file.table)
    return base64.b64encode(sink.getvalue()).decode("ascii")


def decode_records(text: str) -> pa.Table:
    with pa.ipc.open_stream(base64.b64decode(text)) as reader:
        return reader.read_all()


def nodes_of(table: pa.Table, key: FileKey, generation: Generation) -> list[BaseNode]:
    """Nodes with vectors, their ids of the generation. Their metadata has single values alone: many stores take no others. Nor
    does it have keys that are empty or begin with ``$``, which Chroma refuses; the node's content and the record set keep all."""
    vectors = table["embedding"].to_pylist()
    contents = node_contents(with_ids(table, key.ids(generation))).to_pylist()
    return [_node(content, vector, key, generation) for content, vector in zip(contents, vectors, strict=True)]


def _node(content: str, vector: Sequence[float], key: FileKey, generation: Generation) -> BaseNode:
    node = metadata_dict_to_node({"_node_content": content, "_node_type": NODE_TYPE})
    flat = {
        name: value
        for name, value in node.metadata.items()
        if isinstance(value, (str, int, float)) and name and not name.startswith("$")
    }
    node.metadata = flat | dict(zip(_ADDRESS, (key.tenant_id, generation.record_set_hash), strict=True))
    node.excluded_embed_metadata_keys += _ADDRESS
    node.excluded_llm_metadata_keys += _ADDRESS
    node.embedding = list(vector)
    return node


@dataclass(frozen=True, slots=True)
class Address:
    """Which record a node is."""

    key: FileKey
    record_set_hash: str
    chunk_index: int


def address_of(node: BaseNode) -> Address | None:
    """``None`` for a node that somebody else has added."""
    metadata = node.metadata
    file_id = metadata.get(FILE_ID)
    if node.ref_doc_id is None or file_id is None or any(name not in metadata for name in _ADDRESS):
        return None
    config = node.ref_doc_id.removesuffix(f":{file_id}")
    return Address(FileKey(metadata["tenant_id"], config, file_id), metadata["record_set_hash"], int(metadata["chunk_index"]))
