"""A cold sync of real documents beside fastembed alone and beside LlamaIndex's IngestionPipeline.

All three are fresh processes and pay for their imports and for loading the model. A sync's time is everything from
``indexport sync`` to its exit: listing, payloads, chunks, embeddings, LanceDB, and Dagster's own events.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.corpus import real_documents
from benchmarks.figures import Figure, ratio_figure
from benchmarks.processes import Measured, local_cloud, run_measured
from pipeline.documents.arrow import pages_from_table
from pipeline.documents.document import build_document
from pipeline.embedding.offline_model import ensure_model
from pipeline.home import Home
from pipeline.stages.export import Export
from pipeline.stages.settings import load_exports

ROOT = Path(__file__).parents[1]
PEER_ENVIRONMENT = ROOT / ".bench-venv"
PEERS = Path(__file__).parent / "peers"
_PEER_PACKAGES = ("llama-index-core==0.14.25", "llama-index-vector-stores-lancedb==0.6.0", "pandas")
_SAME_AS_OURS = ("fastembed", "onnxruntime", "lancedb", "numpy", "pyarrow", "tokenizers")

Run = Callable[[int], Measured]


@dataclass(frozen=True, slots=True)
class Synced:
    """What a first sync left in the sink and the lake: what the peers get, and what their vectors are compared with."""

    texts: list[str]
    vectors: npt.NDArray[np.float32]
    documents: list[dict[str, str]]


def figures(work: Path, *, rounds: int, quick: bool) -> list[Figure]:
    """Both ratios and the smallest cosine between the sink's vectors and fastembed's own."""
    documents = work / "documents"
    characters = real_documents(documents, most=8 if quick else None)
    model = str(ensure_model())
    with local_cloud(documents, work / "cloud") as environment:
        cold_sync(work / "first", environment)
        synced = asyncio.run(read_back(work / "first"))
        (work / "texts.json").write_text(json.dumps(synced.texts), encoding="utf-8")
        (work / "documents.json").write_text(json.dumps(synced.documents), encoding="utf-8")
        runs: dict[str, Run] = {
            "indexport": lambda number: cold_sync(work / f"home-{number}", environment),
            "fastembed": lambda _: _fastembed(model, work),
            "llama_index": lambda number: _llama_index(model, work, number),
        }
        _warm_up(model, work)
        measured = interleaved(runs, rounds)
    corpus = f"{len(synced.documents)} documents, {characters / 1e6:.2f} MB of Markdown, {len(synced.texts):,} chunks"
    extra: dict[str, Any] = {"documents": len(synced.documents), "characters": characters, "chunks": len(synced.texts)}
    rows = json.loads(measured["llama_index"][-1].output.strip().splitlines()[-1])
    theirs = np.load(work / "vectors.npy")
    return [
        ratio_figure(
            "cold sync / fastembed alone", measured["indexport"], measured["fastembed"], limit=0.85, remark=corpus, extra=extra
        ),
        ratio_figure(
            "cold sync / LlamaIndex IngestionPipeline",
            measured["indexport"],
            measured["llama_index"],
            limit=0.75,
            remark=f"its {rows['rows']:,} rows in LanceDB",
            extra={**extra, "llama_index": rows},
        ),
        Figure(
            "cosine to fastembed's own vectors, smallest",
            smallest_cosine(synced.vectors, theirs),
            0.9999,
            at_most=False,
            remark="float32 in the sink",
        ),
    ]


def _warm_up(model: str, work: Path) -> None:
    """Each peer once over next to nothing, as the first sync was for us: modules compiled, files in the page cache."""
    little = work / "little"
    little.mkdir()
    (little / "texts.json").write_text(json.dumps(["one text"]), encoding="utf-8")
    (little / "documents.json").write_text(json.dumps([{"id": "one", "text": "one text"}]), encoding="utf-8")
    _fastembed(model, little)
    _llama_index(model, little, 0)


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, list[Measured]]:
    """Every run once a round, each round beginning with another one."""
    measured: dict[str, list[Measured]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            measured[name].append(runs[name](number))
    return measured


def cold_sync(home: Path, environment: Mapping[str, str]) -> Measured:
    """``indexport sync`` of the default export into a new home."""
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "pipeline.cli", "sync", "--json"]
    own = {"INDEXPORT_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    measured = run_measured(command, {**environment, **own})
    if not json.loads(measured.output)["ok"]:
        raise SystemExit("the sync left work behind; its time says nothing")
    return measured


async def read_back(home: Path) -> Synced:
    """Texts and vectors from LanceDB, document texts from the lake."""
    export = Export(load_exports(ROOT / "pipeline" / "defs")["default"], Home(home))
    tenant, config = await export.scope()
    sink = export.sink("lancedb", tenant)
    texts: list[str] = []
    vectors: list[npt.NDArray[np.float32]] = []
    try:
        async for records in sink.fetch_records(export_config_id=config):
            texts += [a + b for a, b in zip(records["context"].to_pylist(), records["content"].to_pylist(), strict=True)]
            vectors.append(records["embedding"].combine_chunks().flatten().to_numpy())
    finally:
        await sink.close()
    payloads = export.lake.read_many("parsed_payloads", export.lake.partitions("parsed_payloads"))
    documents = [{"id": name, "text": build_document(pages_from_table(pages), ()).text} for name, pages in payloads.items()]
    export.ledger.close()
    return Synced(texts, np.concatenate(vectors).reshape(len(texts), -1), documents)


def smallest_cosine(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """Over the rows of two matrices of the same shape."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return float((np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def _fastembed(model: str, work: Path) -> Measured:
    script = PEERS / "fastembed_alone.py"
    return run_measured([sys.executable, str(script), model, str(work / "texts.json"), str(work / "vectors.npy")], {})


def _llama_index(model: str, work: Path, number: int) -> Measured:
    script = PEERS / "llama_index_pipeline.py"
    arguments = [model, str(work / "documents.json"), str(work / f"peer-{number}")]
    return run_measured([str(peer_python()), str(script), *arguments], {})


def peer_python() -> Path:
    """The interpreter of LlamaIndex's environment, which is made on first use with our versions of what both use."""
    python = PEER_ENVIRONMENT / "bin" / "python"
    marker = PEER_ENVIRONMENT / ".installed"
    packages = [*_PEER_PACKAGES, *(f"{name}=={version(name)}" for name in _SAME_AS_OURS)]
    if marker.exists() and marker.read_text(encoding="utf-8").split() == packages:
        return python
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(PEER_ENVIRONMENT)], check=True)
    # Copies: nltk, which LlamaIndex splits sentences with, refuses to open hard links.
    install = [*uv, "pip", "install", "--quiet", "--link-mode", "copy", "--python", str(python)]
    subprocess.run([*install, *packages], check=True)
    marker.write_text("\n".join(packages), encoding="utf-8")
    return python
