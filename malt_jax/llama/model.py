"""The Llama decoder in Flax: one function for prefill, decoding, log-probabilities and training."""

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
from malt_jax.llama.attention import Segment, attend
from malt_jax.llama.config import LlamaConfig
from malt_jax.llama.levels import Level, level_axes
from malt_jax.llama.lora import Linear, activation_axes, parameter
from malt_jax.llama.rope import rotate, rotation
from malt_jax.pods.sharding import constrain, gathered, place, shardings

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
    """Grouped-query attention of a level to itself and to its ancestors."""

    config: LlamaConfig
    lora: LoraConfig | None
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*N T D"],
        cos: Float[Array, "*N T E/2"],
        sin: Float[Array, "*N T E/2"],
        ancestors: Sequence[Segment],
    ) -> tuple[Float[Array, "*N T D"], tuple[Array, Array]]:
        config = self.config
        kv_heads, group, width = config.num_kv_heads, config.queries_per_kv_head, config.head_dim

        def project(name: str, heads: int, axis: str) -> Float[Array, "*N T H E"]:
            y = Linear(
                heads * width,
                (axis, "embed"),
                self.dtype,
                use_bias=config.attention_bias,
                lora=self.lora,
                mesh=self.mesh,
                name=name,
            )(x)
            return y.reshape(*y.shape[:-1], heads, width)

        queries = rotate(project("q", config.num_heads, "heads"), cos, sin)
        keys = rotate(project("k", kv_heads, "kv_heads"), cos, sin)
        values = project("v", kv_heads, "kv_heads")
        keys, values = jnp.moveaxis(keys, -3, -1), jnp.moveaxis(values, -3, -2)
        grouped = queries.reshape(*queries.shape[:-2], kv_heads, group, width)
        mixed = attend(grouped, keys, values, ancestors)
        mixed = mixed.reshape(*mixed.shape[:-3], config.num_heads * width)
        output = Linear(
            config.d_model,
            ("embed", "heads"),
            self.dtype,
            lora=self.lora,
            mesh=self.mesh,
            name="o",
        )
        return output(mixed), (keys, values)


class MLP(nn.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    config: LlamaConfig
    lora: LoraConfig | None
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*N T D"]) -> Float[Array, "*N T D"]:
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
        x: Float[Array, "*N T D"],
        cached: Sequence[tuple[Array, Array]],
        lengths: Sequence[Int[Array, "*M"]],
        cos: Float[Array, "*N T E/2"],
        sin: Float[Array, "*N T E/2"],
    ) -> tuple[Float[Array, "*N T D"], tuple[Array, Array]]:
        ancestors = [
            Segment(keys, values, length)
            for (keys, values), length in zip(cached, lengths, strict=True)
        ]
        epsilon = self.config.norm_eps
        normed = RMSNorm(epsilon, self.dtype, name="attention_norm")(x)
        shape = (self.config, self.lora, self.dtype, self.mesh)
        mixed, kv = Attention(*shape, name="attention")(normed, cos, sin, ancestors)
        x = x + mixed
        normed = RMSNorm(epsilon, self.dtype, name="mlp_norm")(x)
        return x + MLP(*shape, name="mlp")(normed), kv


class Llama(nn.Module):
    """A decoder of the Llama family over one level of a reasoning tree.

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
        tokens: Int[Array, "*N T"],
        lengths: Int[Array, "*N"],
        ancestors: Sequence[Level] = (),
    ) -> tuple[Float[Array, "*N T D"], Level]:
        """Runs the tokens of one level given the levels above it.

        tokens:    padded segments of every node of this level.
        lengths:   valid tokens of each segment; stored in the returned level.
        ancestors: the levels above, outermost first; the leading axes of each are a prefix of this
                   level's. A node's positions go on where its ancestors' valid tokens end.

        Returns the final hidden states (normed, ready for `logits`) and the new level. Outputs at
        padding are finite and without meaning.
        """
        leading = tokens.shape[:-1]
        start = jnp.zeros(leading, jnp.int32)
        for level in ancestors:
            inner = (1,) * (len(leading) - len(level.leading))
            start = start + level.lengths.reshape(level.leading + inner)
        offsets = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, tokens.ndim - 1)
        positions = start[..., None] + offsets
        cos, sin = rotation(positions, self.config)

        table = gathered(self.mesh, self.embed(), _Table.axes)
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        x = constrain(self.mesh, x, activation_axes(x.ndim))
        cached = [(level.keys, level.values) for level in ancestors]
        x, (keys, values) = self.layers(x, cached, [a.lengths for a in ancestors], cos, sin)
        level = Level(keys, values, lengths)
        return self.norm(x), constrain(self.mesh, level, level_axes(len(leading)))

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits of hidden states returned by the model, float32.

        The first axis is the one that the batch is split along; the logits lie split along their
        vocabulary too.
        """
        kernel = self.embed() if self.config.tie_embeddings else self.head()
        kernel = gathered(self.mesh, kernel, _Table.axes)
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
        return self.logits(self(tokens, lengths)[0])


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


def forward(
    model: Llama,
    variables: Params,
    tokens: Int[Array, "*N T"],
    lengths: Int[Array, "*N"],
    ancestors: Sequence[Level] = (),
    *,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "*N T D"], Level]:
    """Final hidden states and the new cache level; see `Llama.__call__`.

    variables:   {"params": base, "adapter": adapter}, the latter if the model has LoRA.
    dropout_key: switches the adapter's dropout on.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    result: Any = model.apply(variables, tokens, lengths, tuple(ancestors), rngs=rngs)
    return result


def next_logits(
    model: Llama, variables: Params, hidden: Float[Array, "*B D"]
) -> Float[Array, "*B V"]:
    """Next-token logits of hidden states that `forward` returned, float32."""
    result: Any = model.apply(variables, hidden, method=Llama.logits)
    return result


def init_params(model: Llama, key: Array) -> Params:
    """Random base weights in the model's dtype, each made in its shards."""
    return _jit_init(model, "params")(place(model.mesh, key, P()))


def init_adapter(model: Llama, key: Array) -> Params:
    """A new adapter in float32 that leaves the model's outputs unchanged (B = 0), in its shards."""
    if model.lora is None:
        raise ValueError("the model has no LoRA configuration")
    # The base weights are never materialised: under jit, what is not returned is not computed.
    return _jit_init(model, "adapter")(place(model.mesh, key, P()))


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
