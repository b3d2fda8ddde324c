"""LlamaIndex nodes of records, as the metadata LlamaIndex's own vector stores keep them in.

What belongs here: the layout of ``llama_index.core.vector_stores.utils.node_to_metadata_dict`` (documented by the vendor),
made without importing llama_index. Which store keeps which part where is that store's own module.

A node's text is the record's ``content``, so its character offsets are exact. ``context`` is node metadata that an LLM is
shown before the text; ids and counters are hidden from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pyarrow as pa

from pipeline.sinks.records import canonical_json, json_string, ref_doc_id

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
    """What all nodes of one file share; ``head`` opens the node's metadata object, ``tail`` ends the node."""

    metadata: dict[str, Any]
    ref_doc_id: str
    head: str
    tail: str


def node_contents(table: pa.Table, *, include_text: bool) -> list[str]:
    """``_node_content`` of every row of ``record_schema``: the node as JSON, with an empty text unless ``include_text``."""
    return _contents(table, _file_parts(table), include_text)


def node_metadata(table: pa.Table, *, include_text: bool) -> list[dict[str, Any]]:
    """Of every row: the file's metadata, ``context``, PROVENANCE_KEYS and NODE_KEYS in one flat dict, nulls included."""
    files = _file_parts(table)
    own = table.select(["context", *PROVENANCE_KEYS]).to_pylist()
    return [
        {
            **file.metadata,
            **fields,
            "_node_content": content,
            "_node_type": NODE_TYPE,
            "document_id": file.ref_doc_id,
            "doc_id": file.ref_doc_id,
            "ref_doc_id": file.ref_doc_id,
        }
        for file, fields, content in zip(files, own, _contents(table, files, include_text), strict=True)
    ]


def ref_doc_ids(table: pa.Table) -> list[str]:
    """LlamaIndex's source document id of every row."""
    return [file.ref_doc_id for file in _file_parts(table)]


def _file_parts(table: pa.Table) -> list[_FilePart]:
    """One entry a row; the rows of a file share theirs."""
    names = ("export_config_id", "parsed_directory_file_id", "file_name", "metadata")
    parts: dict[tuple[str, ...], _FilePart] = {}
    rows = []
    for key in zip(*(table[name].to_pylist() for name in names), strict=True):
        part = parts.get(key)
        if part is None:
            part = parts[key] = _file_part(*key)
        rows.append(part)
    return rows


def _file_part(export_config_id: str, file_id: str, file_name: str, metadata_json: str) -> _FilePart:
    own = {"context", *PROVENANCE_KEYS}
    metadata = {key: value for key, value in json.loads(metadata_json).items() if key not in own}
    document = ref_doc_id(export_config_id, file_id)
    source: dict[str, Any] = {
        "node_id": document,
        "node_type": "4",
        "metadata": {},
        "hash": None,
        "class_name": "RelatedNodeInfo",
    }
    shared = {**metadata, "file_name": file_name, "parsed_directory_file_id": file_id}
    return _FilePart(
        metadata=metadata,
        ref_doc_id=document,
        head=canonical_json({"metadata": shared})[1:-2],
        tail=f"{canonical_json({'relationships': {'1': source}})[1:-1]},{_SAME_IN_EVERY_NODE[1:]}",
    )


def _contents(table: pa.Table, files: Sequence[_FilePart], include_text: bool) -> list[str]:
    texts: Iterable[str] = map(json_string, table["content"].to_pylist()) if include_text else repeat('""', table.num_rows)
    numbers = ("chunk_index", "page_range_start", "page_range_end", "chunk_start_char", "chunk_end_char")
    rows = zip(
        files,
        map(json_string, table["id"].to_pylist()),
        texts,
        map(json_string, table["context"].to_pylist()),
        *(_json_numbers(table[name]) for name in numbers),
        strict=True,
    )
    return [
        f'{{"id_":{node_id},{file.head},"context":{context},"chunk_index":{index},"page_range_start":{first_page},'
        f'"page_range_end":{last_page}}},"start_char_idx":{start},"end_char_idx":{end},"text":{text},{file.tail}'
        for file, node_id, text, context, index, first_page, last_page, start, end in rows
    ]


def _json_numbers(column: pa.ChunkedArray) -> list[Any]:
    return ["null" if value is None else value for value in column.to_pylist()]
