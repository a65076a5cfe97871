"""GGUF files made by llama.cpp's own writer, and SmolLM2's, against other readings of them."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from malt_jax.checkpoints.checkpoint import PRESETS, Checkpoint
from malt_jax.checkpoints.gguf import GGUFFile
from malt_jax.checkpoints.weights import assemble, disassemble
from malt_jax.errors import UserError
from malt_jax.model.config import LinearRopeScaling, Llama, Llama3RopeScaling, LlamaConfig
from tests.checkpoints.conftest import transformers_config

Type = gguf.GGMLQuantizationType
Save = Callable[..., Path]

TYPES = {
    str: gguf.GGUFValueType.STRING,
    int: gguf.GGUFValueType.UINT64,
    float: gguf.GGUFValueType.FLOAT32,
    list: gguf.GGUFValueType.ARRAY,
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def gguf_name(name: str, architecture: str = "llama") -> str:
    names = GGUF_NAMES | (GEMMA_NAMES if architecture == "gemma3" else {})
    stem, _, suffix = name.rpartition(".")
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
        return f"blk.{match[1]}.{names[match[2]]}.{suffix}"
    return f"{names[stem]}.{suffix}"


def interleave(values: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: element i of the second half of a head comes
    after element i of the first."""
    out = np.empty_like(values)
    width = len(values) // num_heads
    for head in range(num_heads):
        for i in range(width // 2):
            out[head * width + 2 * i] = values[head * width + i]
            out[head * width + 2 * i + 1] = values[head * width + width // 2 + i]
    return out


@pytest.fixture
def save(tmp_path: Path, checkpoint: Checkpoint) -> Save:
    """Writes the small model to a GGUF file."""

    def save(
        kind: gguf.GGMLQuantizationType = Type.F32,
        metadata: dict[str, object] | None = None,
        extra: dict[str, np.ndarray] | None = None,
        without: tuple[str, ...] = (),
        architecture: str | None = None,
    ) -> Path:
        config = checkpoint.config
        path = tmp_path / "model.gguf"
        converted = ARCHITECTURES.get(config.model_type, config.model_type)
        writer = gguf.GGUFWriter(path, architecture or converted)
        add_shape(writer, config)
        add_vocabulary(writer)
        for key, value in (metadata or {}).items():
            writer.kv_data[0].pop(key, None)
            writer.add_key_value(key, value, TYPES[type(value)])
        for huggingface_name, values in disassemble(checkpoint.params, config):
            name = gguf_name(huggingface_name, converted)
            if name in without:
                continue
            if converted in ("llama", "smollm3") and ".attn_q." in name:
                values = interleave(values, config.num_heads)
            if converted in ("llama", "smollm3") and ".attn_k." in name:
                values = interleave(values, config.num_kv_heads)
            if converted == "gemma3" and name.endswith("norm.weight"):
                values = values + 1
            stored = Type.F32 if values.ndim == 1 else kind
            writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
        if isinstance(config.rope_scaling, Llama3RopeScaling):
            writer.add_tensor("rope_freqs.weight", rope_divisors(config))
        for name, values in (extra or {}).items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return save


def add_shape(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if isinstance(config.rope_scaling, LinearRopeScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if config.logits_softcap is not None:
        writer.add_final_logit_softcapping(config.logits_softcap)


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "<|eos|>", "<|end|>", "ab", "abc", "Ġa", "<|user|>", "<|x|>", "12"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for index in (256, 257, 261, 262):
        kinds[index] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b", "ab c", "Ġ a", "1 2"])
    writer.add_eos_token_id(256)
    writer.add_eot_token_id(257)


def rope_divisors(config: LlamaConfig) -> np.ndarray:
    """llama.cpp's computation of rope_freqs for Llama 3.1 (convert_hf_to_gguf.py), by itself."""
    scaling = config.rope_scaling
    factors = []
    for i in range(config.head_dim // 2):
        wavelength = 2 * np.pi * config.rope_theta ** (2 * i / config.head_dim)
        low = scaling.original_max_positions / scaling.low_freq_factor
        high = scaling.original_max_positions / scaling.high_freq_factor
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(scaling.factor)
        else:
            turns = scaling.original_max_positions / wavelength
            share = (turns - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            factors.append(1 / ((1 - share) / scaling.factor + share))
    return np.array(factors, np.float32)


def load(path: Path, dtype: jnp.dtype = jnp.float32) -> tuple[LlamaConfig, dict]:
    opened = GGUFFile(path)
    return opened.config, assemble(opened.tensors(), Llama(opened.config, dtype=dtype))


def assert_same(a: dict, b: dict, tolerance: float = 0.0) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance), a, b)


def test_configuration_and_weights_come_back(save: Save, checkpoint: Checkpoint) -> None:
    config, params = load(save(metadata={"tokenizer.ggml.pre": "gpt-2"}))
    assert config == checkpoint.config
    # In float32, a weight that was stored with 1 added to it has lost its last bits.
    assert_same(params, checkpoint.params, 1e-7 if config.zero_centered_norms else 0.0)


@pytest.mark.parametrize("config", ["llama", "qwen2", "qwen3", "gemma3"], indirect=True)
def test_transformers_reads_the_same_weights(save: Save) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = save()
    config, params = load(path)
    model = AutoModelForCausalLM.from_config(transformers_config(config))
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    ours = dict(disassemble(params, config))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name].numpy(), err_msg=name)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (Type.F16, 5e-4),
        (Type.BF16, 4e-3),
        (Type.Q8_0, 4e-3),
        (Type.Q4_0, 0.1),
        (Type.Q4_1, 0.06),
    ],
)
def test_stored_types(
    save: Save, checkpoint: Checkpoint, kind: gguf.GGMLQuantizationType, tolerance: float
) -> None:
    _, params = load(save(kind))
    assert_same(params, checkpoint.params, tolerance)
    _, narrow = load(save(kind), jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    assert_same(narrow, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


@pytest.mark.parametrize("kind", [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K])
def test_k_quants(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    """No writer makes these in Python: random blocks, read by transformers' torch code as well."""
    import torch

    reference = pytest.importorskip("transformers.integrations.gguf.dequant")
    config = LlamaConfig(
        vocab_size=8, d_model=256, num_layers=1, num_heads=4, num_kv_heads=4, head_dim=64, d_ff=256
    )
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 128, (256, block_bytes), np.uint8)
    # The scales of a block are float16 at its end or, for Q4_K and Q5_K, at its start.
    scales = rng.uniform(0.001, 0.002, (256, 2)).astype(np.float16).view(np.uint8)
    where = slice(0, 4) if kind in (Type.Q4_K, Type.Q5_K) else slice(-4, None)
    if kind in (Type.Q3_K, Type.Q6_K):
        where, scales = slice(-2, None), scales[:, :2]
    blocks[:, where] = scales
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "qwen2")
    add_shape(writer, config)
    writer.add_tensor("token_embd.weight", np.zeros((8, 256), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    tensors = GGUFFile(tmp_path / "k.gguf").tensors()
    ours = tensors.read("model.layers.0.self_attn.q_proj.weight")
    theirs = reference.dequantize(torch.from_numpy(blocks), int(kind)).numpy()
    assert ours.shape == (256, 256)
    assert ours.std() > 0
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-6)


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("config", ["llama 3.1"], indirect=True)
def test_rope_scaling_is_derived_from_its_factors(
    save: Save, checkpoint: Checkpoint, factor: float
) -> None:
    scaling = Llama3RopeScaling(factor=factor)
    object.__setattr__(
        checkpoint, "config", dataclasses.replace(checkpoint.config, rope_scaling=scaling)
    )
    config, _ = load(save())
    assert config == checkpoint.config


@pytest.mark.parametrize("config", ["gemma3"], indirect=True)
def test_gemmas_constants_are_overridden_by_metadata(save: Save) -> None:
    pattern = [True, False, True, False, False, True]
    stated = {
        "gemma3.attention.sliding_window_pattern": pattern,
        "gemma3.rope.freq_base_swa": 5000.0,
    }
    config = GGUFFile(save(metadata=stated)).config
    assert config.local_layers == tuple(pattern)
    assert config.local_rope_theta == 5000.0
    assert config.query_scalar is None
    # The number of layers by which llama.cpp knows the 27B model.
    largest = GGUFFile(save(metadata={"gemma3.block_count": 62})).config
    assert largest.query_scalar == largest.d_model // largest.num_heads


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_other_rope_scalings_are_refused(save: Save, checkpoint: Checkpoint) -> None:
    steps = np.linspace(1, 4, checkpoint.config.head_dim // 2, dtype=np.float32)
    with pytest.raises(UserError, match=r"rope_freqs\.weight\) are not Llama 3\.1's"):
        load(save(extra={"rope_freqs.weight": steps}))
    with pytest.raises(UserError, match="rope type 'yarn' is not supported"):
        load(save(metadata={"llama.rope.scaling.type": "yarn"}))


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_what_is_missing_is_named(save: Save) -> None:
    with pytest.raises(UserError) as caught:
        load(save(without=("blk.1.ffn_up.weight",), extra={"blk.0.lost": np.ones(3, np.float32)}))
    assert "missing: model.layers.1.mlp.up_proj.weight\n" in str(caught.value)
    assert "surplus: blk.0.lost" in str(caught.value)
    with pytest.raises(UserError, match=r"token_embd\.weight is missing"):
        load(save(without=("token_embd.weight",)))


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_unsuitable_files(save: Save, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="architecture 'gemma2' is not supported"):
        GGUFFile(save(architecture="gemma2"))
    with pytest.raises(UserError, match="one part of a split GGUF file"):
        GGUFFile(save(metadata={"split.count": 2}))
    whole = save().read_bytes()
    for length in (0, 3, 100, len(whole) // 3, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.gguf: not a readable GGUF file"):
            GGUFFile(tmp_path / "cut.gguf")


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("llama.block_count", 10**18, "num_hidden_layers must be"),
        ("llama.block_count", [3], "num_hidden_layers is of the wrong kind"),
        ("llama.attention.head_count", 0, "num_attention_heads must be"),
        ("llama.attention.head_count_kv", [2, 2, 2], "num_key_value_heads is of the wrong kind"),
        ("llama.embedding_length", "32", "hidden_size is of the wrong kind"),
        ("llama.rope.freq_base", float("nan"), "rope_theta must be"),
        ("llama.rope.scaling.type", [1], "rope type"),
        ("general.architecture", [1], "architecture"),
    ],
)
def test_metadata_out_of_bounds_are_named(
    save: Save, key: str, value: object, problem: str
) -> None:
    with pytest.raises(UserError, match=rf"model\.gguf: .*{problem}"):
        load(save(metadata={key: value}))


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.bos_token_id": "<s>"},
        {"tokenizer.ggml.merges": ["no such"]},
        {"tokenizer.ggml.tokens": ["a", "b"]},
        {"tokenizer.ggml.tokens": 5},
        {"tokenizer.ggml.token_type": "all"},
        {"tokenizer.ggml.pre": ["gpt-2"]},
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": ["a"] * 264},
        {"tokenizer.chat_template": [1, 2]},
    ],
)
def test_a_malformed_vocabulary_gives_one_line(save: Save, metadata: dict[str, object]) -> None:
    file = GGUFFile(save(metadata={"tokenizer.ggml.pre": "gpt-2"} | metadata))
    with pytest.raises(UserError, match=r"model\.gguf: ") as caught:
        file.tokenizer()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_a_piece_too_long_to_cut_is_refused(save: Save) -> None:
    """Merges are derived from every way to cut a piece in two: a million characters take hours."""
    pieces = ["a" * 1_000_000, "b"]
    metadata: dict[str, object] = {"model": "llama", "tokens": pieces}
    metadata |= {"scores": [0.0, 1.0], "token_type": [1, 1], "eos_token_id": 0, "eot_token_id": 1}
    file = save(metadata={f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    with pytest.raises(UserError, match="1000000 characters"):
        GGUFFile(file).tokenizer()


def overwritten(data: bytes, offset: int, number: int) -> bytes:
    return data[:offset] + number.to_bytes(8, "little") + data[offset + 8 :]


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_counts_beyond_the_file_end_at_once(save: Save, tmp_path: Path) -> None:
    whole = save().read_bytes()
    key = b"tokenizer.ggml.token_type"
    # After a key: the types of the value and of its elements, four bytes each.
    array_length = whole.index(key) + len(key) + 8
    tensor_count, metadata_count = 8, 16
    for offset in (tensor_count, metadata_count, array_length):
        (tmp_path / "long.gguf").write_bytes(overwritten(whole, offset, 10**18))
        with pytest.raises(UserError, match=r"long\.gguf: not a readable GGUF file"):
            GGUFFile(tmp_path / "long.gguf")


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("shift", "problem"), [(4, "is not aligned"), (2**63, "not a readable GGUF file")]
)
def test_tensors_that_start_elsewhere_are_refused(
    save: Save, tmp_path: Path, shift: int, problem: str
) -> None:
    whole = save().read_bytes()
    name = b"blk.0.attn_norm.weight"
    # After a name: the number of axes, one length, the type; then the offset.
    offset = whole.index(name) + len(name) + 4 + 8 + 4
    start = int.from_bytes(whole[offset : offset + 8], "little")
    (tmp_path / "moved.gguf").write_bytes(overwritten(whole, offset, start + shift))
    with pytest.raises(UserError, match=rf"moved\.gguf: .*{problem}"):
        GGUFFile(tmp_path / "moved.gguf")


@pytest.mark.parametrize("config", ["llama"], indirect=True)
def test_vocabulary_of_a_small_file(save: Save) -> None:
    tokenizer = GGUFFile(save(metadata={"tokenizer.ggml.pre": "smollm"})).tokenizer()
    assert tokenizer.encode("abc ab a") == [259, *tokenizer.encode(" "), 258, 260]
    assert len(tokenizer.encode("12")) == 2
    assert tokenizer.encode("<|x|>", special=True) == [262]
    assert 262 not in tokenizer.encode("<|x|>")
    assert tokenizer.stop_ids == (256, 257)
    whole_numbers = GGUFFile(save(metadata={"tokenizer.ggml.pre": "llama-bpe"})).tokenizer()
    assert whole_numbers.encode("12") == [263]


@pytest.mark.parametrize("config", ["llama"], indirect=True)
@pytest.mark.parametrize("metadata", [{}, {"tokenizer.ggml.pre": "viking"}])
def test_an_unknown_way_of_splitting_text_is_not_guessed(save: Save, metadata: dict) -> None:
    kind = metadata.get("tokenizer.ggml.pre", "not stated")
    with pytest.raises(UserError, match=rf"pre-tokenizer '{kind}'.*model\.tokenizer=PATH"):
        GGUFFile(save(metadata=metadata)).tokenizer()


def test_sentencepiece_vocabulary_in_a_gguf_file(tmp_path: Path, questions: list[str]) -> None:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for text in questions if text.strip()),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = reference.vocab_size()
    kinds = [gguf.TokenType.NORMAL] * size
    for index in range(size):
        if reference.is_unknown(index):
            kinds[index] = gguf.TokenType.UNKNOWN
        elif reference.is_control(index):
            kinds[index] = gguf.TokenType.CONTROL
        elif reference.is_byte(index):
            kinds[index] = gguf.TokenType.BYTE
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([reference.id_to_piece(index) for index in range(size)])
    writer.add_token_scores([reference.get_score(index) for index in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = GGUFFile(tmp_path / "vocabulary.gguf").tokenizer()
    for text in questions:
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


class ScalarBPE:
    """SmolLM2's tokenizer from its definition, one merge at a time: digits alone, then GPT-2's
    words (a space stays with the word after it), then the merges in order of rank."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        tokens = reader.get_field("tokenizer.ggml.tokens").contents()
        merges = reader.get_field("tokenizer.ggml.merges").contents()
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in printable]
        self.spelling = {byte: chr(byte) for byte in printable}
        self.spelling |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        return [
            i
            for chunk in self._chunks(text)
            for word in self._words(chunk)
            for i in self._merge(word)
        ]

    @staticmethod
    def _chunks(text: str) -> list[str]:
        chunks = [""]
        for char in text:
            if unicodedata.category(char)[0] == "N":
                chunks += [char, ""]
            else:
                chunks[-1] += char
        return [chunk for chunk in chunks if chunk]

    @staticmethod
    def _words(text: str) -> list[str]:
        def kind(char: str) -> str:
            category = unicodedata.category(char)[0]
            return "space" if char.isspace() else category if category in "LN" else "other"

        words, start = [], 0
        while start < len(text):
            rest = text[start:]
            if match := re.match(r"'(?:s|t|re|ve|m|ll|d)", rest):
                end = match.end()
            else:
                skip = int(rest[0] == " " and len(rest) > 1 and not rest[1].isspace())
                end = skip
                while end < len(rest) and kind(rest[end]) == kind(rest[skip]):
                    end += 1
                # The last blank before a word belongs to the word, or stands alone.
                if kind(rest[skip]) == "space" and end < len(rest) and end > 1:
                    end -= 1
            words.append(rest[:end])
            start += end
        return words

    def _merge(self, word: str) -> list[int]:
        pieces = [self.spelling[byte] for byte in word.encode()]
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, index = [], 0
            while index < len(pieces):
                joins = tuple(pieces[index : index + 2]) == best
                merged.append("".join(best) if joins else pieces[index])
                index += 2 if joins else 1
            pieces = merged
        return [self.ids[piece] for piece in pieces]


def test_smollm2_tokenizer(smollm2: Checkpoint, smollm2_file: Path, questions: list[str]) -> None:
    reference = ScalarBPE(smollm2_file)
    tokenizer = smollm2.tokenizer
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.stop_ids == (2,)
    for text in questions:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == text
    prompt = tokenizer.render([{"role": "user", "content": "Hi"}])
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.encode(prompt, special=True).count(2) == 2
    assert 2 not in tokenizer.encode(prompt)


def test_smollm2_configuration(smollm2: Checkpoint) -> None:
    assert smollm2.config == PRESETS["smollm2-135m"]
