"""The decoder in Flax: one module for prefill, decoding, log-probabilities and training.

The axes of shapes, here and in the whole package:

    B  rows of a training batch         T  query time: tokens of a level
    Q  questions                        S  key time: tokens of a level above, or room for them
    V  vocabulary                       L  layers
    D  model width                      F  feed-forward width
    N  query heads                      H  head width, and half = H/2
    K  key-value heads                  R  LoRA rank
    G  query heads per kv head          in, out  of a linear layer

    *tree    the nodes of a level, (Q, n_1, ..., n_d); none at the root
    *above   the nodes of one of its ancestors, a prefix of *tree
    *tokens  the tokens of one level, (*tree, T), or of several as `join_levels` joins them
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from malt_jax.model.attention import Ancestor, attend
from malt_jax.model.config import Activation, Llama
from malt_jax.model.levels import Level, join_levels, level_spec, split_levels
from malt_jax.model.lora import Linear, activation_axes, parameter
from malt_jax.model.rope import Rotation, layer_frequencies, rotate, rotation
from malt_jax.sharding.rules import all_gather, array_specs, constrain, device_put, shardings

Params = dict[str, Any]
KeysAndValues = tuple[Float[Array, "... K H _"], Float[Array, "... K _ H"]]

_ACTIVATIONS: Mapping[Activation, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
}


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32."""

    model: Llama

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens width"]) -> Float[Array, "*tokens width"]:
        config = self.model.config
        initial = nn.initializers.zeros if config.zero_centered_norms else nn.initializers.ones
        scale = parameter(self, "scale", initial, ("embed_norm",), x.shape[-1:], self.model.dtype)
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(variance + config.norm_eps)
        if config.zero_centered_norms:
            factors = jnp.broadcast_to(1 + scale.astype(jnp.float32), normed.shape)
            return (normed * factors).astype(x.dtype)
        return normed.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), normed.shape)


class Attention(nn.Module):
    """Grouped-query attention of levels to themselves and to the levels above them."""

    model: Llama

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens D"],
        rotations: Sequence[Rotation],
        ancestors: Sequence[Ancestor],
        lengths: Sequence[Int[Array, "..."]],
        window: Int[Array, ""] | None = None,
        first_row: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "*tokens D"], list[KeysAndValues]]:
        config = self.model.config
        kv_heads, group, width = config.num_kv_heads, config.queries_per_kv_head, config.head_dim
        scale = (config.query_scalar or width) ** -0.5

        def project(name: str, heads: int, axis: str) -> list[Array]:
            axes, bias = (axis, "embed"), config.attention_bias
            y = Linear(self.model, heads * width, axes, bias, name=name)(x, first_row)
            levels = split_levels(y, [turn.cos.shape[:-1] for turn in rotations])
            split = [level.reshape(*level.shape[:-1], heads, width) for level in levels]
            if not config.qk_norm or name == "v":
                return split
            norm = RMSNorm(self.model, name=f"{name}_norm")
            return [norm(level) for level in split]

        projected = zip(
            project("q", config.num_heads, "heads"),
            project("k", kv_heads, "kv_heads"),
            project("v", kv_heads, "kv_heads"),
            strict=True,
        )
        above = list(ancestors)
        results, cached = [], []
        for (queries, keys, values), turn, valid in zip(projected, rotations, lengths, strict=True):
            queries, keys = rotate(queries, turn), rotate(keys, turn)
            keys, values = jnp.moveaxis(keys, -3, -1), jnp.moveaxis(values, -3, -2)
            grouped = queries.reshape(*queries.shape[:-2], kv_heads, group, width)
            cap = config.attention_softcap
            mixed = attend(grouped, keys, values, above, scale=scale, softcap=cap, window=window)
            results.append(mixed.reshape(*mixed.shape[:-3], config.num_heads * width))
            cached.append((keys, values))
            above.append(Ancestor(keys, values, valid))
        output = Linear(self.model, config.d_model, ("embed", "heads"), name="o")
        return output(join_levels(results), first_row), cached


class MLP(nn.Module):
    """Gated feed-forward: SwiGLU or GeGLU (arXiv 2002.05202), by the activation."""

    model: Llama

    @nn.compact
    def __call__(
        self, x: Float[Array, "*tokens D"], first_row: Int[Array, ""] | None = None
    ) -> Float[Array, "*tokens D"]:
        config = self.model.config
        gate = Linear(self.model, config.d_ff, ("mlp", "embed"), name="gate")(x, first_row)
        up = Linear(self.model, config.d_ff, ("mlp", "embed"), name="up")(x, first_row)
        down = Linear(self.model, config.d_model, ("embed", "mlp"), name="down")
        return down(_ACTIVATIONS[config.activation](gate) * up, first_row)


class LayerInputs(NamedTuple):
    """Values that differ between layers, over which the scan runs; None where they do not."""

    window: Int[Array, "*L"] | None = None
    """Latest tokens that a token sees, the own included."""
    rotation: Int[Array, "*L"] | None = None
    """Index into the kinds of `Rotation`."""


_ALIKE = LayerInputs()


class Block(nn.Module):
    """One decoder layer, in the form that nn.scan wants: carry in, carry and output out."""

    model: Llama

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens D"],
        cached: Sequence[KeysAndValues],
        cached_lengths: Sequence[Int[Array, "..."]],
        rotations: Sequence[Rotation],
        lengths: Sequence[Int[Array, "..."]],
        layer: LayerInputs = _ALIKE,
        first_row: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "*tokens D"], list[KeysAndValues]]:
        if layer.rotation is not None:
            rotations = jax.tree.map(lambda kinds: kinds[layer.rotation], list(rotations))
        ancestors = [
            Ancestor(keys, values, length)
            for (keys, values), length in zip(cached, cached_lengths, strict=True)
        ]
        normed = RMSNorm(self.model, name="attention_norm")(x)
        attention = Attention(self.model, name="attention")
        mixed, kv = attention(normed, rotations, ancestors, lengths, layer.window, first_row)
        x = x + self._post_norm("attention_post_norm", mixed)
        normed = RMSNorm(self.model, name="mlp_norm")(x)
        mixed = MLP(self.model, name="mlp")(normed, first_row)
        return x + self._post_norm("mlp_post_norm", mixed), kv

    def _post_norm(self, name: str, y: Float[Array, "*tokens D"]) -> Float[Array, "*tokens D"]:
        return RMSNorm(self.model, name=name)(y) if self.model.config.post_norms else y


class Decoder(nn.Module):
    """A decoder over levels of a reasoning tree.

    Variables: "params", the base model; "adapter", LoRA's matrices, if the model has an adapter.
    Layers are stacked on a leading axis in both.
    """

    model: Llama

    def setup(self) -> None:
        model = self.model
        self.embed = _Table(model, "embedding")
        if not model.config.tie_embeddings:
            self.head = _Table(model, "kernel")
        block = nn.remat(Block, prevent_cse=False) if model.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "adapter": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, 0, nn.broadcast),
            length=model.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(model)
        self.norm = RMSNorm(model)

    def __call__(
        self,
        segments: Sequence[tuple[Int[Array, "..."], Int[Array, "..."]]],
        ancestors: Sequence[Level] = (),
        first_row: Int[Array, ""] | None = None,
    ) -> tuple[list[Float[Array, "... D"]], list[Level]]:
        """See `forward_levels`."""
        model = self.model
        table = self.embed()
        above = [level.lengths for level in ancestors]
        frequencies, layers = self._layers()
        rotations, embedded = [], []
        for tokens, lengths in segments:
            rotations.append(rotation(_positions(tokens, above), frequencies))
            x = jnp.take(table, tokens, axis=0).astype(model.dtype)
            if model.config.scale_embeddings:
                x = x * jnp.asarray(model.config.d_model**0.5, model.dtype)
            embedded.append(constrain(model.mesh, x, activation_axes(x.ndim)))
            above.append(lengths)
        valid = [lengths for _, lengths in segments]
        cached = [(level.keys, level.values) for level in ancestors]
        x, written = self.layers(
            join_levels(embedded),
            cached,
            above[: len(ancestors)],
            rotations,
            valid,
            layers,
            first_row,
        )
        hidden = split_levels(self.norm(x), [tokens.shape for tokens, _ in segments])
        levels = []
        for kv, (tokens, lengths) in zip(written, segments, strict=True):
            spec = level_spec(model, lengths.shape, tokens.shape[-1])
            levels.append(constrain(model.mesh, Level(*kv, lengths), spec))
        return hidden, levels

    def _layers(self) -> tuple[Float[np.ndarray, "*kinds half"], LayerInputs]:
        """Rotary frequencies, of several kinds if the layers differ, and the layers' own values."""
        config = self.model.config
        frequencies, kinds = layer_frequencies(config)
        window = rotations = None
        if config.sliding_window is not None:
            everything = np.iinfo(np.int32).max
            windows = np.where(config.local_layers, config.sliding_window, everything)
            window = jnp.asarray(windows, jnp.int32)
        if len(frequencies) > 1:
            rotations = jnp.asarray(kinds, jnp.int32)
        else:
            frequencies = frequencies[0]
        return frequencies, LayerInputs(window, rotations)

    def logits(self, hidden: Float[Array, "*tokens D"]) -> Float[Array, "*tokens V"]:
        """See `next_logits`."""
        kernel = self.embed() if self.model.config.tie_embeddings else self.head()
        logits = jax.lax.dot_general(
            hidden,
            kernel.astype(self.model.dtype),
            (((hidden.ndim - 1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if (cap := self.model.config.logits_softcap) is not None:
            logits = cap * jnp.tanh(logits / cap)
        # A caller that needs all of them gathers logits, not the far larger kernel.
        split = P("batch", *[None] * (hidden.ndim - 2), "vocab")
        return constrain(self.model.mesh, logits, split)

    def everything(self, tokens: Int[Array, "*tree T"]) -> Float[Array, "*tree T V"]:
        """Touches every parameter; the method that `init` runs."""
        lengths = jnp.full(tokens.shape[:-1], tokens.shape[-1], jnp.int32)
        (hidden,), _ = self([(tokens, lengths)])
        return self.logits(hidden)


class _Table(nn.Module):
    """A [V, D] matrix, all-gathered along "fsdp"."""

    model: Llama
    key: str

    @nn.compact
    def __call__(self) -> Float[Array, "V D"]:
        initial, axes = nn.initializers.normal(0.02), ("vocab", "embed")
        shape = (self.model.config.vocab_size, self.model.config.d_model)
        table = parameter(self, self.key, initial, axes, shape, self.model.dtype)
        return all_gather(self.model.mesh, table, P(*axes))


def _positions(
    tokens: Int[Array, "*tree T"], above: Sequence[Int[Array, "..."]]
) -> Int[Array, "*tree T"]:
    """Positions of a node's tokens, which follow the valid tokens of its ancestors."""
    leading = tokens.shape[:-1]
    start = jnp.zeros(leading, jnp.int32)
    for lengths in above:
        start = start + lengths.reshape(*lengths.shape, *[1] * (len(leading) - lengths.ndim))
    return start[..., None] + jax.lax.broadcasted_iota(jnp.int32, tokens.shape, tokens.ndim - 1)


def forward(
    model: Llama,
    variables: Params,
    tokens: Int[Array, "*tree T"],
    lengths: Int[Array, "*tree"],
    ancestors: Sequence[Level] = (),
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "*tree T D"], Level]:
    """Final hidden states and the cache of one level; see `forward_levels`."""
    segments = [(tokens, lengths)]
    (hidden,), (level,) = forward_levels(
        model, variables, segments, ancestors, dropout_key=dropout_key
    )
    return hidden, level


def forward_levels(
    model: Llama,
    variables: Params,
    segments: Sequence[tuple[Int[Array, "..."], Int[Array, "..."]]],
    ancestors: Sequence[Level] = (),
    *,
    dropout_key: Key[Array, ""] | None = None,
    first_row: Int[Array, ""] | None = None,
) -> tuple[list[Float[Array, "... D"]], list[Level]]:
    """Runs the tokens of consecutive levels, given the levels above them.

    variables:   {"params": base, "adapter": adapter}, the latter if the model has an adapter.
    segments:    for each level, outermost first, the padded tokens of every node, [*tree, T], and
                 the number of valid ones, [*tree]. Several levels need the same first axis; their
                 tokens pass through every layer together, which reads its weights once.
    ancestors:   the levels above, outermost first; the node axes of each are a prefix of those
                 below. Positions of a node follow its ancestors' valid tokens.
    dropout_key: switches the adapter's dropout on.
    first_row:   place of the first row in the whole batch; only dropout depends on it.

    Returns, for each level, the final hidden states (normed, the input of `next_logits`),
    [*tree, T, D], and its cache. Outputs at padding are finite and without meaning.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    levels = list(segments), tuple(ancestors)
    result: Any = Decoder(model).apply(variables, *levels, first_row, rngs=rngs)
    return result


def next_logits(
    model: Llama, variables: Params, hidden: Float[Array, "*tokens D"]
) -> Float[Array, "*tokens V"]:
    """Next-token logits of hidden states that `forward` returned, float32.

    Split along the vocabulary and along the first axis, which has to be that of the batch.
    """
    result: Any = Decoder(model).apply(variables, hidden, method=Decoder.logits)
    return result


def init_params(model: Llama, key: Key[Array, ""]) -> Params:
    """Random base weights in the model's dtype, each made in its shards."""
    return _init(model, "params", key)


def init_adapter(model: Llama, key: Key[Array, ""]) -> Params:
    """A new adapter in float32 that leaves the model's outputs unchanged (B = 0), in its shards."""
    if model.lora is None:
        raise ValueError("the model has no LoRA configuration")
    return _init(model, "adapter", key)


@functools.lru_cache
def variable_specs(model: Llama) -> Params:
    """The ArraySpecs of {"params": base, "adapter": adapter}, the latter if the model has one."""
    boxed = jax.eval_shape(lambda: _boxed_init(model, jax.random.key(0)))
    specs: Params = array_specs(nn.unbox(boxed), nn.get_partition_spec(boxed))
    return specs


def _init(model: Llama, collection: str, key: Key[Array, ""]) -> Params:
    """One collection of variables; jit does not compute the other, which is not returned."""

    def init(key: Array) -> Params:
        variables: Params = nn.unbox(_boxed_init(model, key))[collection]
        return variables

    mesh = model.mesh
    split = None if mesh is None else shardings(mesh, variable_specs(model)[collection])
    return jax.jit(init, out_shardings=split)(device_put(mesh, key, P()))


def _boxed_init(model: Llama, key: Array) -> Params:
    """Variables with the names of their axes, as Flax boxes them."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    # A batch of one row cannot be split.
    decoder = Decoder(dataclasses.replace(model, mesh=None))
    return dict(decoder.init({"params": key}, tokens, method=Decoder.everything))
