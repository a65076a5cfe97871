"""GGUF files that this package writes, read back and run by llama.cpp itself."""

import dataclasses
import json
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from malt_jax.checkpoints.gguf import GGUFFile
from malt_jax.checkpoints.gguf_writer import require_gguf, write_gguf, write_lora_gguf
from malt_jax.checkpoints.peft import low_rank, merged
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.vocabularies import (
    Piece,
    byte_level_tokenizer,
    sentencepiece_tokenizer,
)
from malt_jax.checkpoints.weights import TensorSource, disassemble, leaves
from malt_jax.config import LoraConfig
from malt_jax.errors import UserError
from malt_jax.model.config import Llama
from malt_jax.model.llama import Params
from malt_jax.model.lora import merge_adapter
from malt_jax.sampling.sampler import Request, Sampler
from malt_jax.sampling.token import SamplingParameters
from tests.checkpoints.conftest import CONFIGS, SPECIAL_TOKENS, TEMPLATE, random_params
from tests.checkpoints.test_peft import random_adapter

LORA = LoraConfig(rank=4, alpha=6.5)
MERGES = [("1", "2"), ("12", "3"), ("123", "4"), ("Ġ", "a"), ("'", "l"), ("?", "Ċ"), ("Ã", "©")]
KINDS = ("gpt-2", "smollm", "llama-bpe", "qwen2")
PROMPT = [5, 9, 200, 31, 77, 8]
LENGTH = 12
TEXTS = ("12345 1 a'll 'LL a?\n\n?", "naïve café  \t x\r\n", "<|end|>")


def byte_level(kind: str) -> Tokenizer:
    """Bytes, a few merges and special tokens, split as this kind splits."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [Piece(text) for text in [*alphabet, *map("".join, MERGES)]]
    pieces += [Piece(text, type=gguf.TokenType.CONTROL) for text in SPECIAL_TOKENS[:1]]
    pieces.append(Piece("<|end|>", type=gguf.TokenType.CONTROL))
    vocabulary = byte_level_tokenizer(pieces, MERGES, kind, "test")
    return Tokenizer(vocabulary, bos_token="<|bos|>", eos_token="<|end|>", chat_template=TEMPLATE)


@pytest.fixture
def model(checkpoint: Checkpoint) -> Checkpoint:
    """A small model of every kind with a tokenizer that llama.cpp knows; 265 of its ids are text
    and control tokens, and the embedding has more rows."""
    config = dataclasses.replace(checkpoint.config, vocab_size=272)
    if config.model_type == "qwen2":
        config = dataclasses.replace(config, num_heads=2, num_kv_heads=1)
        checkpoint = dataclasses.replace(checkpoint, params=random_params(config))
    if config.model_type == "mistral":
        config = dataclasses.replace(config, sliding_window=None, layer_types=())
    rng = np.random.default_rng(3)

    def wider(x: jax.Array) -> jax.Array:
        if 264 not in x.shape:
            return x
        return jnp.asarray(0.3 * rng.standard_normal((272, x.shape[1]), np.float32))

    return Checkpoint("small", config, jax.tree.map(wider, checkpoint.params), byte_level("gpt-2"))


def tensors(model: Checkpoint) -> TensorSource:
    found = dict(disassemble(model.params, model.config))
    shapes = {name: values.shape for name, values in found.items()}
    return TensorSource("memory", shapes, found.__getitem__)


def written(model: Checkpoint, path: Path, dtype: str = "float32") -> Path:
    values = merged(tensors(model), model.config, {}, 1.0, np.float32)
    write_gguf(path, "small", model.config, model.tokenizer, values, dtype)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_our_reader_reads_the_same_model(model: Checkpoint, tmp_path: Path, dtype: str) -> None:
    file = GGUFFile(written(model, tmp_path / "model.gguf", dtype))
    # llama.cpp calls Mistral without a window Llama, which is the same.
    names = {"mistral": "llama"}
    kind = names.get(model.config.model_type, model.config.model_type)
    assert file.config == dataclasses.replace(model.config, model_type=kind)
    source = file.tensors()
    for name, values in disassemble(model.params, model.config):
        wanted = values if values.ndim == 1 else values.astype(jnp.dtype(dtype))
        # Zero-centred norms are stored with the 1 that they add, and round with it.
        lost = 1e-7 if file.config.zero_centered_norms and values.ndim == 1 else 0
        np.testing.assert_allclose(
            source.read(name), wanted.astype(np.float32), rtol=0, atol=lost, err_msg=name
        )
    assert file.metadata("general.file_type") == {"float32": 0, "float16": 1, "bfloat16": 32}[dtype]
    tokenizer = file.tokenizer()
    assert tokenizer.stop_ids == model.tokenizer.stop_ids
    assert tokenizer.bos_id == model.tokenizer.bos_id
    assert tokenizer.chat_template == TEMPLATE
    assert file.metadata("tokenizer.ggml.add_bos_token") is False


def read_adapter(path: Path) -> tuple[gguf.GGUFReader, dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_an_adapter_s_products_are_those_that_merging_adds(
    model: Checkpoint, tmp_path: Path
) -> None:
    """In llama.cpp's order of rows, in which the merged model's own file has them too."""
    adapter = random_adapter(model.config, LORA)
    path = tmp_path / "adapter.gguf"
    write_lora_gguf(path, "small", model.config, low_rank(adapter, model.config), LORA)
    reader, found = read_adapter(path)
    assert reader.get_field("general.type").contents() == "adapter"
    assert reader.get_field("adapter.type").contents() == "lora"
    alpha = reader.get_field("adapter.lora.alpha").contents()
    assert alpha == LORA.alpha
    weighted, matrices = (
        dataclasses.replace(LORA, adapter_weight=0.5),
        low_rank(adapter, model.config),
    )
    write_lora_gguf(tmp_path / "half.gguf", "small", model.config, matrices, weighted)
    half, _ = read_adapter(tmp_path / "half.gguf")
    assert half.get_field("adapter.lora.alpha").contents() == LORA.alpha / 2
    whole = dataclasses.replace(model, params=merge_adapter(model.params, adapter, LORA))
    _, before = read_adapter(written(model, tmp_path / "before.gguf"))
    _, after = read_adapter(written(whole, tmp_path / "after.gguf"))
    assert len(found) == 2 * 7 * model.config.num_layers
    for name in before:
        change = after[name] - before[name]
        if f"{name}.lora_a" not in found:
            assert not change.any(), name
            continue
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        np.testing.assert_allclose(alpha / len(a) * b @ a, change, atol=1e-5, err_msg=name)


def greedy(model: Checkpoint, params: Params) -> list[int]:
    """Our greedy continuation of PROMPT."""
    parameters = SamplingParameters.create(0.0, stop_ids=(), max_tokens=LENGTH)
    sampler = Sampler(Llama(model.config), parameters, chunk=LENGTH)
    request = Request([[()], [PROMPT]], (1,), np.arange(1), jax.random.key(0))
    return sampler.sample({"params": params}, request).ids(0, 0)


def llama_cpp(model: Path, adapter: Path | None = None) -> list[int]:
    """The same by llama.cpp's own server."""
    xllamacpp: Any = pytest.importorskip("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(model)
    settings.n_ctx, settings.warmup, settings.cpuparams.n_threads = 256, False, 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if adapter is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(settings)
    asked = {"prompt": PROMPT, "n_predict": LENGTH, "temperature": 0.0, "return_tokens": True}
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(asked | {"ignore_eos": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())["tokens"]


def test_llama_cpp_gives_the_same_tokens(model: Checkpoint, tmp_path: Path) -> None:
    """Of the model, and of the model with an adapter."""
    base = written(model, tmp_path / "base.gguf")
    adapter = random_adapter(model.config, LORA)
    matrices = low_rank(adapter, model.config)
    write_lora_gguf(tmp_path / "adapter.gguf", "small", model.config, matrices, LORA)
    plain = greedy(model, model.params)
    adapted = greedy(model, merge_adapter(model.params, adapter, LORA))
    assert plain != adapted
    assert llama_cpp(base) == plain
    assert llama_cpp(base, tmp_path / "adapter.gguf") == adapted


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_byte_level_tokenizer_is_found(
    model: Checkpoint, tmp_path: Path, kind: str
) -> None:
    model = dataclasses.replace(model, tokenizer=byte_level(kind))
    file = GGUFFile(written(model, tmp_path / "model.gguf"))
    assert file.metadata("tokenizer.ggml.pre") == kind
    assert file.metadata("tokenizer.ggml.model") == "gpt2"
    for text in TEXTS:
        assert file.tokenizer().encode(text) == model.tokenizer.encode(text)
        assert file.tokenizer().encode(text, special=True) == model.tokenizer.encode(
            text, special=True
        )


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_tokenizer_keeps_its_merges(
    model: Checkpoint, tmp_path: Path, prefix: bool
) -> None:
    pieces = [Piece("<unk>", type=gguf.TokenType.UNKNOWN)]
    pieces += [Piece(text, type=gguf.TokenType.CONTROL) for text in ("<s>", "</s>")]
    pieces += [Piece(f"<0x{byte:02X}>", type=gguf.TokenType.BYTE) for byte in range(256)]
    merged_pieces = ["ab", "▁a", "abc", "▁ab"]
    pieces += [Piece(text, -float(rank)) for rank, text in enumerate(merged_pieces)]
    pieces += [Piece(text, -9.0) for text in "▁abc12"]
    vocabulary = sentencepiece_tokenizer(pieces, add_dummy_prefix=prefix)
    tokenizer = Tokenizer(vocabulary, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    model = dataclasses.replace(model, tokenizer=tokenizer)
    file = GGUFFile(written(model, tmp_path / "model.gguf"))
    assert file.metadata("tokenizer.ggml.model") == "llama"
    assert file.metadata("tokenizer.ggml.add_space_prefix") is prefix
    assert file.metadata("tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]
    for text in ("abc ab aabc", "  a 12é", "cab"):
        assert file.tokenizer().encode(text) == tokenizer.encode(text)


@pytest.mark.slow
def test_smollm2_s_tokenizer_comes_back(
    smollm2: Checkpoint, tmp_path: Path, questions: list[str]
) -> None:
    config = dataclasses.replace(smollm2.config, num_layers=1)
    names = {name for leaf in leaves(config) for name in leaf.names}
    found = {name: x for name, x in disassemble(smollm2.params, smollm2.config) if name in names}
    shapes = {name: values.shape for name, values in found.items()}
    source = TensorSource("memory", shapes, found.__getitem__)
    values = merged(source, config, {}, 1.0, np.float16)
    write_gguf(tmp_path / "model.gguf", "one", config, smollm2.tokenizer, values, "float16")
    tokenizer = StoredCheckpoint(str(tmp_path / "model.gguf")).tokenizer
    assert tokenizer.fingerprint == smollm2.tokenizer.fingerprint
    assert all(tokenizer.encode(text) == smollm2.tokenizer.encode(text) for text in questions)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_what_llama_cpp_has_no_equivalent_of_is_refused(
    model: Checkpoint, byte_vocabulary: tokenizers.Tokenizer
) -> None:
    for name, problem in (
        ("qwen2", "4 heads x 16 is not the width 32"),
        ("mistral", "sliding window of 13 tokens is ignored"),
    ):
        with pytest.raises(UserError, match=problem):
            require_gguf(CONFIGS[name], model.tokenizer)
    for name, change, problem in (
        ("gemma3", {"layer_types": ("sliding_attention",) * 6}, "only every 6th layer"),
        ("gemma3", {"query_scalar": 7}, "query_pre_attn_scalar=7 is ignored"),
        ("gemma3", {"attention_softcap": 7.0}, "soft cap of the attention"),
        ("smollm3", {"rope_layers": ()}, "every 4th layer has to be without"),
    ):
        with pytest.raises(UserError, match=problem):
            require_gguf(dataclasses.replace(CONFIGS[name], **change), model.tokenizer)
    with pytest.raises(UserError, match="none of gpt-2, smollm"):
        require_gguf(StoredCheckpoint("tiny").config, StoredCheckpoint("tiny").tokenizer)
    byte_vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[0-9]"), "isolated"), byte_vocabulary.pre_tokenizer]
    )
    with pytest.raises(UserError, match="splits text in a way"):
        require_gguf(model.config, Tokenizer(byte_vocabulary, eos_token="<|end|>"))
    many = byte_level("gpt-2")
    many.stop_ids = (1, 2, 3, 4)
    with pytest.raises(UserError, match="4 ids end a completion"):
        require_gguf(model.config, many)
