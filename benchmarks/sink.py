"""How fast a sink replaces, lists, reads and searches: ``python -m benchmarks.sink lancedb [--records 20000] [--json]``.

Settings come as ``--set name=value``; without any, LanceDB writes to a temporary directory. For LanceDB the bare
``merge_insert`` of the same physical rows is measured beside it: the price of everything Indexport adds. PostgreSQL is
measured beside a bare binary ``COPY`` in the same way, on a server of its own unless INDEXPORT_PGVECTOR_DSN names one;
MongoDB beside its driver, on SecantusDB unless INDEXPORT_MONGODB_URI names a server; Turbopuffer and Pinecone beside their
own clients, on emulators unless TURBOPUFFER_API_KEY or PINECONE_API_KEY is set, and Qdrant likewise (QDRANT_URL).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from pipeline.documents.arrow import ATTACHMENT_TYPE, CHUNK_FIELDS
from pipeline.embedding.base import ModelIdentity
from pipeline.sinks.base import Exporter, SearchRequest, SinkContext
from pipeline.sinks.records import FileProvenance, FileRecords, build_file_records
from pipeline.sinks.registry import exporter_class

SEARCHES = 20
COMPARISONS = {
    "azure_ai_search": "benchmarks.sink_azure_ai_search",
    "mongodb": "benchmarks.sink_mongodb",
    "pgvector": "benchmarks.sink_pgvector",
    "pinecone": "benchmarks.sink_pinecone",
    "qdrant": "benchmarks.sink_qdrant",
    "turbopuffer": "benchmarks.sink_turbopuffer",
}
"""Sinks whose module has a ``server()`` to run on and a ``Comparison`` with the store's own way of writing."""

TENANT, CONFIG = "prj-benchmark", "cfg-benchmark"
WORDS = ["gauge", "river", "station", "level", "flow", "sensor", "valve", "mast", "cable", "reading", "alarm", "flood"]


@dataclass(frozen=True)
class Measure:
    step: str
    records: int
    seconds: float

    @property
    def per_second(self) -> int:
        return round(self.records / self.seconds) if self.records else 0


def synthetic_files(records: int, per_file: int, model: ModelIdentity) -> list[FileRecords]:
    """Files of ``per_file`` chunks of about 900 characters with unit vectors; the same every time."""
    generator = np.random.default_rng(7)
    files = []
    for number in range(records // per_file):
        texts = [" ".join(generator.choice(WORDS, 150)) for _ in range(per_file)]
        ends = np.cumsum([len(text) for text in texts])
        chunks = pa.table(
            {
                "chunk_index": pa.array(range(per_file), pa.int32()),
                "content": texts,
                "context": ["# Manual\n\n"] * per_file,
                "chunk_start_char": pa.array(ends - len(texts[0]), pa.int64()),
                "chunk_end_char": pa.array(ends, pa.int64()),
                "chunk_token_count": pa.array([200] * per_file, pa.int32()),
                "page_range_start": pa.array(range(1, per_file + 1), pa.int32()),
                "page_range_end": pa.array(range(1, per_file + 1), pa.int32()),
                "attachments": pa.array([[]] * per_file, pa.list_(ATTACHMENT_TYPE)),
                "content_hash": [sha256(text.encode()).hexdigest() for text in texts],
            },
            schema=pa.schema(CHUNK_FIELDS),
        )
        vectors = generator.standard_normal((per_file, model.dimension), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), model.dimension)
        modified = datetime(2026, 1, 1, tzinfo=UTC)
        name = f"dfl-{number:06}"
        provenance = FileProvenance(TENANT, CONFIG, name, f"{number}.pdf", f"{number:064x}", modified, {"year": number})
        files.append(build_file_records(provenance, chunks, column, model))
    return files


async def timed(step: str, records: int, work: Callable[[], Awaitable[Any]]) -> Measure:
    started = time.perf_counter()
    await work()
    return Measure(step, records, time.perf_counter() - started)


async def measure(exporter: Exporter, files: Sequence[FileRecords], batch: int) -> list[Measure]:
    records = sum(file.table.num_rows for file in files)
    batches = [files[start : start + batch] for start in range(0, len(files), batch)]

    async def replace_all() -> None:
        for some in batches:
            await exporter.replace_files(some)

    async def fetch_all() -> None:
        async for _ in exporter.fetch_records(export_config_id=CONFIG):
            pass

    async def search(**request: Any) -> None:
        for number in range(SEARCHES):
            vector = files[number % len(files)].table["embedding"].chunk(0)[0].values.to_numpy()
            await exporter.search(SearchRequest(CONFIG, vector=vector, **request))

    named = [file.file_id for file in files[: len(files) // 2]]
    steps: list[tuple[str, int, Callable[[], Awaitable[Any]]]] = [
        ("replace_files, new", records, replace_all),
        ("replace_files, again", records, replace_all),
        ("list_snapshots", len(files), lambda: exporter.list_snapshots(export_config_id=CONFIG)),
        ("fetch_records", records, fetch_all),
        ("optimize", records, exporter.optimize),
        ("search vector", SEARCHES, search),
        ("search vector, filtered", SEARCHES, partial(search, filters={"year": {"lt": 10}})),
        *(
            (f"search {mode}", SEARCHES, partial(search, mode=mode, text="flood alarm"))
            for mode in sorted(exporter.search_modes - {"vector"})
        ),
        (
            "delete_files, half",
            records // 2,
            partial(exporter.delete_files, parsed_directory_file_ids=named, export_config_id=CONFIG),
        ),
    ]
    return [await timed(*step) for step in steps]


async def against_bare_lancedb(files: Sequence[FileRecords], batch: int, context: SinkContext, uri: str) -> list[Measure]:
    """replace_files into a new table, and the same rows through ``merge_insert`` alone; the best of three turns each."""
    import lancedb

    from pipeline.sinks import lancedb_table as layout
    from pipeline.sinks.lancedb import LanceDBExporter, LanceDBSettings

    schema = layout.table_schema(context.model, context.metadata_fields)
    batches = [files[start : start + batch] for start in range(0, len(files), batch)]
    encoded = []
    for some in batches:
        values = [dict(file.provenance.metadata) for file in some for _ in range(file.table.num_rows)]
        encoded.append(layout.encode(pa.concat_tables([file.table for file in some]), values, schema))
    database = await lancedb.connect_async(uri)

    async def merge_all(table: Any) -> None:
        for rows in encoded:
            await table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    async def replace_all(exporter: Exporter) -> None:
        for some in batches:
            await exporter.replace_files(some)

    records = sum(rows.num_rows for rows in encoded)
    bare, ours = [], []
    for turn in range(3):
        table = await database.create_table(f"bare{turn}", schema=schema)
        bare.append(await timed("bare merge_insert", records, partial(merge_all, table)))
        exporter = LanceDBExporter(LanceDBSettings(uri=uri, table_prefix=f"turn{turn}"), context)
        await exporter.provision()
        ours.append(await timed("replace_files, best turn", records, partial(replace_all, exporter)))
        await exporter.close()
    return [min(turns, key=lambda measure: measure.seconds) for turns in (bare, ours)]


def _server(sink: str, settings: dict[str, str]) -> AbstractContextManager[None]:
    if sink not in COMPARISONS or settings:
        return nullcontext()
    made: AbstractContextManager[None] = import_module(COMPARISONS[sink]).server()
    return made


async def run(options: argparse.Namespace, settings: dict[str, str]) -> list[Measure]:
    model = ModelIdentity("benchmark", "benchmark/1", options.dimension)
    context = SinkContext(TENANT, model, {"year": "integer"})
    files = synthetic_files(options.records, options.per_file, model)
    found = exporter_class(options.sink)
    with tempfile.TemporaryDirectory() as directory, _server(options.sink, settings):
        measures = []
        if options.sink == "lancedb" and not settings:
            settings = {"uri": f"{directory}/sink"}
            measures += await against_bare_lancedb(files, options.batch, context, f"{directory}/bare")
        if options.sink in COMPARISONS and not settings:
            batches = [files[start : start + options.batch] for start in range(0, len(files), options.batch)]
            measures += await import_module(COMPARISONS[options.sink]).Comparison(context, batches).run(timed)
        exporter = found(found.settings_type.model_validate(settings), context)
        try:
            await exporter.provision()
            measures += await measure(exporter, files, options.batch)
        finally:
            await exporter.close()
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sink", help="registered name of the sink")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the sink; repeatable")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--per-file", type=int, default=100)
    parser.add_argument("--batch", type=int, default=500, help="files per replace_files call")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    options = parser.parse_args()
    measures = asyncio.run(run(options, dict(item.split("=", 1) for item in options.set)))
    if options.json:
        json.dump([{**asdict(item), "per_second": item.per_second} for item in measures], sys.stdout, indent=1)
        return
    table = Table("step", "records", "seconds", "per second", title=f"{options.sink}, {options.dimension} dimensions")
    for item in measures:
        table.add_row(item.step, f"{item.records:,}", f"{item.seconds:.3f}", f"{item.per_second:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
