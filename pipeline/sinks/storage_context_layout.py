"""The files of a LlamaIndex StorageContext, as ``StorageContext.persist`` writes them (documented by the vendor).

What belongs here: records as those files' bytes, made without importing llama_index. The files are written piece by piece,
from record tables that are read once a section, so that an index of any size takes the memory of one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sinks.decimals import json_vectors
from pipeline.sinks.llama_node import flat_metadata, node_contents, ref_doc_ids
from pipeline.sinks.records import canonical_json, json_string

Read = Callable[[Sequence[str]], Iterable[pa.Table]]
"""Tables of these columns of ``record_schema`` that together are the index; a file's rows come together and in order."""

Section = Callable[[Read], Iterator[str]]
"""The members of one JSON object, several in one string, never an empty one."""

_FILE: Final = ("export_config_id", "parsed_directory_file_id")
_FLAT: Final = ("id", *_FILE, "file_name", "metadata", "context", "chunk_index", "page_range_start", "page_range_end")
_NODE: Final = (*_FLAT, "content", "chunk_start_char", "chunk_end_char")


def storage_files(index_id: str) -> dict[str, Callable[[Read], Iterator[str]]]:
    """File name -> its content in pieces."""
    vectors: dict[str, Section] = {
        "embedding_dict": _embeddings,
        "metadata_dict": _flat_metadata,
        "text_id_to_ref_doc_id": _ref_docs_of_nodes,
    }
    documents: dict[str, Section] = {
        "docstore/data": _nodes,
        "docstore/metadata": _hashes,
        "docstore/ref_doc_info": _nodes_of_ref_docs,
    }
    return {
        "docstore.json": lambda read: _file(documents, read),
        "index_store.json": lambda read: _index_store(index_id, read),
        "default__vector_store.json": lambda read: _file(vectors, read),
        "image__vector_store.json": lambda _: _file(vectors, lambda _: ()),
        "graph_store.json": lambda _: iter(['{"graph_dict":{}}']),
    }


def _file(sections: Mapping[str, Section], read: Read) -> Iterator[str]:
    opening = "{"
    for name, section in sections.items():
        yield f"{opening}{json_string(name)}:{{"
        yield from _separated(section(read))
        yield "}"
        opening = ","
    yield "}"


def _separated(pieces: Iterable[str]) -> Iterator[str]:
    separator = ""
    for piece in pieces:
        yield f"{separator}{piece}"
        separator = ","


def _joined(*parts: pa.Array | pa.ChunkedArray | str) -> str:
    """Row-wise concatenation of the parts, all rows separated by commas."""
    rows = pc.binary_join_element_wise(*(p.combine_chunks() if isinstance(p, pa.ChunkedArray) else p for p in parts), "")
    return ",".join(rows.to_pylist())


def _refs(table: pa.Table) -> pa.StringArray:
    """The ref_doc_id of every row as JSON."""
    refs = ref_doc_ids(table).dictionary_encode()
    return pa.array([json_string(ref) for ref in refs.dictionary.to_pylist()], pa.string()).take(refs.indices)


def _nodes(read: Read) -> Iterator[str]:
    for table in read(_NODE):
        yield _joined('"', table["id"], '":{"__data__":', node_contents(table), ',"__type__":"1"}')


def _hashes(read: Read) -> Iterator[str]:
    """Of every node the digest of its content, of every document that of its payload."""
    for table in read(("id", *_FILE, "chunk_index", "content_hash", "content_fingerprint_hash")):
        refs = _refs(table)
        hashes = _json_strings(table["content_hash"])
        yield _joined('"', table["id"], '":{"doc_hash":', hashes, ',"ref_doc_id":', refs, "}")
        first = pc.equal(table["chunk_index"], 0).combine_chunks()
        documents = _json_strings(table["content_fingerprint_hash"]).filter(first)
        if len(documents):
            yield _joined(refs.filter(first), ':{"doc_hash":', documents, "}")


def _json_strings(column: pa.ChunkedArray) -> pa.StringArray:
    return pa.array([json_string(value) for value in column.to_pylist()], pa.string())


def _nodes_of_ref_docs(read: Read) -> Iterator[str]:
    for table in read(("id", *_FILE)):
        members: dict[str, list[str]] = {}
        for ref, node in zip(_refs(table).to_pylist(), table["id"].to_pylist(), strict=True):
            members.setdefault(ref, []).append(f'"{node}"')
        yield ",".join(f'{ref}:{{"metadata":{{}},"node_ids":[{",".join(nodes)}]}}' for ref, nodes in members.items())


def _embeddings(read: Read) -> Iterator[str]:
    for table in read(("id", "embedding")):
        yield _joined('"', table["id"], '":[', json_vectors(table["embedding"]), "]")


def _ref_docs_of_nodes(read: Read) -> Iterator[str]:
    for table in read(("id", *_FILE)):
        yield _joined('"', table["id"], '":', _refs(table))


def _flat_metadata(read: Read) -> Iterator[str]:
    """What LlamaIndex filters on: everything but the node itself."""
    for table in read(_FLAT):
        rows = zip(table["id"].to_pylist(), flat_metadata(table), strict=True)
        yield ",".join(f'"{node}":{canonical_json(metadata)}' for node, metadata in rows)


def _index_store(index_id: str, read: Read) -> Iterator[str]:
    """One vector index over all nodes; the store keeps an index as a string of JSON."""
    yield f'{{"index_store/data":{{{json_string(index_id)}:{{"__data__":"'
    struct = canonical_json({"doc_id_dict": {}, "embeddings_dict": {}, "index_id": index_id, "summary": None})
    yield json_string(f'{struct[:-1]},"nodes_dict":{{')[1:-1]
    yield from _separated(_joined('\\"', t["id"], '\\":\\"', t["id"], '\\"') for t in read(("id",)))
    yield '}}","__type__":"vector_store"}}}'
