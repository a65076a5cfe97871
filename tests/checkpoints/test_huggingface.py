"""Hugging Face directories: every float type, shards, and errors that list what is wrong."""

import json
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from malt_jax.checkpoints.checkpoint import Checkpoint
from malt_jax.checkpoints.huggingface import HuggingFaceDirectory, write_tensors
from malt_jax.checkpoints.tokenizer import read_eos_ids
from malt_jax.checkpoints.weights import TensorSource, assemble, disassemble, leaves
from malt_jax.errors import UserError
from malt_jax.model.config import Llama, LlamaConfig


@pytest.fixture
def tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return dict(disassemble(checkpoint.params, checkpoint.config))


def load(directory: Path, config: LlamaConfig, dtype: jnp.dtype = jnp.float32) -> dict:
    return assemble(HuggingFaceDirectory(directory).tensors(), Llama(config, dtype=dtype))


def write(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, directory / "model.safetensors")


def assert_same(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_transformers_names_and_shapes_are_ours(saved: Path, checkpoint: Checkpoint) -> None:
    stored = load_file(saved / "model.safetensors")
    expected = {
        name: leaf.tensor_shape for leaf in leaves(checkpoint.config) for name in leaf.names
    }
    assert {name: tensor.shape for name, tensor in stored.items()} == expected
    assert HuggingFaceDirectory(saved).config == checkpoint.config
    params = load(saved, checkpoint.config)
    for name, tensor in disassemble(params, checkpoint.config):
        np.testing.assert_array_equal(tensor, stored[name], err_msg=name)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("wanted", ["bfloat16", "float32"])
def test_every_float_type_is_cast(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray], stored: str, wanted: str
) -> None:
    write(tmp_path, {name: x.astype(np.dtype(stored)) for name, x in tensors.items()})
    params = load(tmp_path, checkpoint.config, jnp.dtype(wanted))
    expected = jax.tree.map(
        lambda x: np.asarray(x).astype(np.dtype(stored)).astype(np.dtype(wanted)),
        checkpoint.params,
    )
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {wanted}
    assert_same(params, expected)


@pytest.mark.parametrize("config", ["llama", "qwen2"], indirect=True)
def test_shards(tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray]) -> None:
    limit = 40_000
    write_tensors(tmp_path, iter(tensors.items()), max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [sum(x.nbytes for x in load_file(file).values()) for file in files]
    assert max(sizes) <= limit
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"].keys() == tensors.keys()
    assert_same(load(tmp_path, checkpoint.config), checkpoint.params)

    files[1].unlink()
    with pytest.raises(UserError, match=f"missing shards.*{files[1].name}"):
        load(tmp_path, checkpoint.config)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_tensors_are_read_one_at_a_time(
    checkpoint: Checkpoint, tensors: dict[str, np.ndarray]
) -> None:
    alive: set[str] = set()
    most = 0

    def read(name: str) -> np.ndarray:
        nonlocal most
        tensor = tensors[name].copy()
        alive.add(name)
        weakref.finalize(tensor, alive.discard, name)
        most = max(most, len(alive))
        return tensor

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    source = TensorSource("memory", shapes, read)
    params = assemble(source, Llama(checkpoint.config))
    assert_same(params, checkpoint.params)
    assert most <= 2


@pytest.mark.parametrize("config", ["llama tied"], indirect=True)
def test_harmless_extras_are_accepted(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray]
) -> None:
    extras = {
        "lm_head.weight": tensors["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    write(tmp_path, tensors | extras)
    assert_same(load(tmp_path, checkpoint.config), checkpoint.params)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_one_error_lists_all_that_does_not_fit(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray]
) -> None:
    del tensors["lm_head.weight"], tensors["model.layers.2.mlp.down_proj.weight"]
    tensors["model.norm.weight"] = np.ones(5, np.float32)
    tensors["model.layers.3.input_layernorm.weight"] = np.ones(32, np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    write(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        load(tmp_path, checkpoint.config)
    headline, missing, surplus, misshaped = str(caught.value).splitlines()
    assert headline == f"{tmp_path}: the tensors do not fit the configuration"
    assert set(missing.removeprefix("  missing: ").split(", ")) == {
        "model.layers.2.mlp.down_proj.weight",
        "lm_head.weight",
    }
    assert set(surplus.removeprefix("  surplus: ").split(", ")) == {
        "model.layers.3.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
    }
    assert misshaped == "  of another shape: model.norm.weight (is [5], should be [32])"


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_integers_are_not_read(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray]
) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    write(tmp_path, tensors)
    with pytest.raises(UserError, match=r"model\.norm\.weight.*holds int8, not a float type"):
        load(tmp_path, checkpoint.config)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_float8_is_read(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray], dtype: np.dtype
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].astype(dtype)
    write(tmp_path, tensors)
    read = load(tmp_path, checkpoint.config)["layers"]["mlp"]["down"]["kernel"][1]
    np.testing.assert_array_equal(read, tensors[name].astype(np.float32))


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_unreadable_files_are_named(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray]
) -> None:
    with pytest.raises(UserError, match=r"no weights here; expected model\.safetensors"):
        load(tmp_path, checkpoint.config)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only pickled weights.*save_pretrained"):
        load(tmp_path, checkpoint.config)
    write(tmp_path, tensors)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model\.safetensors: not a readable.*truncated"):
            load(tmp_path, checkpoint.config)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_an_index_cannot_point_elsewhere(
    tmp_path: Path, checkpoint: Checkpoint, tensors: dict[str, np.ndarray]
) -> None:
    write(tmp_path, tensors)
    inside = tmp_path / "inside"
    inside.mkdir()
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))
    with pytest.raises(UserError, match=r"missing shards.*: model\.safetensors"):
        load(inside, checkpoint.config)
    for weight_map in ({"a": ["../x"]}, {"a": {}}, {"a": "/etc/passwd"}, {"a": ".."}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match="missing shards"):
            load(inside, checkpoint.config)


def test_config_problems_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: not found"):
        _ = HuggingFaceDirectory(tmp_path).config
    path = tmp_path / "config.json"
    for content, problem in {
        "{": "not valid JSON",
        "[]": "expected a JSON object",
        '{"model_type": "mamba"}': "model_type 'mamba' is not supported",
        '{"model_type": "llama"}': "'num_attention_heads' is missing",
        '{"model_type": "llama", "model_type": "qwen2"}': "'model_type' occurs twice",
        '{"model_type": "llama", "num_attention_heads": Infinity}': "num_attention_heads",
    }.items():
        path.write_text(content)
        with pytest.raises(UserError, match=f"{tmp_path}.*{problem}"):
            _ = HuggingFaceDirectory(tmp_path).config


def test_eos_ids_come_from_the_generation_settings_first(tmp_path: Path) -> None:
    assert read_eos_ids(tmp_path) == ()
    (tmp_path / "config.json").write_text('{"eos_token_id": 128001}')
    assert read_eos_ids(tmp_path) == (128001,)
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"temperature": 0.6}')
    assert read_eos_ids(tmp_path) == (128001,)
    generation.write_text('{"eos_token_id": [128001, 128008, 128009]}')
    assert read_eos_ids(tmp_path) == (128001, 128008, 128009)
    generation.write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id must be"):
        read_eos_ids(tmp_path)
