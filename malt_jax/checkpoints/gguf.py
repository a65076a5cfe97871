"""Reads GGUF files (llama.cpp's format): configuration, weights and tokenizer from one file.

The metadata keys and tensor names are those of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.vocabularies import Piece, byte_level_tokenizer, sentencepiece_tokenizer
from malt_jax.checkpoints.weights import TensorSource
from malt_jax.errors import UserError
from malt_jax.model.attention import inverse_frequencies
from malt_jax.model.config import Llama3RopeScaling, LlamaConfig

_ARCHITECTURES = ("llama", "qwen2")

_ROPE_FACTORS = "rope_freqs.weight"
_OUTPUT = "output.weight"
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    _OUTPUT: "lm_head.weight",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class GGUFFile:
    """An opened GGUF file; tensors stay on disk until they are read."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is not a whole GGUF file of a supported architecture."""
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
            raise UserError(
                f"{path}: not a readable GGUF file, perhaps truncated ({error})"
            ) from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if self.metadata("split.count", 1) > 1:
            raise UserError(
                f"{path}: one part of a split GGUF file; join the parts with llama.cpp's"
                " `llama-gguf-split --merge`"
            )
        self._architecture = self.metadata("general.architecture")
        if self._architecture not in _ARCHITECTURES:
            raise UserError(
                f"{path}: the architecture {self._architecture!r} is not supported; supported are"
                f" {', '.join(_ARCHITECTURES)}"
            )

    def metadata(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def config(self) -> LlamaConfig:
        """The model's shape, from the metadata.

        Raises UserError for a missing key and for rope scaling that is not implemented.
        """
        width, num_heads = (
            self._required("embedding_length"),
            self._required("attention.head_count"),
        )
        fields = {
            "model_type": self._architecture,
            "vocab_size": int(self._tensor("token_embd.weight").shape[1]),
            "hidden_size": width,
            "num_hidden_layers": self._required("block_count"),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._optional("attention.head_count_kv", num_heads),
            "head_dim": self._optional("attention.key_length", width // num_heads),
            "intermediate_size": self._required("feed_forward_length"),
            "rope_theta": _shortest(self._optional("rope.freq_base", 10_000.0)),
            "rms_norm_eps": _shortest(self._required("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": _OUTPUT not in self._tensors,
            "max_position_embeddings": self._required("context_length"),
        }
        scaling = self._optional("rope.scaling.type", "none")
        if scaling != "none":
            fields["rope_scaling"] = {"rope_type": scaling}
        elif _ROPE_FACTORS in self._tensors:
            fields["rope_scaling"] = self._llama3_scaling(LlamaConfig.from_huggingface(fields))
        return LlamaConfig.from_huggingface(fields)

    def tensors(self, config: LlamaConfig) -> TensorSource:
        """The weights under Hugging Face's names, dequantised to float32 as they are read."""
        names = {_huggingface_name(name): name for name in self._tensors if name != _ROPE_FACTORS}

        def read(name: str) -> np.ndarray:
            tensor = self._tensors[names[name]]
            values = self._dequantise(tensor)
            if self._architecture != "llama":
                return values
            if "q_proj" in name:
                return _undo_permutation(values, config.num_heads)
            if "k_proj" in name:
                return _undo_permutation(values, config.num_kv_heads)
            return values

        # GGUF lists a tensor's axes fastest first.
        shapes = {
            name: tuple(int(size) for size in reversed(self._tensors[stored].shape))
            for name, stored in names.items()
        }
        return TensorSource(str(self.path), shapes, read)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer and chat template in the metadata.

        Raises UserError for a vocabulary whose kind is unknown or not stated.
        """
        texts = self.metadata("tokenizer.ggml.tokens")
        if not texts:
            raise UserError(
                f"{self.path}: no vocabulary in the file; name a tokenizer with"
                " model.tokenizer=PATH"
            )
        ends = ("eos_token_id", "eot_token_id", "eom_token_id")
        eos_ids = [self.metadata(f"tokenizer.ggml.{key}") for key in ends]
        bos, eos = self.metadata("tokenizer.ggml.bos_token_id"), eos_ids[0]
        return Tokenizer(
            self._vocabulary(texts),
            bos_token=None if bos is None else texts[bos],
            eos_token=None if eos is None else texts[eos],
            chat_template=self.metadata("tokenizer.chat_template"),
            eos_ids=[index for index in eos_ids if index is not None],
            origin=str(self.path),
        )

    def _vocabulary(self, texts: list[str]) -> tokenizers.Tokenizer:
        kinds = self.metadata("tokenizer.ggml.token_type") or [1] * len(texts)
        scores = self.metadata("tokenizer.ggml.scores") or [0.0] * len(texts)
        pieces = [
            Piece(text, score, kind) for text, score, kind in zip(texts, scores, kinds, strict=True)
        ]
        match self.metadata("tokenizer.ggml.model"):
            case "gpt2":
                merges = self.metadata("tokenizer.ggml.merges") or []
                pairs = [_split_merge(merge) for merge in merges]
                kind = self.metadata("tokenizer.ggml.pre", "not stated")
                return byte_level_tokenizer(pieces, pairs, kind, str(self.path))
            case "llama":
                prefix = self.metadata("tokenizer.ggml.add_space_prefix", True)
                return sentencepiece_tokenizer(pieces, add_dummy_prefix=bool(prefix))
            case other:
                raise UserError(
                    f"{self.path}: vocabularies of kind {other!r} (tokenizer.ggml.model) are not"
                    " supported, only 'gpt2' and 'llama'; name a tokenizer with"
                    " model.tokenizer=PATH"
                )

    def _optional(self, key: str, default: Any) -> Any:
        return self.metadata(f"{self._architecture}.{key}", default)

    def _required(self, key: str) -> Any:
        value = self._optional(key, None)
        if value is None:
            raise UserError(f"{self.path}: the metadata lacks {self._architecture}.{key}")
        return value

    def _tensor(self, name: str) -> gguf.ReaderTensor:
        if name not in self._tensors:
            raise UserError(f"{self.path}: the tensor {name} is missing")
        return self._tensors[name]

    def _dequantise(self, tensor: gguf.ReaderTensor) -> np.ndarray:
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: {tensor.name} is of type {tensor.tensor_type.name}, which the"
                " package gguf cannot dequantise"
            ) from error

    def _llama3_scaling(self, unscaled: LlamaConfig) -> dict[str, Any]:
        """Llama 3.1's rope scaling, from the divisors that llama.cpp stores in its place.

        The file holds one divisor per frequency, not the four numbers they were made of. The
        factor is the largest divisor; the others are the same in all published models, and are
        checked.
        """
        divisors = self._dequantise(self._tensor(_ROPE_FACTORS)).ravel()
        scaling = Llama3RopeScaling(factor=_shortest(float(divisors.max())))
        fields = unscaled.to_huggingface() | {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
        }
        scaled = LlamaConfig.from_huggingface(fields)
        wanted = inverse_frequencies(unscaled) / inverse_frequencies(scaled)
        if divisors.shape != wanted.shape or not np.allclose(divisors, wanted, rtol=1e-4):
            raise UserError(
                f"{self.path}: the rope frequency factors ({_ROPE_FACTORS}) are not Llama 3.1's;"
                " other rope scalings are not supported"
            )
        return fields["rope_scaling"]


def _huggingface_name(name: str) -> str:
    """The name under which Hugging Face stores a GGUF tensor; unknown names stay as they are."""
    if (match := _LAYER_TENSOR.fullmatch(name)) and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    return _NAMES.get(name, name)


def _undo_permutation(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a q or k projection back in Hugging Face's order.

    llama.cpp rotates neighbouring elements of a head, Hugging Face the i-th with the
    (i + E/2)-th; its converter interleaves the two halves of every head accordingly.
    """
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _split_merge(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _shortest(value: float) -> float:
    """A float32 as the decimal number it was written as: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))
