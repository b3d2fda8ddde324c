"""LlamaIndex nodes of records, compared with the layout its own stores write."""

from __future__ import annotations

import json
import time

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sinks.llama_node import NODE_KEYS, PROVENANCE_KEYS, node_contents, node_metadata, ref_doc_ids
from pipeline_tests.conformance.harness import Bench

FILES = Bench(sink=None, tenant="prj-1", config="cfg-1")  # type: ignore[arg-type] # only its builder of files is used
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def test_a_node_has_the_documented_layout() -> None:
    file = FILES.file("dfl-1", ["one", "two"], metadata={"year": 2024, "chunk_index": "shadowed"})
    row = file.table.slice(1, 1).to_pylist()[0]
    node = json.loads(node_contents(file.table)[1].as_py())
    assert node == {
        "id_": row["id"],
        "embedding": None,
        "metadata": {
            "year": 2024,
            "file_name": "dfl-1.pdf",
            "parsed_directory_file_id": "dfl-1",
            "context": "# Manual\n\n",
            "chunk_index": 1,
            "page_range_start": 2,
            "page_range_end": 3,
        },
        "excluded_embed_metadata_keys": [
            "parsed_directory_file_id",
            "chunk_index",
            "file_name",
            "page_range_start",
            "page_range_end",
        ],
        "excluded_llm_metadata_keys": ["parsed_directory_file_id", "chunk_index"],
        "relationships": {
            "1": {
                "node_id": "cfg-1:dfl-1",
                "node_type": "4",
                "metadata": {},
                "hash": None,
                "class_name": "RelatedNodeInfo",
            }
        },
        "metadata_template": "{key}: {value}",
        "metadata_separator": "\n",
        "text": "two",
        "mimetype": "text/plain",
        "start_char_idx": row["chunk_start_char"],
        "end_char_idx": row["chunk_end_char"],
        "text_template": "{metadata_str}\n\n{content}",
        "class_name": "TextNode",
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=4), ANY_TEXT, st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3))
def test_any_text_comes_through_json(texts: list[str], name: str, metadata: dict[str, str]) -> None:
    file = FILES.file("dfl-'\"\\", texts, name=name, metadata=metadata)
    nodes = [json.loads(content) for content in node_contents(file.table).to_pylist()]
    assert [node["text"] for node in nodes] == texts
    own = {*PROVENANCE_KEYS, "context"}
    for node in nodes:
        assert {key: value for key, value in node["metadata"].items() if key not in own} == {
            key: value for key, value in metadata.items() if key not in own
        }
        assert node["metadata"]["file_name"] == name
        assert node["relationships"]["1"]["node_id"] == "cfg-1:dfl-'\"\\"


def test_the_text_can_be_left_out_and_files_can_be_mixed() -> None:
    rows = pa.concat_tables(
        [FILES.file("dfl-1", 2).table, FILES.file("dfl-2", 1, metadata={"x": 1}).table, FILES.file("dfl-1", 2).table]
    )
    nodes = [json.loads(metadata["_node_content"]) for metadata in node_metadata(rows)]
    assert {node["text"] for node in nodes} == {""}
    assert [node["metadata"].get("x") for node in nodes] == [None, None, 1, None, None]
    assert ref_doc_ids(rows).to_pylist() == ["cfg-1:dfl-1"] * 2 + ["cfg-1:dfl-2"] + ["cfg-1:dfl-1"] * 2


def test_flat_metadata_repeats_the_node_s_own_beside_it() -> None:
    file = FILES.file("dfl-1", 3, metadata={"year": 2024, "note": None})
    for flat, row in zip(node_metadata(file.table), file.table.to_pylist(), strict=True):
        node = json.loads(flat["_node_content"])
        assert {key: value for key, value in flat.items() if key not in NODE_KEYS} == node["metadata"]
        assert flat["_node_type"] == "TextNode"
        assert flat["document_id"] == flat["doc_id"] == flat["ref_doc_id"] == "cfg-1:dfl-1"
        assert node["id_"] == row["id"]


def test_fifteen_thousand_nodes_are_made_quickly() -> None:
    rows = pa.concat_tables([FILES.file("dfl-1", ['a "quoted" line\n' * 60] * 150).table] * 100)
    started = time.process_time()
    assert len(node_contents(rows)) == 15_000
    assert time.process_time() - started < 1.5  # 0.05 s on a fast machine
