"""Hugging Face checkpoint directories: config.json, tokenizer files and safetensors."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from malt_jax.checkpoints.tokenizer import CONFIG, Tokenizer, load_tokenizer
from malt_jax.checkpoints.weights import TensorSource
from malt_jax.errors import UserError, parsing
from malt_jax.files import read_json_object
from malt_jax.model.config import LlamaConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_LANGUAGE_MODEL = re.compile(r"^(language_model\.model|model\.language_model)\.")
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


class HuggingFaceDirectory:
    """A checkpoint directory; its files are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def config(self) -> LlamaConfig:
        """The model's shape. Raises UserError when config.json is missing or not supported."""
        path = self.path / CONFIG
        if not path.is_file():
            raise UserError(f"{path}: not found; a checkpoint directory needs a {CONFIG}")
        fields = read_json_object(path)
        try:
            return LlamaConfig.from_huggingface(fields)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def tokenizer(self) -> Tokenizer:
        """See `load_tokenizer`."""
        return load_tokenizer(self.path)

    def tensors(self) -> TensorSource:
        """The tensors of model.safetensors, or of the shards that the index names.

        Raises UserError when files are missing or truncated. Reading a tensor raises UserError for
        a type that is neither NumPy's nor bfloat16 nor float8.
        """
        return _language_model(safetensors_source(_weight_files(self.path), str(self.path)))


def _language_model(source: TensorSource) -> TensorSource:
    """The tensors of the language model alone, of a model that sees images too.

    Its tensors have a prefix, by which such files are known.
    """
    stored = {
        _LANGUAGE_MODEL.sub("model.", name): name
        for name in source.shapes
        if _LANGUAGE_MODEL.match(name)
    }
    if not stored:
        return source
    for head in ("lm_head.weight", "language_model.lm_head.weight"):
        if head in source.shapes:
            stored["lm_head.weight"] = head
    shapes = {name: source.shapes[key] for name, key in stored.items()}
    return dataclasses.replace(source, shapes=shapes, read=lambda name: source.read(stored[name]))


def safetensors_source(paths: Iterable[Path], origin: str) -> TensorSource:
    """The tensors of safetensors files, read one at a time.

    Raises UserError when a file is truncated. Reading a tensor raises UserError for a type that is
    neither NumPy's nor bfloat16 nor float8.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in paths:
        with _open(file) as opened:
            names = opened.keys()
            for name in names:
                files[name] = file
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return TensorSource(origin, shapes, lambda name: _read(files[name], name))


def write_tensors(
    directory: Path, tensors: Iterable[tuple[str, np.ndarray]], *, max_shard_bytes: int
) -> None:
    """Writes tensors to model.safetensors, or to shards and their index above `max_shard_bytes`.

    Holds one shard in memory.
    """
    weight_map: dict[str, int] = {}
    total_bytes = 0
    for number, shard in enumerate(_shards(tensors, max_shard_bytes)):
        # A shard's final name states how many there are, which is known only at the end.
        save_file(shard, directory / f"part-{number}", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, number)
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
        shard.clear()
    count = len(set(weight_map.values()))
    files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for number, file in enumerate(files if count > 1 else [WEIGHTS]):
        (directory / f"part-{number}").rename(directory / file)
    if count > 1:
        index = {
            "metadata": {"total_size": total_bytes},
            "weight_map": {name: files[number] for name, number in weight_map.items()},
        }
        write_json(directory / INDEX, index)


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive tensors in groups of up to `max_bytes`; the caller empties each group."""
    shard: dict[str, np.ndarray] = {}
    shard_bytes = 0
    for name, tensor in tensors:
        if shard and shard_bytes + tensor.nbytes > max_bytes:
            yield shard
            shard, shard_bytes = {}, 0
        shard[name] = np.ascontiguousarray(tensor)
        shard_bytes += tensor.nbytes
    yield shard


def write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        pickled = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
        if not pickled:
            raise UserError(f"{directory}: no weights here; expected {WEIGHTS} or {INDEX}")
        raise UserError(
            f"{directory}: only pickled weights ({pickled[0]}), which are not read, because"
            " unpickling can run any code. If you trust the file, convert it with transformers:"
            f" AutoModelForCausalLM.from_pretrained({str(directory)!r})"
            ".save_pretrained(NEW_DIRECTORY)"
        )
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: the field weight_map is missing or empty")
    # Shards are in the directory of their index, whatever paths the index states.
    files = [directory / name for name in sorted({Path(str(x)).name for x in weight_map.values()})]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{directory}: missing shards that {INDEX} names: {', '.join(absent)}")
    return files


def _open(file: Path) -> Any:
    with parsing(f"{file}: not a readable safetensors file, perhaps truncated"):
        return safetensors.safe_open(file, framework="numpy")


def _read(file: Path, name: str) -> np.ndarray:
    # Opened for every tensor: a mapping that stays open keeps all that was read in memory.
    with _open(file) as opened:
        header = opened.get_slice(name)
        dtype = header.get_dtype()
        if dtype in _FLOAT8:
            return _read_float8(file, name, header.get_shape(), _FLOAT8[dtype])
        with parsing(f"{file}: {name} is of type {dtype}: not supported"):
            return opened.get_tensor(name)


def _read_float8(file: Path, name: str, shape: list[int], dtype: Any) -> np.ndarray:
    """A tensor of a type that safetensors does not hand to NumPy, from its bytes in the file.

    The header, which says where they are, was checked when the file was opened.
    """
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        begin, _ = json.loads(opened.read(header_bytes))[name]["data_offsets"]
        opened.seek(8 + header_bytes + begin)
        data = opened.read(math.prod(shape))
    return np.frombuffer(data, dtype).reshape(shape)
