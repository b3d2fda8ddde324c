"""LlamaIndex nodes of records, as the metadata LlamaIndex's own vector stores keep them in.

What belongs here: the layout of ``llama_index.core.vector_stores.utils.node_to_metadata_dict`` (documented by the vendor),
made without importing llama_index. Which store keeps which part where is that store's own module.

A node's text is the record's ``content``, so its character offsets are exact. ``context`` is node metadata that an LLM is
shown before the text; ids and counters are hidden from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sinks.records import canonical_json, json_string, ref_doc_id

_FIRST_PRINTABLE = 0x20

NODE_TYPE = "TextNode"
NODE_KEYS = ("_node_content", "_node_type", "document_id", "doc_id", "ref_doc_id")
"""What LlamaIndex adds to a node's own metadata; the last three all hold the ref_doc_id."""

PROVENANCE_KEYS = ("file_name", "parsed_directory_file_id", "chunk_index", "page_range_start", "page_range_end")
"""Record fields that are node metadata too, beside ``context`` and the file's own metadata."""

_HIDDEN_FROM_LLM = ["parsed_directory_file_id", "chunk_index"]
_HIDDEN_FROM_EMBEDDING = [*_HIDDEN_FROM_LLM, "file_name", "page_range_start", "page_range_end"]
_SAME_IN_EVERY_NODE = canonical_json(
    {
        "class_name": NODE_TYPE,
        "embedding": None,
        "excluded_embed_metadata_keys": _HIDDEN_FROM_EMBEDDING,
        "excluded_llm_metadata_keys": _HIDDEN_FROM_LLM,
        "metadata_separator": "\n",
        "metadata_template": "{key}: {value}",
        "mimetype": "text/plain",
        "text_template": "{metadata_str}\n\n{content}",
    }
)


@dataclass(frozen=True, slots=True)
class _FilePart:
    """What all nodes of one file share; ``head`` opens the node's metadata object, ``source`` is its relationships."""

    metadata: dict[str, Any]
    ref_doc_id: str
    head: str
    source: str


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a table; ``codes`` says of every row which of ``parts`` is its file's."""

    parts: list[_FilePart]
    codes: pa.Array

    def column(self, attribute: str) -> pa.StringArray:
        return pa.array([getattr(part, attribute) for part in self.parts], pa.string()).take(self.codes)

    @property
    def rows(self) -> list[_FilePart]:
        return [self.parts[code] for code in self.codes.to_pylist()]


def node_contents(table: pa.Table) -> pa.StringArray:
    """``_node_content`` of every row of ``record_schema``: the node as JSON."""
    return _contents(table, _files_of(table), include_text=True)


def node_copies(table: pa.Table) -> list[dict[str, Any]]:
    """NODE_KEYS of every row, the text in ``_node_content`` too."""
    documents, contents = ref_doc_ids(table).to_pylist(), node_contents(table).to_pylist()
    return [
        dict(zip(NODE_KEYS, (content, NODE_TYPE, document, document, document), strict=True))
        for content, document in zip(contents, documents, strict=True)
    ]


def node_metadata(table: pa.Table) -> list[dict[str, Any]]:
    """``flat_metadata`` with ``_node_content``, too, whose text is empty."""
    files = _files_of(table)
    flat = _flat(table, files)
    for metadata, content in zip(flat, _contents(table, files, include_text=False).to_pylist(), strict=True):
        metadata["_node_content"] = content
    return flat


def flat_metadata(table: pa.Table) -> list[dict[str, Any]]:
    """Of every row: the file's metadata, ``context``, PROVENANCE_KEYS and the rest of NODE_KEYS in one dict, nulls included."""
    return _flat(table, _files_of(table))


def _flat(table: pa.Table, files: _Files) -> list[dict[str, Any]]:
    own = table.select(["context", *PROVENANCE_KEYS]).to_pylist()
    return [
        {
            **file.metadata,
            **fields,
            "_node_type": NODE_TYPE,
            "document_id": file.ref_doc_id,
            "doc_id": file.ref_doc_id,
            "ref_doc_id": file.ref_doc_id,
        }
        for file, fields in zip(files.rows, own, strict=True)
    ]


def ref_doc_ids(table: pa.Table) -> pa.StringArray:
    """LlamaIndex's source document id of every row."""
    return pc.binary_join_element_wise(table["export_config_id"], table["parsed_directory_file_id"], ":").combine_chunks()


def _files_of(table: pa.Table) -> _Files:
    names = ("export_config_id", "parsed_directory_file_id", "file_name", "metadata")
    numbers: dict[tuple[str, ...], int] = {}
    codes = [numbers.setdefault(key, len(numbers)) for key in zip(*(table[name].to_pylist() for name in names), strict=True)]
    return _Files([_file_part(*key) for key in numbers], pa.array(codes, pa.int32()))


def _file_part(export_config_id: str, file_id: str, file_name: str, metadata_json: str) -> _FilePart:
    own = {"context", *PROVENANCE_KEYS}
    metadata = {key: value for key, value in json.loads(metadata_json).items() if key not in own}
    document = ref_doc_id(export_config_id, file_id)
    shared = {**metadata, "file_name": file_name, "parsed_directory_file_id": file_id}
    source: dict[str, Any] = {
        "class_name": "RelatedNodeInfo",
        "hash": None,
        "metadata": {},
        "node_id": document,
        "node_type": "4",
    }
    return _FilePart(
        metadata=metadata,
        ref_doc_id=document,
        head=canonical_json({"metadata": shared})[1:-2],
        source=canonical_json({"relationships": {"1": source}})[1:-1],
    )


def _contents(table: pa.Table, files: _Files, *, include_text: bool) -> pa.StringArray:
    """Joined column by column: this runs for every record ever written, and its text is most of the work."""
    return pc.binary_join_element_wise(
        '{"id_":"',
        _json_escaped(table["id"]),
        '",',
        files.column("head"),
        ',"context":"',
        _json_escaped(table["context"]),
        '","chunk_index":',
        _json_numbers(table["chunk_index"]),
        ',"page_range_start":',
        _json_numbers(table["page_range_start"]),
        ',"page_range_end":',
        _json_numbers(table["page_range_end"]),
        '},"start_char_idx":',
        _json_numbers(table["chunk_start_char"]),
        ',"end_char_idx":',
        _json_numbers(table["chunk_end_char"]),
        ',"text":"',
        _json_escaped(table["content"]) if include_text else "",
        '",',
        files.column("source"),
        f",{_SAME_IN_EVERY_NODE[1:]}",
        "",
    )


def _json_escaped(column: pa.ChunkedArray) -> pa.StringArray:
    """The inside of JSON strings: quotes, backslashes and whatever control characters occur, escaped."""
    strings = column.combine_chunks()
    data = strings.buffers()[2]
    used = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    for character in ["\\", '"', *map(chr, np.unique(used[used < _FIRST_PRINTABLE]))]:
        strings = pc.replace_substring(strings, character, json_string(character)[1:-1])
    return strings


def _json_numbers(column: pa.ChunkedArray) -> pa.StringArray:
    return pc.fill_null(pc.cast(column.combine_chunks(), pa.string()), "null")
