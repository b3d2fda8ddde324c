# mypy: disable-error-code="import-not-found"
# LlamaIndex has an environment of its own, which the type checker does not see.
"""What the llama_docstore sink keeps of a file, as LlamaIndex's docstores keep it in a key-value store.

What belongs here: the codec between records and entries; nothing here reads or writes. Nodes are those of the vector sink, under
the same ids. Beside a node, in the same entry, stand the fields of its record that LlamaIndex has no use for: what removes
the node removes them. The document itself is kept too, as LlamaIndex's ingestion pipelines keep theirs, so that its hash is one
LlamaIndex computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
from llama_index.core.schema import BaseNode, Document
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from pipeline.sinks.base import Snapshot
from pipeline.sinks.copies import show_altered
from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.llama_index_documents import FileState, decode_state, encode_state
from pipeline.sinks.llama_node import NODE_TYPE, node_contents
from pipeline.sinks.records import FileRecords, canonical_json, record_schema, record_set_hash, with_ids

Entry = tuple[str, dict[str, Any]]
"""A key and what stands under it."""

OURS: Final = "indexport"
"""The member of an entry that LlamaIndex does not read: canonical JSON."""

_OF_CHUNK: Final = ("context", "chunk_index", "page_range_start", "page_range_end")
_IN_NODE: Final = ("id", "content", *_OF_CHUNK, "file_name", "chunk_start_char", "chunk_end_char")
_SCHEMA: Final = record_schema(1, vectors=False)
_BESIDE_NODE: Final = [name for name in _SCHEMA.names if name not in _IN_NODE]


@dataclass(frozen=True, slots=True)
class FileEntries:
    """A file with at least one record. ``ids`` are its nodes', in chunk order; ``bytes`` and ``largest`` are of all its entries
    and of the largest one."""

    key: FileKey
    state: FileState
    ids: Sequence[str]
    nodes: Sequence[Entry]
    hashes: Sequence[Entry]
    metadata: Mapping[str, Any]
    bytes: int
    largest: int

    @property
    def generation(self) -> Generation:
        return self.state.generations[0]


@dataclass(frozen=True, slots=True)
class HeldFile:
    """What a docstore says of a file: which nodes LlamaIndex sees, and what this sink has noted."""

    state: FileState
    node_ids: Sequence[str]
    metadata: Mapping[str, Any]

    def to_snapshot(self) -> Snapshot:
        """One that matches nothing while a replace has not ended, or when somebody has taken nodes away or added some."""
        is_whole = len(self.node_ids) == self.state.snapshot.chunk_count
        return (self if is_whole else self.as_pending()).state.to_snapshot()

    def as_pending(self) -> HeldFile:
        return replace(self, state=replace(self.state, pending=True))


def encode_file(file: FileRecords, ids: Sequence[str]) -> FileEntries:
    key = FileKey.of(file)
    table = with_ids(file.table, ids)
    contents = node_contents(table).to_pylist()
    nodes = [_node(content) for content in contents]
    document = _document(table, nodes[0])
    beside = [canonical_json(row) for row in table.select(_BESIDE_NODE).to_pylist()]
    entries = [(node.node_id, {**doc_to_json(node), OURS: text}) for node, text in zip(nodes, beside, strict=True)]
    entries.append((document.node_id, doc_to_json(document)))
    hashes = [(node.node_id, {"doc_hash": node.hash, "ref_doc_id": document.node_id}) for node in nodes]
    generation = Generation.of(file)
    sizes = [len(json.dumps(entry, ensure_ascii=False).encode()) for _, entry in entries]
    return FileEntries(
        key=key,
        state=FileState(key.tenant_id, Snapshot.of(file), (generation,), pending=False),
        ids=ids,
        nodes=entries,
        hashes=[*hashes, (document.node_id, {"doc_hash": document.hash})],
        metadata=document.metadata,
        bytes=sum(sizes),
        largest=max(sizes),
    )


def _document(table: pa.Table, node: BaseNode) -> Document:
    """The document of a file's records, one of which has this node, as LlamaIndex would have loaded it, without nulls, which
    some vector stores do not take. Its text has line feeds where no chunk has the blanks between them."""
    shared = {name: value for name, value in node.metadata.items() if name not in _OF_CHUNK}
    return Document(
        id_=node.ref_doc_id,
        text=_text(table),
        metadata={name: value for name, value in shared.items() if value is not None},
        excluded_llm_metadata_keys=["parsed_directory_file_id"],
        excluded_embed_metadata_keys=["parsed_directory_file_id", "file_name"],
    )


def _text(table: pa.Table) -> str:
    """A text of which every chunk is the slice it says it is."""
    parts: list[str] = []
    end = 0
    columns = ("chunk_start_char", "chunk_end_char", "content")
    for start, stop, content in sorted(zip(*(table[name].to_pylist() for name in columns), strict=True)):
        if stop > end:
            parts += ["\n" * (start - end), content[max(0, end - start) :]]
            end = stop
    return "".join(parts)


def encode_info(node_ids: Sequence[str], metadata: Mapping[str, Any], state: FileState) -> dict[str, Any]:
    """What LlamaIndex calls a document's ``ref_doc_info``."""
    return {"node_ids": list(node_ids), "metadata": {**metadata, OURS: encode_state(state)}}


def decode_info(info: Mapping[str, Any]) -> HeldFile | None:
    """``None`` for a document that somebody else has added."""
    metadata = dict(info.get("metadata") or {})
    ours = metadata.pop(OURS, None)
    return None if ours is None else HeldFile(decode_state(ours), info["node_ids"], metadata)


def decode_file(
    nodes: Iterable[Mapping[str, Any]], document: Mapping[str, Any] | None, hashed: Mapping[str, Any] | None
) -> pa.Table:
    """Rows of ``record_schema`` without ``embedding``, from the entries of a file; nodes of others are left out. The first row
    shows what is not as it was written of the document and its hash (``copies.ALTERED``)."""
    table = pa.Table.from_pylist([_row(entry) for entry in nodes if OURS in entry], schema=_SCHEMA)
    altered = _altered(table, document, hashed) if table.num_rows else []
    return show_altered(table, {0: altered} if altered else {})


def _altered(table: pa.Table, document: Mapping[str, Any] | None, hashed: Mapping[str, Any] | None) -> list[str]:
    """What is gone; and what is another than that of these records, as far as they are those that were written."""
    if document is None or hashed is None:
        return [name for name, entry in (("document", document), ("document hash", hashed)) if entry is None]
    if record_set_hash(table) != table["record_set_hash"][0].as_py():
        return []
    wanted, held = _document(table, _node(node_contents(table.slice(0, 1))[0].as_py())), json_to_doc(document)
    is_same = {
        "document": (held.text, held.metadata) == (wanted.text, wanted.metadata),
        "document hash": hashed.get("doc_hash") == wanted.hash,
    }
    return [name for name, same in is_same.items() if not same]


def _node(content: str) -> BaseNode:
    return metadata_dict_to_node({"_node_content": content, "_node_type": NODE_TYPE})


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    node = json_to_doc({name: value for name, value in entry.items() if name != OURS})
    beside = json.loads(entry[OURS])
    modified = beside["source_modified_at"]
    return {
        **beside,
        **{name: node.metadata[name] for name in (*_OF_CHUNK, "file_name")},
        "id": node.node_id,
        "content": node.text,
        "chunk_start_char": node.start_char_idx,
        "chunk_end_char": node.end_char_idx,
        "source_modified_at": modified and datetime.fromisoformat(modified),
    }
