"""Hugging Face checkpoints on disk: config.json, generation_config.json and safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from malt_jax.checkpoints.weights import TensorSource
from malt_jax.errors import UserError
from malt_jax.files import read_json_object
from malt_jax.model.config import LlamaConfig

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def read_config(directory: Path) -> LlamaConfig:
    """The model's shape. Raises UserError when config.json is missing, broken or not supported."""
    path = directory / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: not found; a checkpoint directory needs a {CONFIG}")
    try:
        return LlamaConfig.from_huggingface(read_json_object(path))
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def read_eos_ids(directory: Path) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's, else config.json's, else none.

    The former is a list where a model may end in several ways; Llama 3.1 Instruct has three.
    """
    for name in (GENERATION_CONFIG, CONFIG):
        path = directory / name
        stated = read_json_object(path).get("eos_token_id") if path.is_file() else None
        if stated is None:
            continue
        ids = stated if isinstance(stated, list) else [stated]
        if not all(isinstance(index, int) for index in ids):
            raise UserError(f"{path}: eos_token_id must be an id or a list of ids, got {stated!r}")
        return tuple(ids)
    return ()


def open_tensors(directory: Path) -> TensorSource:
    """The tensors of model.safetensors, or of the shards that the index names.

    Raises UserError when files are missing or truncated; reading a tensor of a type that is neither
    NumPy's nor bfloat16 nor float8 does as well.
    """
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(directory):
        with _open(file) as opened:
            names = opened.keys()
            for name in names:
                files[name] = file
                shapes[name] = tuple(opened.get_slice(name).get_shape())

    def read(name: str) -> np.ndarray:
        # Opened anew for every tensor: a mapping that stays open keeps all that was read in memory.
        with _open(files[name]) as opened:
            kind = opened.get_slice(name).get_dtype()
            if kind in _FLOAT8:
                return _read_float8(files[name], name, shapes[name], _FLOAT8[kind])
            try:
                return opened.get_tensor(name)
            except (AttributeError, TypeError) as error:
                raise UserError(f"{directory}: {name} is of type {kind}: not supported") from error

    return TensorSource(str(directory), shapes, read)


def write_tensors(
    directory: Path, tensors: Iterable[tuple[str, np.ndarray]], *, max_shard_bytes: int
) -> None:
    """Writes tensors to model.safetensors, or to shards and their index above `max_shard_bytes`.

    Holds one shard in memory.
    """
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        # A shard's final name states how many there are, which is known only at the end.
        _save(pending, directory / f"part-{len(shards)}")
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = np.ascontiguousarray(tensor)
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()

    if len(shards) == 1:
        (directory / "part-0").rename(directory / WEIGHTS)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"part-{number}").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    write_json(
        directory / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    )


def write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        raise UserError(_explain_no_weights(directory))
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: the field weight_map is missing or empty")
    # A shard lies beside its index, whatever the index says.
    files = [directory / Path(str(name)).name for name in sorted(set(weight_map.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{directory}: missing shards that {INDEX} names: {', '.join(absent)}")
    return files


def _explain_no_weights(directory: Path) -> str:
    pickled = sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if not pickled:
        return f"{directory}: no weights here; expected {WEIGHTS} or {INDEX}"
    return (
        f"{directory}: only pickled weights ({pickled[0]}), which are not read, because unpickling"
        " can run any code. If you trust the file, convert it with transformers:"
        f" AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained(NEW_DIRECTORY)"
    )


def _open(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not a readable safetensors file, perhaps truncated ({error})"
        ) from error


def _read_float8(file: Path, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A tensor of a type that safetensors itself does not hand to NumPy, from the bytes where the
    file's header says that it lies. The header has been checked when the file was opened."""
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        begin, _ = json.loads(opened.read(header_bytes))[name]["data_offsets"]
        opened.seek(8 + header_bytes + begin)
        data = opened.read(math.prod(shape))
    return np.frombuffer(data, dtype).reshape(shape)


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
