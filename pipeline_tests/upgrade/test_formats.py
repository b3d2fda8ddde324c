"""What is stored, to the byte: a version that writes it otherwise orphans or rewrites what people have.

A test that fails here asks for a decision, not for another value: raise the version that names the format, so that what is
stale is found, or leave the format as it is.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.documents.arrow import CHUNK_FIELDS, PAGE_FIELDS
from pipeline.documents.chunking import CHUNKER_VERSION, chunk_document
from pipeline.documents.document import build_document
from pipeline.documents.models import Attachment, ChunkingSettings, Page
from pipeline.embedding.constant import ConstantEmbedder
from pipeline.embedding.fastembed_embedder import load_fastembed
from pipeline.embedding.reuse import embedding_digest
from pipeline.embedding.settings import EmbeddingSettings
from pipeline.home import Home
from pipeline.lake import Lake
from pipeline.lake.checksum import PLACE, is_damaged, put_checksum
from pipeline.ledger import schema
from pipeline.ledger.models import FileRow
from pipeline.llama_cloud.digests import payload_digest, text_digest
from pipeline.llama_cloud.models import DirectoryFile, Payload
from pipeline.sinks.records import RECORD_VERSION, FileProvenance, build_file_records, ref_doc_id
from pipeline.stages.export import Export
from pipeline.stages.settings import ExportSettings
from pipeline_tests.conformance.harness import MODEL, chunk_id, synthetic_chunks, unit_vectors, vector_column
from pipeline_tests.documents.corpus import headed_paragraphs

AT = datetime(2026, 11, 27, 8, 30, 15, 123000, UTC)
FILE = DirectoryFile("dfl-1", "Größe.pdf", "file-1", {"team": "gauges", "year": 2026}, AT)
PAYLOAD = Payload(
    pages=(Page(1, "# One\n\nA “quoted” word.", "header", None), Page(2, "Two.", items=({"type": "text", "x": 1.5},))),
    attachments=(Attachment("images", "file-2", "file"),),
    content_fingerprint_hash="abc",
    source_modified_at=AT,
)


ATTACHMENTS = "list<item: struct<attachment_name: string, source_id: string, type: string>>"
LEDGER = {
    "indexport_exports": "export tenant_id export_config_id index_status index_error change_key listing_id listed_at complete_at"
    " refetch_cursor sync_requested_at allowed_deletes",
    "indexport_files": "export file_id display_name storage_id metadata updated_at change_token listing_id missing_since status"
    " wave run_id lease_until attempts next_retry_at last_error fetched_token payload_digest text_digest provenance chunks_key"
    " vectors_key records_key record_set_hash settings_digest chunk_count token_count refetch",
    "indexport_file_sinks": "export file_id sink record_set_hash model updated_at",
    "indexport_refusals": "export file_id sink record_set_hash",
    "indexport_sinks": "export sink attempts down_until last_error",
    "indexport_collections": "export sink slug model fingerprint dimension settings",
    "indexport_former_scopes": "export tenant_id export_config_id",
    "indexport_tombstones": "export file_id erased_at proved_at",
    "indexport_vectors": "export model digest file_id",
    "indexport_vector_claims": "export model digest run_id claimed_until",
    "indexport_history": "id export file_id at event run_id details",
}


def types_of(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def test_digests_of_a_payload() -> None:
    assert payload_digest(PAYLOAD, FILE)[:16] == "da354ec4438f42e4"
    assert text_digest(PAYLOAD)[:16] == "63d850e1fe669d0a"
    assert FILE.change_token == "2026-11-27T08:30:15.123000+00:00|file-1|Größe.pdf"


@pytest.mark.parametrize(("strategy", "digest"), [("markdown", "2515154f7709e0c5"), ("text", "766750095334891e")])
def test_chunks(strategy: str, digest: str) -> None:
    """Of prose under three levels of headings and a table too long for one chunk, on two pages."""
    rows = "\n".join(f"| P{n} | The meaning of part {n}, at length |" for n in range(60))
    blocks = headed_paragraphs(random.Random(3), 40)
    texts = [[*blocks[:20], f"| Part | Meaning |\n|---|---|\n{rows}"], blocks[20:]]
    document = build_document([Page(number, "\n\n".join(text)) for number, text in enumerate(texts, 1)], ())
    embedder = ConstantEmbedder()
    settings = ChunkingSettings.model_validate({"strategy": strategy})
    chunks = chunk_document(document, settings, embedder.tokens, embedder.max_tokens)
    cut = [[c.chunk_start_char, c.chunk_end_char, c.context, c.page_range_start, c.page_range_end] for c in chunks]
    made_by = (CHUNKER_VERSION, version("semantic-text-splitter"))
    assert (*made_by, hashlib.sha256(json.dumps(cut).encode()).hexdigest()[:16]) == ("9", "0.33.1", digest)


def test_the_keys_that_say_what_a_file_was_made_from(tmp_path: Path) -> None:
    export = Export(ExportSettings(name="default", embedding=EmbeddingSettings(provider="constant")), Home(tmp_path))
    export.__dict__["chunker"] = "the chunker"
    nothing: dict[str, Any] = dict.fromkeys(FileRow.__dataclass_fields__)
    row = FileRow(**nothing | {"text_digest": "the text", "provenance": "{}"})
    row = replace(row, chunks_key=export.chunks_key(row))
    row = replace(row, vectors_key=export.vectors_key(row))
    assert row.chunks_key == "c5aed2b5aaef0c0f038be4b2f6d2c8f7"
    assert row.vectors_key == "ab331d76c1abcfc286c32b704082620b"
    assert (RECORD_VERSION, export.records_key(row, ("prj-1", "exp-1"))) == ("1", "5fd816a2b8a8639b71e687e6cd1a784a")


def test_the_offline_model_and_the_digest_of_a_text() -> None:
    model = load_fastembed(EmbeddingSettings(threads=1)).identity
    assert model.fingerprint == "sentence-transformers/all-MiniLM-L6-v2@99542914d30f78d0"
    assert model.slug == "sentence-transformers-all-minilm-7d473b27"
    assert embedding_digest("A “quoted” word.").hex() == "443745cee86c262fadfc74f0c982b47e"


def test_records() -> None:
    provenance = FileProvenance("prj-1", "exp-1", "dfl-1", "Größe.pdf", "abc", AT, {"team": "gauges", "year": 2026})
    file = build_file_records(provenance, synthetic_chunks(["one", "Zwei."]), vector_column(unit_vectors("x", 2)), MODEL)
    assert (RECORD_VERSION, file.record_set_hash[:16]) == ("1", "ebd0cf113bbca9d8")
    assert chunk_id("prj-1", "exp-1", "dfl-1", 3) == "4960dc87-9a5f-5906-bb0f-89764f32a144"
    assert chunk_id("prj-1", "exp-1", "dfl-1", 3, "a generation") == "07f61341-3aa1-5753-89db-36a9d364ef50"
    assert ref_doc_id("exp-1", "dfl-1") == "exp-1:dfl-1"


def test_the_checksum_of_an_object_of_the_lake() -> None:
    pages, footer = bytes(range(256)) * 600, b"the footer"
    parquet = bytearray(pages + PLACE + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    put_checksum(memoryview(parquet))
    assert parquet[len(pages) :].hex(" ", -4).startswith("69786372 2f34924b ")
    assert not is_damaged(memoryview(parquet))


def test_the_lake(tmp_path: Path) -> None:
    Lake(str(tmp_path), "default").write("chunks", "../dfl ö/1", pa.table({"a": [1]}), {})
    written = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")]
    assert written == ["default/chunks/%2E.%2Fdfl %C3%B6%2F1.parquet"]
    assert types_of(pa.schema(PAGE_FIELDS)) == {
        "page_number": "int32",
        **dict.fromkeys(("text", "header", "footer", "items"), "string"),
        "attachments": ATTACHMENTS,
    }
    assert types_of(pa.schema(CHUNK_FIELDS)) == {
        "chunk_index": "int32",
        **dict.fromkeys(("content", "context", "content_hash"), "string"),
        **dict.fromkeys(("chunk_start_char", "chunk_end_char"), "int64"),
        **dict.fromkeys(("chunk_token_count", "page_range_start", "page_range_end"), "int32"),
        "attachments": ATTACHMENTS,
    }


def test_the_ledger() -> None:
    """A new table is made when a ledger is opened; a new column of an old table is not."""
    assert {name: " ".join(table.columns.keys()) for name, table in schema.metadata.tables.items()} == LEDGER
