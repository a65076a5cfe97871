"""Writes GGUF files as llama.cpp's converters do: whole models, and LoRA adapters for them.

The layout is that of convert_hf_to_gguf.py and convert_lora_to_gguf.py in
https://github.com/ggml-org/llama.cpp: q and k are permuted where llama.cpp rotates neighbouring
elements, vectors are float32, and an adapter has the tensors NAME.lora_a [R, in] and NAME.lora_b
[out, R].
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np

from malt_jax.checkpoints.gguf import (
    ARCHITECTURES,
    GEMMA3_27B_LAYERS,
    NEIGHBOURS_ROTATE,
    ROPE_FACTORS,
)
from malt_jax.checkpoints.gguf_vocabulary import add_vocabulary
from malt_jax.checkpoints.peft import LowRank
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.weights import leaves
from malt_jax.config import LoraConfig
from malt_jax.errors import UserError
from malt_jax.model.config import LinearRopeScaling, Llama3RopeScaling, LlamaConfig
from malt_jax.model.rope import inverse_frequencies

_NAMES = {"mistral": "llama", "gemma3_text": "gemma3"}
"""llama.cpp's names of architectures that Hugging Face calls otherwise."""
_NO_ROPE_STEP = 4
_GLOBAL_STEP = 6
"""Every fourth layer of SmolLM3 has no rotary positions, every sixth of Gemma 3 no window: these
are constants of llama.cpp."""

Type = gguf.GGMLQuantizationType
_TYPES = {"float32": Type.F32, "float16": Type.F16, "bfloat16": Type.BF16}
_FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
}


def require_gguf(config: LlamaConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError for a model or a tokenizer that llama.cpp has no equivalent of."""
    _require_architecture(config)
    add_vocabulary(gguf.GGUFWriter(None, "llama"), tokenizer, config.vocab_size)


def _require_architecture(config: LlamaConfig) -> None:
    if problem := _difference(config):
        raise UserError(
            f"no GGUF file of this model ({config.model_type}) would give its answers in llama.cpp:"
            f" {problem}; leave --gguf out"
        )


def _difference(config: LlamaConfig) -> str | None:
    """The first part of a model that llama.cpp computes in another way."""
    layers = range(1, config.num_layers + 1)
    local = tuple(layer % _GLOBAL_STEP != 0 for layer in layers)
    rotated = tuple(layer % _NO_ROPE_STEP != 0 for layer in layers)
    architecture = _architecture(config)
    if architecture not in ARCHITECTURES:
        return "the architecture is not supported"
    # llama.cpp derives the width of the heads of Qwen 2 from that of the model.
    if architecture == "qwen2" and config.num_heads * config.head_dim != config.d_model:
        return f"{config.num_heads} heads x {config.head_dim} is not the width {config.d_model}"
    if config.sliding_window is not None and architecture != "gemma3":
        return f"the sliding window of {config.sliding_window} tokens is ignored"
    if architecture == "gemma3" and config.local_layers != local:
        return f"only every {_GLOBAL_STEP}th layer can be without a window"
    if architecture == "smollm3" and (config.rope_layers or (True,) * len(layers)) != rotated:
        return f"every {_NO_ROPE_STEP}th layer has to be without rotary positions"
    if config.attention_softcap is not None:
        return "the soft cap of the attention logits is ignored"
    if config.query_scalar is not None and config.num_layers != GEMMA3_27B_LAYERS:
        return f"query_pre_attn_scalar={config.query_scalar} is ignored"
    return None


def write_gguf(
    path: Path,
    name: str,
    config: LlamaConfig,
    tokenizer: Tokenizer,
    tensors: Iterable[tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    """Writes a model with its tokenizer; one tensor is in memory at a time.

    name:    of the model, in its metadata.
    tensors: under Hugging Face's names, in the order of `weights.leaves`.
    dtype:   of matrices: "float32", "float16" or "bfloat16".

    Raises UserError for an architecture or a tokenizer that llama.cpp has no equivalent of.
    """
    _require_architecture(config)
    kind = _TYPES[dtype]
    divisors = _rope_divisors(config)
    with _writing(path, name, config) as writer:
        _add_shape(writer, config)
        writer.add_file_type(_FILE_TYPES[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_vocabulary(writer, tokenizer, config.vocab_size)
        stored = _stored_names(config)
        for leaf in leaves(config):
            for tensor_name in leaf.names:
                _announce(writer, stored[tensor_name], leaf.tensor_shape, kind)
        if divisors is not None:
            _announce(writer, ROPE_FACTORS, divisors.shape, Type.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor_name, values in tensors:
            # The writer takes tensors in the order in which they were announced.
            if next(iter(writer.tensors[0])) != stored[tensor_name]:
                raise ValueError(f"{tensor_name} is out of order")
            writer.write_tensor_data(_bytes_of(_converted(tensor_name, values, config), dtype))
        if divisors is not None:
            writer.write_tensor_data(divisors)


def write_lora_gguf(
    path: Path, name: str, config: LlamaConfig, adapter: Mapping[str, LowRank], lora: LoraConfig
) -> None:
    """Writes an adapter in float32, for `--lora` of llama.cpp's programs.

    Raises UserError for an architecture that is not supported.
    """
    _require_architecture(config)
    stored = _stored_names(config)
    with _writing(path, name, config) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora.sampled_alpha)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for kernel, (a, b) in adapter.items():
            writer.add_tensor(f"{stored[kernel]}.lora_a", np.ascontiguousarray(a, np.float32))
            rows = _permuted(kernel, b, config)
            writer.add_tensor(f"{stored[kernel]}.lora_b", np.ascontiguousarray(rows, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


@contextlib.contextmanager
def _writing(path: Path, name: str, config: LlamaConfig) -> Iterator[gguf.GGUFWriter]:
    writer = gguf.GGUFWriter(path, _architecture(config))
    writer.add_name(name)
    try:
        yield writer
    finally:
        writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if isinstance(config.rope_scaling, LinearRopeScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)
    if config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if config.local_rope_theta is not None:
        writer.add_rope_freq_base_swa(config.local_rope_theta)
    if config.logits_softcap is not None:
        writer.add_final_logit_softcapping(config.logits_softcap)


def _announce(
    writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType
) -> None:
    """Adds a tensor's name, shape and type to the head of the file."""
    kind = Type.F32 if len(shape) == 1 else kind
    size = 4 if kind == Type.F32 else 2
    count = int(np.prod(shape))
    writer.add_tensor_info(name, shape, np.dtype(np.float32), count * size, raw_dtype=kind)


def _bytes_of(values: np.ndarray, dtype: str) -> np.ndarray:
    """Vectors in float32, matrices in `dtype`; bfloat16 as its bits."""
    wanted = "float32" if values.ndim == 1 else dtype
    cast = np.ascontiguousarray(values.astype(np.dtype(wanted)))
    return cast.view(np.uint16) if wanted == "bfloat16" else cast


def _stored_names(config: LlamaConfig) -> dict[str, str]:
    """llama.cpp's name of every tensor, by Hugging Face's."""
    table = gguf.get_tensor_name_map(ARCHITECTURES[_architecture(config)], config.num_layers)
    names = [name for leaf in leaves(config) for name in leaf.names]
    return {name: table.get_name(name, (".weight", ".bias")) or name for name in names}


def _architecture(config: LlamaConfig) -> str:
    return _NAMES.get(config.model_type, config.model_type)


def _converted(name: str, values: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """A tensor of a model as llama.cpp stores it: it adds the 1 that zero-centred norms add."""
    if config.zero_centered_norms and name.endswith("norm.weight"):
        return values + np.float32(1)
    return _permuted(name, values, config)


def _permuted(name: str, values: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """The rows of a q or k projection in llama.cpp's order, which interleaves the halves of every
    head; other tensors as they are."""
    heads = {".q_proj.": config.num_heads, ".k_proj.": config.num_kv_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is None or _architecture(config) not in NEIGHBOURS_ROTATE:
        return values
    halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _rope_divisors(config: LlamaConfig) -> np.ndarray | None:
    """The divisors of the rotary frequencies by which llama.cpp stores Llama 3.1's scaling."""
    if not isinstance(config.rope_scaling, Llama3RopeScaling):
        return None
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    return np.asarray(plain / inverse_frequencies(config), np.float32)
