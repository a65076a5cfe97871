"""One update of a role's weights, as a pure function of state, batch and key."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from malt_jax.config import SftConfig
from malt_jax.model.llama import Params
from malt_jax.sharding.rules import array_specs, constrain
from malt_jax.training.batches import Batch
from malt_jax.training.losses import TokenScores
from malt_jax.training.optimizer import learning_rate, optimizer
from malt_jax.training.policy import Policy

Metrics = dict[str, Float[Array, ""]]


class TrainState(flax.struct.PyTreeNode):
    """Everything that an update changes."""

    step: Int[Array, ""]
    """Updates made so far."""
    trainable: Params
    optimizer: optax.OptState


def init_state(trainable: Params, config: SftConfig) -> TrainState:
    """A state at step 0 with a copy of `trainable`, because steps donate their state."""
    trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer(config).init(trainable))


def state_spec(policy: Policy, config: SftConfig) -> TrainState:
    """The ArraySpecs of a state: Adam's moments have the logical axes of their weights."""
    shapes = jax.eval_shape(partial(init_state, config=config), policy.like())
    axes: Any = optax.tree.map_params(
        optimizer(config),
        lambda _, spec: spec.axes,
        shapes.optimizer,
        policy.spec,
        transform_non_params=lambda _: P(),
    )
    return array_specs(shapes, TrainState(P(), policy.spec, axes))  # type: ignore[arg-type]


class Objective(Protocol):
    """A loss of token scores, in a form that adds up over micro-batches: sums and a divisor.

    Objectives are frozen dataclasses: as static arguments they select the compiled program.
    """

    dropout: ClassVar[bool]
    """Whether LoRA's dropout acts in training."""

    @property
    def options(self) -> SftConfig:
        """Batch size, learning rate and the optimizer's options."""

    def count(self, batch: Batch) -> Float[Array, ""]:
        """Size of a batch in the unit that the loss is a mean over."""

    def sums(self, scores: TokenScores, batch: Batch) -> Metrics:
        """ "loss" and other metrics, summed over that unit."""


def sum_logps(scores: TokenScores, batch: Batch) -> Float[Array, "B n"]:
    """Log-probability of each completion: the sum over its tokens."""
    return jnp.sum(jnp.where(completion_mask(batch), scores.logps, 0.0), axis=-1)


def completion_mask(batch: Batch) -> Array:
    """Mask [B, n, T] of completion tokens, by length; padding rows have length 0."""
    shape = batch.targets.shape
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1) < batch.lengths[..., None]


@partial(jax.jit, static_argnames=("policy", "objective"), donate_argnames=("state",))
def train_step(
    policy: Policy,
    objective: Objective,
    state: TrainState,
    base: Params,
    batch: Batch,
    total_steps: Int[Array, ""],
    key: Array,
) -> tuple[TrainState, Metrics]:
    """One AdamW update with the batch's mean gradient.

    Gradient accumulation: the batch is cut into micro-batches of `micro_batch_size` rows, whose
    gradients are added with their weights in the whole batch. `total_steps` only sets the learning
    rate, and `key` is folded with the step, so one compiled program serves every role and stage of
    the same shapes.

    Donates `state`. Returns the new state and the metrics of the batch before the update, with
    "grad_norm" (before clipping) and "learning_rate".
    """
    mesh, config = policy.model.mesh, objective.options
    rows = batch.weights.shape[0]
    micro = config.micro_batch_size or rows
    pieces = jax.tree.map(
        lambda x: x.reshape(rows // micro, micro, *x.shape[1:]), batch.replace(prefix=None)
    )
    pieces = constrain(mesh, pieces, P(None, "batch"))
    keys = jax.random.split(jax.random.fold_in(key, state.step), rows // micro)
    count = objective.count(batch)

    def loss_of(trainable: Params, piece: Batch, key: Array) -> tuple[Array, Metrics]:
        piece = piece.replace(prefix=batch.prefix)
        scores = policy.score(base, trainable, piece, key if objective.dropout else None)
        sums = objective.sums(scores, piece)
        return sums["loss"] / count, sums

    def add_piece(
        total: tuple[Params, Metrics], piece: tuple[Batch, Array]
    ) -> tuple[tuple[Params, Metrics], None]:
        added = jax.tree.map(jnp.add, total, gradient(state.trainable, *piece))
        return constrain(mesh, added, (policy.spec, P())), None

    gradient = jax.grad(loss_of, has_aux=True)
    first = jax.tree.map(lambda x: x[0], (pieces, keys))
    shapes = jax.eval_shape(gradient, state.trainable, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (grads, sums), _ = jax.lax.scan(add_piece, zeros, (pieces, keys))

    updates, optimizer_state = optimizer(config).update(grads, state.optimizer, state.trainable)
    rate = learning_rate(state.step, total_steps, config)
    trainable = jax.tree.map(lambda x, u: x - rate * u, state.trainable, updates)
    metrics = {name: value / count for name, value in sums.items()}
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": rate}
    state = TrainState(state.step + 1, trainable, optimizer_state)
    return constrain(mesh, state, state_spec(policy, config)), constrain(mesh, metrics, P())


@partial(jax.jit, static_argnames=("policy",))
def completion_logps(
    policy: Policy, base: Params, trainable: Params, batch: Batch
) -> Float[Array, "B n"]:
    """Log-probability of each completion, without dropout."""
    return sum_logps(policy.score(base, trainable, batch), batch)
