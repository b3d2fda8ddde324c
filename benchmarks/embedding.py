"""How long Indexport's embedder takes beside fastembed called directly, on the same model file and the same texts.

    python benchmarks/embedding.py [--texts 1500] [--rounds 3] [--fastembed-batch-size 256 ...] [--json PATH]

The texts are pieces of 30 to 250 tokens of the long descriptions of the packages installed beside it, shuffled. Rounds are
interleaved, so that a busy machine is busy for everyone; the table gives the median and the fastest round, and the least
CPU time of all threads, which other processes disturb the least. Indexport's time includes counting the tokens, which the
chunker has done already in a real run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from fastembed import TextEmbedding
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.corpus import descriptions
from pipeline.embedding.base import Vectors
from pipeline.embedding.fastembed_embedder import FastEmbedEmbedder, load_fastembed
from pipeline.embedding.offline_model import ensure_model
from pipeline.embedding.settings import MINILM, EmbeddingSettings

OURS = "indexport"
SHORTEST, LONGEST = 30, 250
SPECIAL_TOKENS = 2


def collect_texts(tokenizer: Tokenizer, wanted: int) -> list[str]:
    """Pieces of package descriptions; the same for the same installed packages."""
    rng = random.Random(20)
    pieces: list[str] = []
    for _, description in descriptions():
        offsets = tokenizer.encode(description, add_special_tokens=False).offsets
        while len(offsets) >= SHORTEST:
            size = rng.randint(SHORTEST, LONGEST) - SPECIAL_TOKENS
            piece, offsets = offsets[:size], offsets[size:]
            pieces.append(description[piece[0][0] : piece[-1][1]])
    rng.shuffle(pieces)
    if len(pieces) < wanted:
        raise SystemExit(f"the installed packages give {len(pieces)} texts; ask for fewer than {wanted}")
    return pieces[:wanted]


def theirs(model: TextEmbedding, texts: list[str], batch_size: int) -> Vectors:
    return np.stack(list(model.embed(texts, batch_size=batch_size))).astype(np.float32, copy=False)


def ours(embedder: FastEmbedEmbedder, texts: list[str]) -> Vectors:
    return asyncio.run(embedder.embed(texts, embedder.tokens.count(texts)))


@dataclass
class Measured:
    """One embedder's rounds and the vectors of its last."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    vectors: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32))


def measure(runs: dict[str, Callable[[], Vectors]], rounds: int) -> dict[str, Measured]:
    measured = {name: Measured() for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            measured[name].vectors = run()
            measured[name].cpu_seconds.append(time.process_time() - cpu_started)
            measured[name].seconds.append(time.perf_counter() - started)
    return measured


def summarise(measured: dict[str, Measured], texts: int) -> list[dict[str, Any]]:
    """One row an embedder; ratios and cosines are against the first."""
    reference = next(iter(measured.values()))
    return [
        {
            "name": name,
            "median_seconds": round(statistics.median(one.seconds), 3),
            "fastest_seconds": round(min(one.seconds), 3),
            "cpu_seconds": round(min(one.cpu_seconds), 3),
            "texts_per_second": round(texts / min(one.seconds), 1),
            "median_ratio": round(statistics.median(one.seconds) / statistics.median(reference.seconds), 3),
            "fastest_ratio": round(min(one.seconds) / min(reference.seconds), 3),
            "cpu_ratio": round(min(one.cpu_seconds) / min(reference.cpu_seconds), 3),
            "smallest_cosine": float(np.sum(one.vectors * reference.vectors, axis=1).min()),
            "rounds": [round(value, 3) for value in one.seconds],
        }
        for name, one in measured.items()
    ]


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(
        "embedder", "median s", "fastest s", "CPU s", "texts/s", "ratio: median", "fastest", "CPU", "min cosine", title=title
    )
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['median_seconds']:.2f}",
            f"{row['fastest_seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['texts_per_second']:.0f}",
            f"{row['median_ratio']:.3f}",
            f"{row['fastest_ratio']:.3f}",
            f"{row['cpu_ratio']:.3f}",
            f"{row['smallest_cosine']:.6f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding speed beside fastembed alone.")
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fastembed-batch-size", type=int, nargs="+", default=[256], help="256 is fastembed's default")
    parser.add_argument("--batch-tokens", type=int, default=EmbeddingSettings().batch_tokens)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    folder = ensure_model()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = collect_texts(tokenizer, options.texts)
    alone = TextEmbedding(MINILM, specific_model_path=str(folder))
    embedder = load_fastembed(EmbeddingSettings(batch_tokens=options.batch_tokens))
    counts = embedder.tokens.count(texts)

    runs: dict[str, Callable[[], Vectors]] = {
        f"fastembed (batch_size={size})": partial(theirs, alone, texts, size) for size in options.fastembed_batch_size
    }
    runs[OURS] = lambda: ours(embedder, texts)
    warm_up = texts[:32]
    list(alone.embed(warm_up))
    ours(embedder, warm_up)
    rows = summarise(measure(runs, options.rounds), len(texts))

    show(rows, f"{len(texts)} texts, {sum(counts)} tokens, {MINILM}")
    if options.json:
        report = {
            "texts": len(texts),
            "tokens": sum(counts),
            "mean_tokens": round(statistics.mean(counts), 1),
            "batch_tokens": options.batch_tokens,
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "fastembed": version("fastembed"),
            "onnxruntime": version("onnxruntime"),
            "results": rows,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
