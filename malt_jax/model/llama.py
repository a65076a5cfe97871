"""The Llama decoder in Flax: one module for prefill, decoding, log-probabilities and training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from malt_jax.config import LoraConfig
from malt_jax.model.attention import Segment, attend
from malt_jax.model.config import LlamaConfig
from malt_jax.model.levels import Level, join_levels, level_axes, split_levels
from malt_jax.model.lora import Linear, activation_axes, parameter
from malt_jax.model.rope import Rotation, rotate, rotation
from malt_jax.sharding.rules import all_gather, constrain, device_put, shardings

Params = dict[str, Any]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        ones = nn.initializers.ones
        scale = parameter(self, "scale", ones, ("embed_norm",), x.shape[-1:], self.dtype)
        wide = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(variance + self.epsilon)).astype(x.dtype)
        return normed * jnp.broadcast_to(scale.astype(x.dtype), normed.shape)


class Attention(nn.Module):
    """Grouped-query attention of levels to themselves and to the levels above them."""

    config: LlamaConfig
    lora: LoraConfig | None
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B D"],
        rotations: Sequence[Rotation],
        ancestors: Sequence[Segment],
        lengths: Sequence[Int[Array, "*N"]],
    ) -> tuple[Float[Array, "*B D"], list[tuple[Array, Array]]]:
        config = self.config
        kv_heads, group, width = config.num_kv_heads, config.queries_per_kv_head, config.head_dim

        def project(name: str, heads: int, axis: str) -> list[Float[Array, "*N T H E"]]:
            y = Linear(
                heads * width,
                (axis, "embed"),
                self.dtype,
                use_bias=config.attention_bias,
                lora=self.lora,
                mesh=self.mesh,
                name=name,
            )(x)
            levels = split_levels(y, [cos.shape[:-1] for cos, _ in rotations])
            return [level.reshape(*level.shape[:-1], heads, width) for level in levels]

        projected = zip(
            project("q", config.num_heads, "heads"),
            project("k", kv_heads, "kv_heads"),
            project("v", kv_heads, "kv_heads"),
            strict=True,
        )
        above = list(ancestors)
        results, cached = [], []
        for (queries, keys, values), (cos, sin), valid in zip(
            projected, rotations, lengths, strict=True
        ):
            queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
            keys, values = jnp.moveaxis(keys, -3, -1), jnp.moveaxis(values, -3, -2)
            grouped = queries.reshape(*queries.shape[:-2], kv_heads, group, width)
            mixed = attend(grouped, keys, values, above)
            results.append(mixed.reshape(*mixed.shape[:-3], config.num_heads * width))
            cached.append((keys, values))
            above.append(Segment(keys, values, valid))
        output = Linear(
            config.d_model,
            ("embed", "heads"),
            self.dtype,
            lora=self.lora,
            mesh=self.mesh,
            name="o",
        )
        return output(join_levels(results)), cached


class MLP(nn.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    config: LlamaConfig
    lora: LoraConfig | None
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        def linear(name: str, features: int, axes: tuple[str, str]) -> Linear:
            return Linear(features, axes, self.dtype, lora=self.lora, mesh=self.mesh, name=name)

        gate = linear("gate", self.config.d_ff, ("mlp", "embed"))(x)
        up = linear("up", self.config.d_ff, ("mlp", "embed"))(x)
        return linear("down", self.config.d_model, ("embed", "mlp"))(nn.silu(gate) * up)


class Block(nn.Module):
    """One decoder layer, in the form that nn.scan wants: carry in, carry and output out."""

    config: LlamaConfig
    lora: LoraConfig | None
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*B D"],
        cached: Sequence[tuple[Array, Array]],
        cached_lengths: Sequence[Int[Array, "*M"]],
        rotations: Sequence[Rotation],
        lengths: Sequence[Int[Array, "*N"]],
    ) -> tuple[Float[Array, "*B D"], list[tuple[Array, Array]]]:
        ancestors = [
            Segment(keys, values, length)
            for (keys, values), length in zip(cached, cached_lengths, strict=True)
        ]
        epsilon = self.config.norm_eps
        normed = RMSNorm(epsilon, self.dtype, name="attention_norm")(x)
        shape = (self.config, self.lora, self.dtype, self.mesh)
        attention = Attention(*shape, name="attention")
        mixed, kv = attention(normed, rotations, ancestors, lengths)
        x = x + mixed
        normed = RMSNorm(epsilon, self.dtype, name="mlp_norm")(x)
        return x + MLP(*shape, name="mlp")(normed), kv


class Llama(nn.Module):
    """A decoder of the Llama family over levels of a reasoning tree.

    Variables: "params", the base model; "adapter", LoRA's matrices, when `lora` is set. Layers are
    stacked on a leading axis in both. All matrix products run in `dtype`; softmax, norms and logits
    in float32.
    """

    config: LlamaConfig
    lora: LoraConfig | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    unroll: int = 1
    """Layers unrolled in the scan; all of them decode faster on a CPU, at longer compile times."""
    mesh: Mesh | None = None
    """Devices that the model is split over; its inputs' questions or rows have to divide by
    `pods.sharding.batch_shards`. None: wherever its inputs are."""

    def setup(self) -> None:
        config = self.config
        shape = (config.vocab_size, config.d_model)
        self.embed = _Table("embedding", shape, self.dtype)
        if not config.tie_embeddings:
            self.head = _Table("kernel", shape, self.dtype)
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "adapter": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_layers,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.lora, self.dtype, self.mesh)
        self.norm = RMSNorm(config.norm_eps, self.dtype)

    def __call__(
        self,
        segments: Sequence[tuple[Int[Array, "*N T"], Int[Array, "*N"]]],
        ancestors: Sequence[Level] = (),
    ) -> tuple[list[Float[Array, "*N T D"]], list[Level]]:
        """Runs the tokens of levels that lie below one another, given the levels above them.

        segments:  tokens of every node of a level, padded, and how many of them are valid; the
                   outermost level first. Several levels need the same first axis; their tokens pass
                   through every layer together, which reads its weights once.
        ancestors: the levels above, outermost first; the leading axes of each are a prefix of those
                   below. A node's positions go on where its ancestors' valid tokens end.

        Returns, for each level, the final hidden states (normed, ready for `logits`) and its cache.
        Outputs at padding are finite and without meaning.
        """
        table = all_gather(self.mesh, self.embed(), _Table.axes)
        above = [level.lengths for level in ancestors]
        rotations, embedded = [], []
        for tokens, lengths in segments:
            rotations.append(rotation(_positions(tokens, above), self.config))
            x = jnp.take(table, tokens, axis=0).astype(self.dtype)
            embedded.append(constrain(self.mesh, x, activation_axes(x.ndim)))
            above.append(lengths)
        valid = [lengths for _, lengths in segments]
        cached = [(level.keys, level.values) for level in ancestors]
        x, written = self.layers(
            join_levels(embedded), cached, above[: len(ancestors)], rotations, valid
        )
        hidden = split_levels(self.norm(x), [tokens.shape for tokens, _ in segments])
        levels = [
            constrain(self.mesh, Level(*kv, lengths), level_axes(lengths.ndim))
            for kv, lengths in zip(written, valid, strict=True)
        ]
        return hidden, levels

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits of hidden states returned by the model, float32.

        The first axis is the one that the batch is split along; the logits lie split along their
        vocabulary too.
        """
        kernel = self.embed() if self.config.tie_embeddings else self.head()
        kernel = all_gather(self.mesh, kernel, _Table.axes)
        logits = jax.lax.dot_general(
            hidden,
            kernel.astype(self.dtype),
            (((hidden.ndim - 1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        # Whoever wants them whole must collect logits, not the far larger kernel.
        split = P("batch", *[None] * (hidden.ndim - 2), "vocab")
        return constrain(self.mesh, logits, split)

    def everything(self, tokens: Int[Array, "*N T"]) -> Float[Array, "*N T V"]:
        """Touches every parameter; the method that `init` runs."""
        lengths = jnp.full(tokens.shape[:-1], tokens.shape[-1], jnp.int32)
        (hidden,), _ = self([(tokens, lengths)])
        return self.logits(hidden)


class _Table(nn.Module):
    """A [V, D] matrix, read whole."""

    key: str
    shape: tuple[int, int]
    dtype: Any
    axes: ClassVar[P] = P("vocab", "embed")

    @nn.compact
    def __call__(self) -> Float[Array, "V D"]:
        initial = nn.initializers.normal(0.02)
        return parameter(self, self.key, initial, tuple(self.axes), self.shape, self.dtype)


def _positions(tokens: Int[Array, "*N T"], above: Sequence[Int[Array, "*M"]]) -> Int[Array, "*N T"]:
    """A node's positions go on where the valid tokens of its ancestors end."""
    leading = tokens.shape[:-1]
    start = jnp.zeros(leading, jnp.int32)
    for lengths in above:
        start = start + lengths.reshape(*lengths.shape, *[1] * (len(leading) - lengths.ndim))
    return start[..., None] + jax.lax.broadcasted_iota(jnp.int32, tokens.shape, tokens.ndim - 1)


def forward(
    model: Llama,
    variables: Params,
    tokens: Int[Array, "*N T"],
    lengths: Int[Array, "*N"],
    ancestors: Sequence[Level] = (),
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "*N T D"], Level]:
    """Final hidden states and the cache of one level; see `forward_levels`."""
    segments = [(tokens, lengths)]
    (hidden,), (level,) = forward_levels(
        model, variables, segments, ancestors, dropout_key=dropout_key
    )
    return hidden, level


def forward_levels(
    model: Llama,
    variables: Params,
    segments: Sequence[tuple[Int[Array, "*N T"], Int[Array, "*N"]]],
    ancestors: Sequence[Level] = (),
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[list[Float[Array, "*N T D"]], list[Level]]:
    """Final hidden states and caches of levels below one another; see `Llama.__call__`.

    variables:   {"params": base, "adapter": adapter}, the latter if the model has LoRA.
    dropout_key: switches the adapter's dropout on.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    result: Any = model.apply(variables, list(segments), tuple(ancestors), rngs=rngs)
    return result


def next_logits(
    model: Llama, variables: Params, hidden: Float[Array, "*B D"]
) -> Float[Array, "*B V"]:
    """Next-token logits of hidden states that `forward` returned, float32."""
    result: Any = model.apply(variables, hidden, method=Llama.logits)
    return result


def init_params(model: Llama, key: Array) -> Params:
    """Random base weights in the model's dtype, each made in its shards."""
    return _jit_init(model, "params")(device_put(model.mesh, key, P()))


def init_adapter(model: Llama, key: Array) -> Params:
    """A new adapter in float32 that leaves the model's outputs unchanged (B = 0), in its shards."""
    if model.lora is None:
        raise ValueError("the model has no LoRA configuration")
    # The base weights are never materialised: under jit, what is not returned is not computed.
    return _jit_init(model, "adapter")(device_put(model.mesh, key, P()))


@functools.lru_cache
def abstract_variables(model: Llama) -> Params:
    """Shapes, dtypes and logical axis names (boxed) of every variable, without any memory."""
    return jax.eval_shape(lambda: _boxed_init(model, jax.random.key(0)))


@functools.lru_cache
def logical_axes(model: Llama) -> Params:
    """The logical axes of every variable, each as a PartitionSpec of names."""
    axes: Params = nn.get_partition_spec(abstract_variables(model))
    return axes


def _boxed_init(model: Llama, key: Array) -> Params:
    tokens = jnp.zeros((1, 1), jnp.int32)
    # One row cannot be split.
    model = model.clone(mesh=None)
    return dict(model.init({"params": key}, tokens, method=Llama.everything))


def _jit_init(model: Llama, collection: str) -> Any:
    def init(key: Array) -> Params:
        variables: Params = nn.unbox(_boxed_init(model, key))[collection]
        return variables

    if model.mesh is None:
        return jax.jit(init)
    return jax.jit(init, out_shardings=shardings(model.mesh, logical_axes(model)[collection]))
