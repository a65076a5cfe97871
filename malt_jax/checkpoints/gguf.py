"""GGUF files (llama.cpp's format): configuration, weights and tokenizer from one file.

The metadata keys and tensor names are those of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.checkpoints.vocabularies import Piece, byte_level_tokenizer, sentencepiece_tokenizer
from malt_jax.checkpoints.weights import TensorSource, leaves
from malt_jax.errors import UserError, parsing
from malt_jax.model.config import Llama3RopeScaling, LlamaConfig
from malt_jax.model.families import GLOBAL, LOCAL
from malt_jax.model.rope import inverse_frequencies

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}
# llama.cpp rotates neighbouring elements of a head in these, and pairs H/2 apart in the others.
NEIGHBOURS_ROTATE = ("llama", "smollm3")
# Its logits are scaled by D/N instead of H; llama.cpp knows it by the number of its layers.
GEMMA3_27B_LAYERS = 62
_EMBEDDING, _OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"


class _Reader(gguf.GGUFReader):
    """Stops at the end of the file, where GGUFReader goes on with empty values up to any count."""

    def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        if int(offset) + int(count) * np.dtype(dtype).itemsize > self.data.nbytes:
            raise ValueError("it ends too early")
        return super()._get(offset, dtype, count, override_order)


class GGUFFile:
    """An opened GGUF file; tensors stay on disk until they are read."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file is not a whole GGUF file of a supported architecture."""
        self.path = path
        with parsing(f"{path}: not a readable GGUF file, perhaps truncated"):
            self._reader = _Reader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        for tensor in self._reader.tensors:
            if tensor.data_offset % self._reader.alignment:
                raise UserError(f"{path}: the tensor {tensor.name} is not aligned; is it damaged?")
        if self.metadata("split.count", 0) not in (0, 1):
            raise UserError(
                f"{path}: one part of a split GGUF file; join the parts with llama.cpp's"
                " `llama-gguf-split --merge`"
            )
        self._architecture = self.metadata("general.architecture")
        if self._architecture not in [*ARCHITECTURES]:
            raise UserError(
                f"{path}: the architecture {self._architecture!r:.80} is not supported; supported"
                f" are {', '.join(ARCHITECTURES)}"
            )

    def metadata(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        with parsing(f"{self.path}: the metadata {key} is malformed"):
            return default if field is None else field.contents()

    @cached_property
    def config(self) -> LlamaConfig:
        """The model's shape, from the metadata.

        Raises UserError for a missing key and for rope scaling that is not implemented.
        """
        if _EMBEDDING not in self._tensors:
            raise UserError(f"{self.path}: the tensor {_EMBEDDING} is missing")
        fields = {
            "model_type": self._model_type(),
            "vocab_size": int(self._tensors[_EMBEDDING].shape[-1]),
            "hidden_size": self._required("embedding_length"),
            "num_hidden_layers": self._required("block_count"),
            "num_attention_heads": self._required("attention.head_count"),
            "num_key_value_heads": self._optional("attention.head_count_kv"),
            "head_dim": self._optional("attention.key_length"),
            "intermediate_size": self._required("feed_forward_length"),
            "rope_theta": _shortest(self._optional("rope.freq_base")),
            "rms_norm_eps": _shortest(self._required("attention.layer_norm_rms_epsilon")),
            "tie_word_embeddings": _OUTPUT not in self._tensors,
            "max_position_embeddings": self._required("context_length"),
        }
        scaling = self._optional("rope.scaling.type", "none")
        if scaling != "none":
            factor = _shortest(self._optional("rope.scaling.factor"))
            fields["rope_scaling"] = {"rope_type": scaling, "factor": factor}
        fields["sliding_window"] = self._optional("attention.sliding_window")
        if self._architecture == "gemma3":
            fields |= self._gemma3_fields()
        try:
            config = LlamaConfig.from_huggingface(fields)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        if scaling == "none" and ROPE_FACTORS in self._tensors:
            config = self._with_llama3_scaling(config)
        return config

    def _model_type(self) -> Any:
        """Hugging Face's name of the architecture; llama.cpp has one for Llama and for Mistral."""
        has_window = self._optional("attention.sliding_window") is not None
        names = {"llama": "mistral" if has_window else "llama", "gemma3": "gemma3_text"}
        return names.get(self._architecture, self._architecture)

    def _gemma3_fields(self) -> dict[str, Any]:
        """Fields of Gemma 3 alone, with llama.cpp's constants where the file has none."""
        pattern = self._optional("attention.sliding_window_pattern", 6)
        layers = {"sliding_window_pattern": pattern}
        if isinstance(pattern, list):
            layers = {"layer_types": [LOCAL if is_local else GLOBAL for is_local in pattern]}
        scalar = self._optional("attention.key_length")
        if self._required("block_count") == GEMMA3_27B_LAYERS:
            sizes = [self._required(x) for x in ("embedding_length", "attention.head_count")]
            with parsing(f"{self.path}: the sizes {sizes} are malformed"):
                scalar = sizes[0] // sizes[1]
        return layers | {
            "rope_local_base_freq": _shortest(self._optional("rope.freq_base_swa", 10_000.0)),
            "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": _shortest(self._optional("attn_logit_softcapping")),
            "final_logit_softcapping": _shortest(self._optional("final_logit_softcapping")),
        }

    def tensors(self) -> TensorSource:
        """The weights under Hugging Face's names, dequantised to float32 as they are read."""
        config = self.config
        # Large for many layers: those that the file has no tensors for need no names.
        num_layers = min(config.num_layers, len(self._tensors))
        table = gguf.get_tensor_name_map(ARCHITECTURES[self._architecture], num_layers)
        wanted = [name for leaf in leaves(config) for name in leaf.names]
        stored = {name: table.get_name(name, (".weight", ".bias")) or name for name in wanted}
        # Tensors that the model does not have keep their names, for the error message.
        known = {*stored.values(), ROPE_FACTORS}
        stored |= {name: name for name in self._tensors if name not in known}
        permuted = self._architecture in NEIGHBOURS_ROTATE
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads} if permuted else {}

        def read(name: str) -> np.ndarray:
            values = self._dequantise(self._tensors[stored[name]])
            if config.zero_centered_norms and name.endswith("norm.weight"):
                # llama.cpp adds the 1 that the model adds to its weights.
                return values - np.float32(1)
            count = next((heads[projection] for projection in heads if projection in name), None)
            return values if count is None else _undo_permutation(values, count)

        # GGUF lists a tensor's axes fastest first.
        shapes = {
            name: tuple(int(size) for size in reversed(self._tensors[key].shape))
            for name, key in stored.items()
            if key in self._tensors
        }
        return TensorSource(str(self.path), shapes, read)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer and chat template in the metadata.

        Raises UserError for a vocabulary whose kind is unknown or not stated.
        """
        texts = self.metadata("tokenizer.ggml.tokens")
        if not isinstance(texts, list) or not texts:
            raise UserError(
                f"{self.path}: no vocabulary in the file; name a tokenizer with"
                " model.tokenizer=PATH"
            )
        bos, *ends = [
            self._token_id(f"{name}_token_id", len(texts)) for name in ("bos", "eos", "eot", "eom")
        ]
        with parsing(f"{self.path}: the vocabulary is malformed"):
            return Tokenizer(
                self._vocabulary(texts),
                bos_token=None if bos is None else texts[bos],
                eos_token=None if ends[0] is None else texts[ends[0]],
                chat_template=self.metadata("tokenizer.chat_template"),
                eos_ids=[index for index in ends if index is not None],
                origin=str(self.path),
            )

    def _token_id(self, name: str, count: int) -> int | None:
        index = self.metadata(f"tokenizer.ggml.{name}")
        if index is not None and not (isinstance(index, int) and 0 <= index < count):
            raise UserError(
                f"{self.path}: tokenizer.ggml.{name} is {index!r:.80}, not an id below {count}"
            )
        return index

    def _vocabulary(self, texts: list[str]) -> tokenizers.Tokenizer:
        scores = self.metadata("tokenizer.ggml.scores") or [0.0] * len(texts)
        types = self.metadata("tokenizer.ggml.token_type") or [1] * len(texts)
        pieces = [Piece(*fields) for fields in zip(texts, scores, types, strict=True)]
        match self.metadata("tokenizer.ggml.model"):
            case "gpt2":
                lines = self.metadata("tokenizer.ggml.merges") or []
                merges = [(left, right) for left, _, right in (x.partition(" ") for x in lines)]
                kind = self.metadata("tokenizer.ggml.pre", "not stated")
                return byte_level_tokenizer(pieces, merges, kind, str(self.path))
            case "llama":
                prefix = self.metadata("tokenizer.ggml.add_space_prefix", True)
                return sentencepiece_tokenizer(pieces, add_dummy_prefix=bool(prefix))
            case other:
                raise UserError(
                    f"{self.path}: vocabularies of kind {other!r} (tokenizer.ggml.model) are not"
                    " supported, only 'gpt2' and 'llama'; name a tokenizer with"
                    " model.tokenizer=PATH"
                )

    def _optional(self, key: str, default: Any = None) -> Any:
        return self.metadata(f"{self._architecture}.{key}", default)

    def _required(self, key: str) -> Any:
        value = self._optional(key)
        if value is None:
            raise UserError(f"{self.path}: the metadata lacks {self._architecture}.{key}")
        return value

    def _dequantise(self, tensor: gguf.ReaderTensor) -> np.ndarray:
        problem = f"{self.path}: cannot dequantise {tensor.name} of type {tensor.tensor_type.name}"
        with parsing(problem):
            return gguf.dequantize(tensor.data, tensor.tensor_type)

    def _with_llama3_scaling(self, config: LlamaConfig) -> LlamaConfig:
        """`config` with Llama 3.1's rope scaling, whose factor the file does not state.

        llama.cpp stores one divisor per frequency instead. The factor is the largest divisor; the
        other settings are the same in all published models. The divisors that they give are
        compared with the stored ones. Raises UserError when they differ.
        """
        divisors = self._dequantise(self._tensors[ROPE_FACTORS]).ravel()
        factor = _shortest(divisors.max(initial=1.0))
        scaled = dataclasses.replace(config, rope_scaling=Llama3RopeScaling(factor=factor))
        wanted = inverse_frequencies(config) / inverse_frequencies(scaled)
        if divisors.shape != wanted.shape or not np.allclose(divisors, wanted, rtol=1e-4):
            raise UserError(
                f"{self.path}: the rope frequency factors ({ROPE_FACTORS}) are not Llama 3.1's;"
                " other rope scalings are not supported"
            )
        return scaled


def _undo_permutation(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of a q or k projection in Hugging Face's order.

    llama.cpp rotates neighbouring elements of a head, Hugging Face the i-th with the
    (i + H/2)-th; its converter interleaves the two halves of every head accordingly.
    """
    pairs = values.reshape(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _shortest(value: Any) -> Any:
    """A float32 as the decimal number it was written as: 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float | np.float32) else value
