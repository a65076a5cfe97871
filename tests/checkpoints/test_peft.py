"""Adapters in peft's files, against peft itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint, save_checkpoint
from malt_jax.checkpoints.fingerprint import weights_sha256
from malt_jax.checkpoints.huggingface import HuggingFaceDirectory
from malt_jax.checkpoints.peft import load_adapter, low_rank, merged, save_adapter
from malt_jax.checkpoints.weights import disassemble
from malt_jax.config import LoraConfig
from malt_jax.errors import UserError
from malt_jax.model.config import Llama, LlamaConfig
from malt_jax.model.llama import Decoder, Params, variable_specs
from malt_jax.model.lora import merge_adapter, scaled_adapter

LORA = LoraConfig(rank=4, alpha=6.5, dropout=0.1, targets=("q", "v", "o", "down"))
TOKENS = np.array([[5, 9, 200, 31, 77, 8]])


def random_adapter(config: LlamaConfig, lora: LoraConfig) -> Params:
    rng = np.random.default_rng(1)
    specs = variable_specs(Llama(config, lora=lora))["adapter"]
    return jax.tree.map(
        lambda spec: jnp.asarray(0.3 * rng.standard_normal(spec.shape, np.float32)), specs
    )


@pytest.fixture
def base(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "base", checkpoint)
    return tmp_path / "base"


@pytest.fixture
def adapter(checkpoint: Checkpoint) -> Params:
    return random_adapter(checkpoint.config, LORA)


def ours(checkpoint: Checkpoint, adapter: Params, lora: LoraConfig) -> np.ndarray:
    decoder = Decoder(Llama(checkpoint.config, lora=lora))
    variables = {"params": checkpoint.params, "adapter": adapter}
    run = jax.jit(lambda tokens: decoder.apply(variables, tokens, method=Decoder.everything))
    return np.asarray(run(TOKENS))


def test_peft_loads_an_adapter_and_gives_our_logits(
    checkpoint: Checkpoint, adapter: Params, base: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "adapter"
    save_adapter(directory, adapter, checkpoint.config, LORA, str(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, directory).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
        with model.disable_adapter():
            plain = model(torch.from_numpy(TOKENS)).logits.numpy()
    assert np.abs(ours(checkpoint, adapter, LORA) - theirs).max() <= 2e-4
    assert np.abs(plain - theirs).max() > 0.1


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_peft_weighs_an_adapter_as_sampling_does(
    checkpoint: Checkpoint, adapter: Params, base: Path, tmp_path: Path
) -> None:
    weighted, directory = dataclasses.replace(LORA, adapter_weight=0.2), tmp_path / "adapter"
    save_adapter(directory, adapter, checkpoint.config, weighted, str(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, directory).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    sampled = scaled_adapter(adapter, 0.2)
    assert np.abs(ours(checkpoint, sampled, LORA) - theirs).max() <= 2e-4
    # It is read back as it was trained; a model with another weight does not take it.
    back = load_adapter(directory, checkpoint.config, weighted)
    jax.tree.map(np.testing.assert_array_equal, back, dict(adapter))
    with pytest.raises(UserError, match=r"adapter's alpha is 1\.3.*, and lora\.alpha is 6\.5"):
        load_adapter(directory, checkpoint.config, LORA)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_names_and_settings_are_those_that_peft_writes(
    checkpoint: Checkpoint, adapter: Params, base: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "ours", adapter, checkpoint.config, LORA, str(base))
    settings = PeftConfig(
        r=4,
        lora_alpha=6.5,
        lora_dropout=0.1,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    model.save_pretrained(tmp_path / "theirs")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("ours", "theirs")]
    mine, theirs = (
        {name: x.shape for name, x in safetensors.numpy.load_file(file).items()} for file in files
    )
    assert mine == theirs
    mine, theirs = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    )
    for name, value in mine.items():
        if name == "target_modules":
            assert {*value} == {*theirs[name]}
        else:
            assert theirs[name] == value, name
    # An adapter that peft wrote is read.
    read = load_adapter(tmp_path / "theirs", checkpoint.config, LORA)
    state = model.state_dict()
    stored = state["base_model.model.model.layers.1.mlp.down_proj.lora_A.default.weight"]
    np.testing.assert_array_equal(read["layers"]["mlp"]["down"]["a"][1], stored.numpy())


def test_an_adapter_comes_back_in_the_same_bits(
    checkpoint: Checkpoint, adapter: Params, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapter", adapter, checkpoint.config, LORA, "base")
    back = flatten_dict(load_adapter(tmp_path / "adapter", checkpoint.config, LORA))
    assert back.keys() == flatten_dict(adapter).keys()
    for path, values in flatten_dict(adapter).items():
        np.testing.assert_array_equal(back[path], values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_tensors_are_those_of_merged_parameters(
    checkpoint: Checkpoint, adapter: Params, base: Path, dtype: str
) -> None:
    matrices = low_rank(adapter, checkpoint.config)
    source = HuggingFaceDirectory(base).tensors()
    found = dict(merged(source, checkpoint.config, matrices, LORA.scale, jnp.dtype(dtype)))
    params = merge_adapter(checkpoint.params, adapter, LORA)
    wanted = dict(disassemble(params, checkpoint.config))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        tolerance = 1e-6 if dtype == "float32" else 2**-8 * np.abs(tensor).max()
        assert found[name].dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(found[name].astype(np.float32), tensor, atol=tolerance, rtol=0)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_a_fingerprint_depends_on_values_not_on_files(
    checkpoint: Checkpoint, base: Path, tmp_path: Path
) -> None:
    config = checkpoint.config
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), checkpoint.params)
    half = Checkpoint("half", config, rounded, checkpoint.tokenizer)
    wide = Checkpoint(
        "wide", config, jax.tree.map(lambda x: x.astype(jnp.float32), rounded), half.tokenizer
    )
    hashes = {}
    for name, stored in (("half", half), ("wide", wide)):
        save_checkpoint(tmp_path / name, stored, max_shard_bytes=20_000)
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        hashes[name] = weights_sha256(StoredCheckpoint(str(tmp_path / name)).tensors(), config)
    assert hashes["half"] == hashes["wide"]
    assert weights_sha256(HuggingFaceDirectory(base).tensors(), config) != hashes["half"]


def test_a_tokenizer_s_fingerprint_survives_its_files(checkpoint: Checkpoint, base: Path) -> None:
    read = StoredCheckpoint(str(base)).tokenizer
    assert read.fingerprint == checkpoint.tokenizer.fingerprint
    assert StoredCheckpoint("tiny").tokenizer.fingerprint != read.fingerprint


def rewritten(directory: Path, change: dict[str, Any]) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, "the adapter's rank is 8, and lora.rank is 4"),
        ({"lora_alpha": 16}, "the adapter's alpha is 16"),
        ({"target_modules": ["q_proj"]}, "the adapter's targets are q"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules: q_proj, lm_head must"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": "4"}, "r: "),
        ({"r": None}, "r: "),
    ],
)
def test_unsuitable_settings_are_named(
    checkpoint: Checkpoint, adapter: Params, tmp_path: Path, change: dict, message: str
) -> None:
    save_adapter(tmp_path / "adapter", adapter, checkpoint.config, LORA, "base")
    rewritten(tmp_path / "adapter", change)
    with pytest.raises(UserError, match=rf"adapter_config\.json: .*{message}"):
        load_adapter(tmp_path / "adapter", checkpoint.config, LORA)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_wrong_tensors_are_named(checkpoint: Checkpoint, adapter: Params, tmp_path: Path) -> None:
    directory = tmp_path / "adapter"
    save_adapter(directory, adapter, checkpoint.config, LORA, "base")
    file = directory / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    lost = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    bent = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    del tensors[lost]
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 32), np.float32)
    tensors[bent] = np.ones((4, 32), np.float32)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        load_adapter(directory, checkpoint.config, LORA)
    message = str(caught.value)
    assert f"missing: {lost}" in message
    assert "surplus: base_model.model.lm_head.lora_A.weight" in message
    assert f"{bent} (is [4, 32], should be [32, 4])" in message
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_adapter(directory, checkpoint.config, LORA)
    file.unlink()
    with pytest.raises(UserError, match="not found"):
        load_adapter(directory, checkpoint.config, LORA)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_an_adapter_with_nan_is_refused(
    checkpoint: Checkpoint, adapter: Params, tmp_path: Path
) -> None:
    flat = flatten_dict(dict(adapter))
    b = ("layers", "attention", "q", "b")
    flat[b] = flat[b].at[2, 0, 0].set(jnp.nan)
    save_adapter(tmp_path / "x", unflatten_dict(flat), checkpoint.config, LORA, "base")
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.q_proj\.lora_B\.weight are NaN"):
        load_adapter(tmp_path / "x", checkpoint.config, LORA)
