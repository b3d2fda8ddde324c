from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastembed import TextEmbedding

from pipeline.embedding import digests, fastembed_embedder, offline_model
from pipeline.embedding.base import EmbeddingCancelled, PartlyEmbedded
from pipeline.embedding.digests import file_sha256
from pipeline.embedding.fastembed_embedder import FastEmbedEmbedder, load_fastembed
from pipeline.embedding.loading import load_embedder
from pipeline.embedding.offline_model import ensure_model
from pipeline.embedding.settings import MINILM, EmbeddingSettings
from pipeline.errors import ConfigError, EmbedderUnavailable

TEXTS = [
    "the quick brown fox " * n + suffix
    for n, suffix in ((9, "jumps"), (1, "é ü 漢字"), (30, ""), (0, "a"), (2, "\n\n| x |"), (17, "."))
]


async def test_vectors_are_fastembeds_own_in_the_order_given(minilm: FastEmbedEmbedder) -> None:
    vectors = await minilm.embed(TEXTS, minilm.tokens.count(TEXTS))
    theirs = TextEmbedding(MINILM, specific_model_path=str(ensure_model()), threads=2)
    expected = np.stack(list(theirs.embed(TEXTS)), dtype=np.float32)
    assert (vectors.dtype, vectors.shape) == (np.dtype(np.float32), (len(TEXTS), 384))
    assert np.sum(vectors * expected, axis=1).min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


async def test_a_small_budget_changes_the_batches_and_not_the_vectors(minilm: FastEmbedEmbedder) -> None:
    counts = minilm.tokens.count(TEXTS)
    one_by_one = load_fastembed(EmbeddingSettings(batch_tokens=1, threads=2))
    assert np.sum(await minilm.embed(TEXTS, counts) * await one_by_one.embed(TEXTS, counts), axis=1).min() > 0.9999


async def test_known_sentences_keep_the_published_similarities(minilm: FastEmbedEmbedder) -> None:
    query = await minilm.embed_query("That is a happy person")
    sentences = ["That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    vectors = await minilm.embed(sentences, minilm.tokens.count(sentences))
    np.testing.assert_allclose(vectors @ query, [0.695, 0.943, 0.257], atol=0.002)


async def test_nothing_gives_no_rows(minilm: FastEmbedEmbedder) -> None:
    assert (await minilm.embed([], [])).shape == (0, 384)


async def test_the_limit_is_where_fastembed_really_cuts(minilm: FastEmbedEmbedder) -> None:
    def text(words: int, last: str) -> str:
        return "word " * (words - 1) + last

    limit = minilm.max_tokens
    assert limit == 512
    whole, changed = text(limit - 2, "cat"), text(limit - 2, "dog")
    assert minilm.tokens.count([whole]) == [limit]
    read = await minilm.embed([whole, changed], [limit, limit])
    assert not np.allclose(read[0], read[1], atol=1e-5)
    cut = [minilm._model.embed([whole + " " + tail]) for tail in ("cat", "dog")]
    first, second = (next(iter(rows)) for rows in cut)
    np.testing.assert_allclose(first, second, atol=1e-6)


async def test_a_text_over_the_limit_is_refused(minilm: FastEmbedEmbedder) -> None:
    long = "word " * 600
    with pytest.raises(ValueError, match="text 1 has 602 tokens, the model reads 512"):
        await minilm.embed(["a", long], minilm.tokens.count(["a", long]))
    with pytest.raises(ValueError, match="the question is too long: it has 602 tokens, and the model reads 512; shorten it"):
        await minilm.embed_query(long)


async def test_as_many_batches_run_at_a_time_as_threads_are_set_and_none_on_the_event_loop(
    minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_run = threading.Barrier(2, timeout=20)
    threads: set[int] = set()

    def run(texts: list[str]) -> list[np.ndarray]:
        threads.add(threading.get_ident())
        both_run.wait()
        return [np.full(384, len(text), np.float32) for text in texts]

    monkeypatch.setattr(minilm, "_embed_batch", run)
    results = await asyncio.gather(*(minilm.embed(["x" * n] * 4, [512] * 4) for n in range(1, 6)))
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    assert [float(rows[0, 0]) for rows in results] == [1, 2, 3, 4, 5]


async def test_after_a_failed_run_no_further_batch_is_begun(minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def fail(texts: list[str]) -> list[np.ndarray]:
        begun.append(texts[0])
        raise MemoryError("no room")

    monkeypatch.setattr(minilm, "_embed_batch", fail)
    with pytest.raises(EmbedderUnavailable, match="no room"):
        await minilm.embed(["a"] * 40, [512] * 40)
    assert len(begun) <= 2


async def test_the_batches_before_a_failed_run_come_with_its_error(
    minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = minilm._embed_batch

    def fail_in_the_end(texts: list[str]) -> list[np.ndarray]:
        if "last" in texts:
            raise MemoryError("no room")
        return real(texts)

    [expected] = await minilm.embed(["first"], [3])
    monkeypatch.setattr(minilm, "_workers", 1)
    monkeypatch.setattr(minilm, "_embed_batch", fail_in_the_end)
    with pytest.raises(PartlyEmbedded, match="no room") as caught:
        await minilm.embed(["last", "first"], [3, 512])
    assert np.isnan(caught.value.vectors[0]).all()
    np.testing.assert_allclose(caught.value.vectors[1], expected, atol=1e-6)


async def test_a_cancellation_brings_what_was_embedded_until_then_and_ends_the_threads(
    minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    second, go_on = threading.Event(), threading.Event()

    def embed(texts: list[str]) -> list[np.ndarray]:
        begun.append(texts[0])
        if len(begun) == 2:
            second.set()
            go_on.wait(20)
        return [np.ones(384, np.float32) for _ in texts]

    pool = ThreadPoolExecutor(1)
    monkeypatch.setattr(minilm, "_workers", 1)
    monkeypatch.setattr(minilm, "_pool", pool)
    monkeypatch.setattr(minilm, "_embed_batch", embed)
    task = asyncio.create_task(minilm.embed(["a", "b", "c", "d"], [512] * 4))
    await asyncio.to_thread(second.wait, 20)
    task.cancel()
    with pytest.raises(EmbeddingCancelled) as caught:
        await task
    assert np.isfinite(caught.value.vectors).all(axis=1).tolist() == [True, False, False, False]
    go_on.set()
    await asyncio.to_thread(pool.shutdown)
    assert begun == ["a", "b"]


async def test_a_question_does_not_wait_for_the_texts_that_are_being_embedded(
    minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def embed(texts: list[str]) -> list[np.ndarray]:
        assert answered.wait(20)
        return [np.ones(384, np.float32) for _ in texts]

    monkeypatch.setattr(minilm, "_embed_batch", embed)
    task = asyncio.create_task(minilm.embed(["a"] * 4, [512] * 4))
    await minilm.embed_query("That is a happy person")
    answered.set()
    assert np.isfinite(await task).all()


async def test_a_vector_that_is_not_finite_comes_back_as_it_is(
    minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm, "_embed_batch", lambda texts: [np.full(384, np.nan if text == "bad" else 1.0) for text in texts])
    vectors = await minilm.embed(["good", "bad"], [3, 4])
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False]


@pytest.mark.parametrize("shape", [(1, 384), (2, 383)])
async def test_a_missing_row_or_a_wrong_dimension_is_noticed(
    minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(minilm, "_embed_batch", lambda _: list(np.ones(shape, np.float32)))
    with pytest.raises(EmbedderUnavailable, match="was due"):
        await minilm.embed(["a", "b"], [3, 3])


async def test_a_failing_run_is_the_models_fault(minilm: FastEmbedEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(texts: list[str]) -> list[np.ndarray]:
        raise MemoryError("no room")

    monkeypatch.setattr(minilm, "_embed_batch", fail)
    with pytest.raises(EmbedderUnavailable, match="no room"):
        await minilm.embed(["a"], [3])


def test_the_identity_does_not_depend_on_where_the_model_was_converted(minilm: FastEmbedEmbedder) -> None:
    assert minilm.identity.name == MINILM
    assert minilm.identity.dimension == 384
    assert minilm.identity.fingerprint == f"{MINILM}@99542914d30f78d0"


@pytest.fixture
def local_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the model, and a cache of one's own for its digests."""
    ready, folder = ensure_model(), tmp_path / "model"
    shutil.copytree(ready, folder)
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder


async def test_a_local_model_of_any_name_is_loaded_with_the_pooling_asked_for(
    minilm: FastEmbedEmbedder, local_model: Path
) -> None:
    mean = load_fastembed(EmbeddingSettings(model="ours/finetuned", model_path=local_model, threads=2))
    cls = load_fastembed(
        EmbeddingSettings(model="ours/finetuned", model_path=local_model, pooling="cls", normalize=False, threads=2)
    )
    counts = mean.tokens.count(TEXTS)
    expected = await minilm.embed(TEXTS, counts)
    assert np.sum(await mean.embed(TEXTS, counts) * expected, axis=1).min() > 0.9999
    assert np.linalg.norm(await cls.embed(TEXTS, counts), axis=1).max() > 1.5
    assert len({mean.identity.fingerprint, cls.identity.fingerprint, minilm.identity.fingerprint}) == 3


def test_the_fingerprint_of_a_local_model_covers_its_tokenizer_and_limit(local_model: Path) -> None:
    def fingerprint() -> str:
        return load_fastembed(EmbeddingSettings(model="ours/other", model_path=local_model, threads=1)).identity.fingerprint

    original = fingerprint()
    config = json.loads((local_model / "tokenizer_config.json").read_text())
    (local_model / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 128}))
    shorter = fingerprint()
    tokenizer = json.loads((local_model / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (local_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len({original, shorter, fingerprint()}) == 3


@pytest.mark.parametrize("weights", ["model.onnx_data", "model.onnx.data"])
def test_the_fingerprint_of_a_local_model_covers_weights_beside_its_graph(local_model: Path, weights: str) -> None:
    def fingerprint() -> str:
        return load_fastembed(EmbeddingSettings(model="ours/other", model_path=local_model, threads=1)).identity.fingerprint

    in_one_file = fingerprint()
    (local_model / weights).write_bytes(b"one")
    first = fingerprint()
    (local_model / weights).write_bytes(b"other")
    assert len({in_one_file, first, fingerprint()}) == 3


def test_a_model_in_one_file_keeps_its_fingerprint(local_model: Path) -> None:
    embedder = load_fastembed(EmbeddingSettings(model="ours/other", model_path=local_model, threads=1))
    files = json.dumps([file_sha256(local_model / name) for name in ("model.onnx", "tokenizer.json")])
    parts = json.dumps([hashlib.sha256(files.encode()).hexdigest()[:16], "MEAN True", 512])
    assert embedder.identity.fingerprint == f"ours/other@{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def test_the_tokenizer_is_named_by_the_files_that_decide_its_counts(local_model: Path) -> None:
    def fingerprint() -> str:
        return load_fastembed(EmbeddingSettings(model="ours/other", model_path=local_model, threads=1)).tokens.fingerprint

    original = fingerprint()
    config = json.loads((local_model / "tokenizer_config.json").read_text())
    (local_model / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 128}))
    assert fingerprint() == original
    (local_model / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["page break"]}))
    more_special = fingerprint()
    tokenizer = json.loads((local_model / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (local_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len({original, more_special, fingerprint()}) == 3


def test_an_unknown_model_without_a_folder_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match=r"no-such/model; set embedding\.model_path"):
        load_embedder(EmbeddingSettings(model="no-such/model"))


@pytest.mark.parametrize("model", [MINILM, "ours/finetuned"])
def test_a_folder_without_a_model_is_a_wrong_setting(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds n"):
        load_embedder(EmbeddingSettings(model=model, model_path=tmp_path))


def test_a_model_that_cannot_be_fetched_is_unavailable_and_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path))
    monkeypatch.setenv(fastembed_embedder.OFFLINE_VARIABLE, "1")
    with pytest.raises(EmbedderUnavailable, match=r"bge-small.*unset INDEXPORT_OFFLINE.*model_path.*offline-model"):
        load_embedder(EmbeddingSettings(model="BAAI/bge-small-en-v1.5"))


def test_minilm_without_its_wheel_is_asked_of_fastembed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(offline_model, "is_available", lambda: False)
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path))
    monkeypatch.setenv(fastembed_embedder.OFFLINE_VARIABLE, "1")
    with pytest.raises(EmbedderUnavailable, match=r"all-MiniLM-L6-v2 could not be fetched.*, or install the dependency group"):
        load_embedder(EmbeddingSettings())


def test_importing_the_package_loads_no_model_library() -> None:
    code = (
        "import sys, pipeline.embedding.loading, pipeline.embedding.reuse, pipeline.embedding.offline_model;"
        "print([m for m in ('onnx', 'onnxruntime', 'fastembed', 'httpx', 'torch', 'dagster') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
