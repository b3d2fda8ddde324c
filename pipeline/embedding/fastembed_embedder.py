"""Embedding with fastembed (ONNX Runtime) on this machine.

What belongs here: finding and loading a model, naming it by what its vectors depend on, and running it in batches of
like length. Loading, tokenizing, pooling and normalising stay fastembed's. Two things are gained over calling it alone:
short texts are not padded to the longest of 256 neighbours, and every CPU runs a batch of its own. ONNX Runtime would share
each matrix product of one batch among all of them, and wait for the slowest hundreds of times a batch. A thread takes its next
batch itself: to ask the event loop for each took 3 % of the time.
"""

from __future__ import annotations

import asyncio
import glob
import hashlib
import importlib
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.documents.tokens import HuggingFaceTokens, TokenCounter
from pipeline.embedding import offline_model
from pipeline.embedding.base import ModelIdentity, Vectors, keeping, side_by_side, stopped
from pipeline.embedding.batching import check_inputs, check_question, plan_batches
from pipeline.embedding.digests import model_cache, remembered_sha256
from pipeline.embedding.settings import MINILM, EmbeddingSettings
from pipeline.errors import ConfigError, EmbedderUnavailable
from pipeline.quoting import quoted

if TYPE_CHECKING:
    from fastembed import TextEmbedding

OFFLINE_VARIABLE = "INDEXPORT_OFFLINE"
_MAX_ITEMS = 512
_PREFIXES = re.compile(r"Prefixes for queries/documents: (?!not ).*")
_ONNX_FILES = ("model.onnx", "onnx/model.onnx")
_TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json")
"""What fastembed makes a tokenizer of; from the others it takes the limit and the padding."""


class FastEmbedEmbedder:
    """A loaded fastembed model. ``workers`` batches at a time, in threads of its own; safe to share between tasks and event
    loops."""

    def __init__(
        self, model: TextEmbedding, identity: ModelIdentity, *, max_tokens: int, batch_tokens: int, workers: int = 1
    ) -> None:
        self._model = model
        self._identity = identity
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._tokens = HuggingFaceTokens(_tokenizer(model), _files_digest(_model_folder(model), _TOKENIZER_FILES))
        self._workers = workers
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="embed")
        self._run_errors: tuple[type[Exception], ...] = (RuntimeError, MemoryError, *_onnx_errors())

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def max_tokens(self) -> int:
        """Where fastembed cuts: the tokenizer's own limit.

        all-MiniLM-L6-v2 reads 512 tokens here; the 256 of its sentence-transformers configuration is that library's
        default, which fastembed does not read.
        """
        return self._max_tokens

    @property
    def tokens(self) -> TokenCounter:
        return self._tokens

    async def embed(self, texts: Sequence[str], token_counts: Sequence[int]) -> Vectors:
        """See ``Embedder.embed``. Cancelling, or a batch that fails, stops after the batches under way."""
        check_inputs(texts, token_counts, max_tokens=self._max_tokens)
        vectors = np.full((len(texts), self._identity.dimension), np.nan, np.float32)
        batches = iter(plan_batches(token_counts, token_budget=self._batch_tokens, max_items=_MAX_ITEMS))
        ended = threading.Event()

        def work_off() -> None:
            for batch in batches:
                if ended.is_set():
                    break
                vectors[batch] = self._checked(self._embed_batch, [texts[index] for index in batch])

        async def in_a_thread() -> None:
            await asyncio.get_running_loop().run_in_executor(self._pool, work_off)

        try:
            with keeping(vectors):
                await side_by_side(in_a_thread, self._workers)
        except EmbedderUnavailable as cause:
            raise stopped(cause, vectors) from cause.__cause__
        finally:
            ended.set()
        return vectors

    async def embed_query(self, text: str) -> Vectors:
        check_question(self._tokens.count([text])[0], max_tokens=self._max_tokens)
        vector: Vectors = (await asyncio.to_thread(self._checked, self._embed_query, [text]))[0]
        return vector

    def _checked(self, work: Callable[[list[str]], list[Any]], texts: list[str]) -> Vectors:
        try:
            rows = work(texts)
        except self._run_errors as error:
            raise EmbedderUnavailable(f"The model {self._identity.name} failed on {len(texts)} texts: {error}") from error
        vectors = np.asarray(rows, np.float32)
        expected = (len(texts), self._identity.dimension)
        if vectors.shape != expected:
            raise EmbedderUnavailable(f"The model {self._identity.name} answered {vectors.shape} where {expected} was due")
        return vectors

    def _embed_batch(self, texts: list[str]) -> list[Any]:
        return list(self._model.passage_embed(texts, batch_size=len(texts)))

    def _embed_query(self, texts: list[str]) -> list[Any]:
        return list(self._model.query_embed(texts))


def load_fastembed(settings: EmbeddingSettings) -> FastEmbedEmbedder:
    """Load the model of ``settings``; blocks for about a second, longer when it is downloaded.

    ``model_path`` wins. all-MiniLM-L6-v2 comes from the offline wheel when that is installed, without asking the hub;
    any other model comes from fastembed's own cache or the hub (never the hub when ``INDEXPORT_OFFLINE=1``).
    Uses CUDA when the installed ONNX Runtime offers it.

    Raises ConfigError for a model nobody knows or a folder that holds none, EmbedderUnavailable when it cannot be fetched.
    """
    folder = settings.model_path
    offline = folder is None and settings.model.lower() == MINILM.lower() and offline_model.is_available()
    if offline:
        folder = offline_model.ensure_model()
    model = _load_model(settings, _supported_name(settings), folder)
    max_tokens = _max_tokens(model)
    weights = offline_model.SOURCE_DIGEST if offline else _weights_digest(model)
    digest = _digest([weights, _post_processing(model), max_tokens])
    identity = ModelIdentity(settings.model, f"{settings.model}@{digest}", model.embedding_size)
    workers = (settings.threads or _usable_cpus()) if _runs_on_the_cpu(model) else 1
    return FastEmbedEmbedder(model, identity, max_tokens=max_tokens, batch_tokens=settings.batch_tokens, workers=workers)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _runs_on_the_cpu(model: TextEmbedding) -> bool:
    """A GPU computes a batch on all of itself; more at once would only queue there."""
    session: Any = getattr(model.model, "model", None)
    return session is None or session.get_providers()[0] == "CPUExecutionProvider"


def _load_model(settings: EmbeddingSettings, name: str, folder: Path | None) -> TextEmbedding:
    from fastembed import TextEmbedding

    no_hub = os.environ.get(OFFLINE_VARIABLE, "") == "1"
    load_errors: tuple[type[Exception], ...] = (ValueError, OSError, *_onnx_errors())
    try:
        return TextEmbedding(
            name,
            cache_dir=None if folder else _downloads(),
            threads=1,
            specific_model_path=str(folder) if folder else None,
            local_files_only=no_hub,
        )
    except load_errors as error:
        if folder is not None:
            raise ConfigError(f"{folder} holds no model fastembed can load as {settings.model}: {error}") from error
        told = quoted(str(error), os.environ.get("HF_TOKEN", ""))
        remedy = f"unset {OFFLINE_VARIABLE}" if no_hub else "check the network"
        group = f"the dependency group {offline_model.GROUP!r} of a checkout"
        is_minilm = settings.model.lower() == MINILM.lower()
        offline = f"install {group}, which brings this model along" if is_minilm else f"use {MINILM} with {group}"
        raise EmbedderUnavailable(
            f"The model {settings.model} could not be fetched ({told}); {remedy}, set embedding.model_path to a local folder, "
            f"or {offline}"
        ) from error


def _downloads() -> str:
    """Where fastembed keeps what it downloads: beside our own models, not in ``/tmp``, unless it is told a place itself."""
    return os.environ.get("FASTEMBED_CACHE_PATH") or str(model_cache() / "fastembed")


def _supported_name(settings: EmbeddingSettings) -> str:
    """The name fastembed knows the model by; a local model it does not know is registered with the pooling asked for."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    known = {model["model"].lower(): str(model["description"]) for model in TextEmbedding.list_supported_models()}
    if settings.model.lower() in known:
        _check_prefixes(settings, known[settings.model.lower()])
        return settings.model
    folder = settings.model_path
    if folder is None:
        raise ConfigError(
            f"fastembed does not know the model {settings.model}; set embedding.model_path to a folder that holds it"
        )
    model_file = next((name for name in _ONNX_FILES if (folder / name).is_file()), None)
    if model_file is None:
        raise ConfigError(f"{folder} holds neither {' nor '.join(_ONNX_FILES)}")
    dimension = _hidden_size(folder / "config.json")
    name = f"indexport/{_digest([settings.model, model_file, settings.pooling, settings.normalize, dimension])}"
    if name not in known:
        TextEmbedding.add_custom_model(
            name,
            pooling=PoolingType(settings.pooling.upper()),
            normalization=settings.normalize,
            sources=ModelSource(url="file:local"),
            dim=dimension,
            model_file=model_file,
        )
    return name


def _check_prefixes(settings: EmbeddingSettings, description: str) -> None:
    """fastembed says of each model whether it needs prefixes, and puts none itself (``qdrant/fastembed`` issue 251)."""
    needed = _PREFIXES.search(description)
    if needed and None in (settings.passage_prefix, settings.query_prefix):
        raise ConfigError(
            f"{settings.model} was trained with words before passages or questions ({needed[0]}) and finds less without; set "
            "embedding.passage_prefix and embedding.query_prefix to those of its model card, or to '' for none"
        )


def _hidden_size(config: Path) -> int:
    try:
        return int(json.loads(config.read_bytes())["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{config} must state the model's hidden_size") from error


def _tokenizer(model: TextEmbedding) -> Any:
    tokenizer = getattr(model.model, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"fastembed loads {model.model_name} without a tokenizer; choose a text model")
    return tokenizer


def _max_tokens(model: TextEmbedding) -> int:
    """Where fastembed truncates, or the model's position table where that is shorter."""
    limits = [int(_tokenizer(model).truncation["max_length"])]
    config = _model_folder(model) / "config.json"
    if config.is_file():
        limits.append(int(json.loads(config.read_bytes()).get("max_position_embeddings") or limits[0]))
    return min(limits)


def _weights_digest(model: TextEmbedding) -> str:
    """Digest of every file a vector depends on: weights (external data included) and tokenizer."""
    folder = _model_folder(model)
    inner: Any = model.model
    description = inner.model_description
    known = [description.model_file, *description.additional_files, "tokenizer.json"]
    return _files_digest(
        folder, [*known, *(name for name in _external_data(folder, description.model_file) if name not in known)]
    )


def _external_data(folder: Path, model_file: str) -> list[str]:
    """Weights beside the graph, as their writers name them: ``model.onnx_data`` (optimum), ``model.onnx.data`` (PyTorch)."""
    graph = folder / model_file
    return sorted(str(path.relative_to(folder)) for path in graph.parent.glob(f"{glob.escape(graph.name)}?*"))


def _files_digest(folder: Path, names: Sequence[str]) -> str:
    """Digest of the content of those files that are there."""
    return _digest([remembered_sha256(folder / name) for name in names if (folder / name).is_file()])


def _post_processing(model: TextEmbedding) -> str:
    """What fastembed does with the model's output: its class for the models it knows, the registered choice for others."""
    kind = type(model.model)
    registered = getattr(kind, "POSTPROCESSING_MAPPING", {}).get(model.model_name)
    return f"{registered.pooling.value} {registered.normalization}" if registered else kind.__name__


def _model_folder(model: TextEmbedding) -> Path:
    """The folder the files were loaded from. fastembed keeps it private; its minor version is pinned."""
    inner: Any = model.model
    return Path(inner._model_dir)


def _onnx_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's error types, which share no base but Exception."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
