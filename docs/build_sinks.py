"""Writes ``sinks.md``: what each store promises, as measured on the engines and emulators of the conformance suite.

``python docs/build_sinks.py`` replaces files under the eyes of a second reader and notes what that reader ever saw. Where a
megabyte of text does not fit, it tries what does.
"""

from __future__ import annotations

import asyncio
import importlib
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.sinks.base import Exporter
from pipeline.sinks.registry import SINKS, exporter_class
from pipeline_tests.conformance.harness import HARNESSES, Bench, SinkUnderTest, load_harness, provisioned_bench

TARGET = Path(__file__).with_name("sinks.md")
_ROUNDS = 12
_RECORDS = 12
_HEAD = """# What each sink promises

Measured by `docs/build_sinks.py` on the engines and emulators of the conformance suite, which every sink passes: a file of
{records} records was replaced {rounds} times while a second reader read it without pause. *Mixed*: the reader saw records of
both versions at once; *fewer*: it saw fewer records than the old version had, which no sink may show. *Largest chunk*: the
longest plain text that a file of one chunk and little metadata may have; a larger one is refused, with the reason. LlamaIndex has
an environment of its own, where the suite is passed too; the sinks that need it are not measured (–).

| sink | reads | mixed | fewer | declared atomic | search | largest chunk |
|---|---|---|---|---|---|---|
"""
_EXAMPLES = {
    "llama_docstore": """
```yaml
sinks:
  pinecone: {}
  llama_docstore: {vector_sink: pinecone}   # MongoDB at MONGODB_URI, database llama_index
```

```python
uri = os.environ["MONGODB_URI"]
name = LlamaDocstoreExporter(LlamaDocstoreSettings(vector_sink="pinecone"), context).namespace(export_config_id)
storage_context = StorageContext.from_defaults(
    docstore=MongoDocumentStore.from_uri(uri, "llama_index", namespace=f"{name}/docstore"),
    index_store=MongoIndexStore.from_uri(uri, "llama_index", namespace=f"{name}/index_store"),
    vector_store=PineconeVectorStore(pinecone_index=index, namespace=namespace),
)
index = load_index_from_storage(storage_context, store_nodes_override=True)
index.delete_ref_doc(f"{export_config_id}:{file_id}", delete_from_docstore=True)
```

Beside a store that others share, with `pgvector: {}` and `llama_docstore: {vector_sink: pgvector, list_nodes: false}`:

```python
vectors = open_index(pgvector_sink, export_config_id=export_config_id, embedder=embedder)  # as in reading.md
storage_context = docstore_sink.storage_context(export_config_id, vectors.vector_store)
index = load_index_from_storage(storage_context)  # Settings.embed_model is the export's model, as above
```
""",
    "llama_index": """
```yaml
sinks:
  llama_index:                              # Chroma, and LlamaIndex's docstore on MongoDB
    vector_store:
      class: llama_index.vector_stores.chroma:ChromaVectorStore.from_params
      args: {collection_name: "{collection}", persist_dir: /srv/chroma, collection_kwargs: {metadata: {"hnsw:space": cosine}}}
    docstore:
      class: llama_index.storage.docstore.mongodb:MongoDocumentStore.from_uri
      args: {uri: "${MONGODB_URI}", db_name: documents}
```
""",
}
"""Sink -> how it is set up or opened by its readers, where that takes more than one line."""
_OWN = """
## Your own class

```yaml
sinks:
  mine: {type: "your.module:YourExporter", path: /srv/rows.json}   # what is not a setting of every sink goes to its constructor
```

Any class with the reference exporters' four methods will do: `export`, `delete_file`, `delete_files` and `list_snapshots`
([an example](../pipeline_tests/sinks/reference_exporter.py)). It is filled, kept up to date and proved by its snapshots. One that
derives from `Exporter` ([base.py](../pipeline/sinks/base.py) says what each method promises) can be searched, read back, deeply
verified and repaired as well; the conformance suite tells whether it keeps what it promises
([harness.py](../pipeline_tests/conformance/harness.py)).
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the second reader saw."""

    reads: int
    mixed: int
    fewer: int


async def measure(sink: SinkUnderTest) -> Measured:
    """Replace one file again and again; count what a second handle sees meanwhile."""
    bench = Bench(sink)
    writer, reader = bench.open(), bench.open()
    try:
        await writer.provision()
        await reader.provision()
        await bench.replace(bench.file("dfl-1", _RECORDS, version="v0"))
        seen: Counter[str] = Counter()
        done = asyncio.Event()
        watching = asyncio.create_task(_watch(reader, bench.config, done, seen))
        for n in range(1, _ROUNDS + 1):
            await writer.replace_files([bench.file("dfl-1", _RECORDS, version=f"v{n}")])
        done.set()
        await watching
        return Measured(seen["reads"], seen["mixed"], seen["fewer"])
    finally:
        for exporter in bench.opened:
            await exporter.close()


async def largest_chunk(sink: SinkUnderTest) -> str:
    """The longest text that is not refused."""
    if sink.max_content_bytes is None:
        return "over 1 MB"
    fits, refused = 0, sink.max_content_bytes + 1
    async with provisioned_bench(sink) as bench:
        while refused - fits > 1:
            tried = (fits + refused) // 2
            report = await bench.replace(bench.file("dfl-1", [("word " * tried)[:tried]]))
            fits, refused = (fits, tried) if report.refused else (tried, refused)
    return f"{fits:,} bytes"


async def _watch(reader: Exporter, config: str, done: asyncio.Event, seen: Counter[str]) -> None:
    while not done.is_set():
        rows, hashes = 0, set()
        async for table in reader.fetch_records(export_config_id=config):
            rows += table.num_rows
            hashes |= set(table["content_fingerprint_hash"].to_pylist())
        seen["reads"] += 1
        seen["mixed"] += len(hashes) > 1
        seen["fewer"] += rows < _RECORDS


def sinks_page() -> str:
    """The page as measured now."""
    return "".join([_HEAD.format(records=_RECORDS, rounds=_ROUNDS), *map(_row, sorted(HARNESSES)), about_sinks()])


def about_sinks() -> str:
    """What of the page is not measured."""
    notes = []
    for name in sorted(HARNESSES):
        module = importlib.import_module(SINKS[name].partition(":")[0])
        notes.append(f"\n## `{name}`\n\n{_about(module.__doc__ or '')}\n{_EXAMPLES.get(name, '')}")
    return "".join([*notes, _OWN])


def _row(name: str) -> str:
    kind = exporter_class(name)
    atomic = "yes" if kind.atomic_replace else "no"
    modes = ", ".join(mode for mode in ("vector", "text", "hybrid") if mode in kind.search_modes) or "none"
    try:
        with tempfile.TemporaryDirectory() as directory, load_harness(name)(Path(directory)) as sink:
            found = asyncio.run(measure(sink))
            cells = [found.reads, found.mixed, found.fewer, atomic, modes, asyncio.run(largest_chunk(sink))]
    except pytest.skip.Exception:
        cells = ["–", "–", "–", atomic, modes, "–"]
    return f"| `{name}` | {' | '.join(map(str, cells))} |\n"


def _about(document: str) -> str:
    """A module's docstring without what it says to people who change it."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in document.strip().split("\n\n")]
    return "\n\n".join(p for p in paragraphs if not p.startswith("What belongs here"))


if __name__ == "__main__":
    TARGET.write_text(sinks_page(), encoding="utf-8")
