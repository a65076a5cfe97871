"""One update of a role's weights, as a pure function of state, batch and key."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from malt_jax.config import SftConfig
from malt_jax.model.llama import Params
from malt_jax.sharding.rules import array_specs, constrain
from malt_jax.training.batches import BATCH_AXES, Batch
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


class StageInputs(NamedTuple):
    """Inputs that are the same in all updates of a stage."""

    total_steps: Int[Array, ""]
    """Updates of the whole stage; only the learning rate depends on them."""
    key: Array
    """Of dropout; every update folds its step into it."""


Gradient = tuple[Params, Metrics]
"""The mean gradient of a batch and its metrics."""


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
    needs_reference_point: ClassVar[bool]
    """Whether a batch passes through `with_reference_point` before its update."""

    @property
    def anchor(self) -> Objective | None:
        """A loss of other rows, whose gradient is added in every update."""

    @property
    def options(self) -> SftConfig:
        """Batch size, learning rate and the optimizer's options."""

    def count(self, batch: Batch) -> Float[Array, ""]:
        """Size of a batch in the unit that the loss is a mean over."""

    def sums(self, scores: TokenScores, batch: Batch) -> Metrics:
        """ "loss" and other metrics, summed over that unit."""

    def means(self, sums: Metrics, count: Float[Array, ""]) -> Metrics:
        """The metrics of a batch from its sums and its size. A mean over nothing is NaN."""


def means(sums: Metrics, count: Float[Array, ""]) -> Metrics:
    """Every sum divided by the size of the batch."""
    return {name: value / count for name, value in sums.items()}


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
    stage: StageInputs,
    others: Gradient | None = None,
) -> tuple[TrainState, Metrics]:
    """One AdamW update with the batch's mean gradient, to which that of other rows is added.

    Gradient accumulation: the batch is cut into micro-batches of `micro_batch_size` rows, whose
    gradients are added with their weights in the whole batch. Dropout masks depend on a row's place
    in the batch, so every size gives the same update, up to the rounding of sums. One compiled
    program serves every role and stage of the same shapes.

    others: of `batch_gradient`, with a "loss" that is added too.

    Donates `state`. Returns the new state and the metrics of the batch before the update, with
    "grad_norm" (before clipping) and "learning_rate".
    """
    mesh, config = policy.model.mesh, objective.options
    key = jax.random.fold_in(stage.key, state.step)
    grads, metrics = _mean_gradient(policy, objective, state.trainable, base, batch, key)
    if others is not None:
        grads = jax.tree.map(jnp.add, grads, others[0])
        metrics = others[1] | metrics | {"loss": metrics["loss"] + others[1]["loss"]}
    updates, optimizer_state = optimizer(config).update(grads, state.optimizer, state.trainable)
    rate = learning_rate(state.step, stage.total_steps, config)
    trainable = jax.tree.map(lambda x, u: x - rate * u, state.trainable, updates)
    metrics |= {"grad_norm": optax.tree.norm(grads), "learning_rate": rate}
    state = TrainState(state.step + 1, trainable, optimizer_state)
    return constrain(mesh, state, state_spec(policy, config)), constrain(mesh, metrics, P())


@partial(jax.jit, static_argnames=("policy", "objective"))
def batch_gradient(
    policy: Policy,
    objective: Objective,
    trainable: Params,
    base: Params,
    batch: Batch,
    step: Int[Array, ""],
    stage: StageInputs,
) -> Gradient:
    """The gradient of rows that join the update number `step` of other rows.

    As a program of its own, because the shapes of both kinds of rows would multiply in one.
    """
    key = jax.random.fold_in(stage.key, step)
    found = _mean_gradient(policy, objective, trainable, base, batch, key)
    return constrain(policy.model.mesh, found, (policy.spec, P()))


def _mean_gradient(
    policy: Policy,
    objective: Objective,
    trainable: Params,
    base: Params,
    batch: Batch,
    key: Array,
) -> Gradient:
    """The gradient of a batch's loss, and its metrics, by gradient accumulation."""
    mesh = policy.model.mesh
    rows = batch.weights.shape[0]
    micro = objective.options.micro_batch_size or rows
    pieces = jax.tree.map(
        lambda x: x.reshape(rows // micro, micro, *x.shape[1:]), batch.replace(prefix=None)
    )
    pieces = constrain(mesh, pieces, P(None, "batch"))
    starts = jnp.arange(0, rows, micro, dtype=jnp.int32)
    # Split once, so that whole batches keep the masks that they have always had.
    dropout_key = jax.random.split(key, 1)[0] if objective.dropout else None
    count = objective.count(batch)

    def loss_of(trainable: Params, piece: Batch, first_row: Array) -> tuple[Array, Metrics]:
        piece = piece.replace(prefix=batch.prefix)
        scores = policy.score(base, trainable, piece, dropout_key, first_row)
        sums = objective.sums(scores, piece)
        return sums["loss"] / count, sums

    def add_piece(
        total: tuple[Params, Metrics], piece: tuple[Batch, Array]
    ) -> tuple[tuple[Params, Metrics], None]:
        added = jax.tree.map(jnp.add, total, gradient(trainable, *piece))
        return constrain(mesh, added, (policy.spec, P())), None

    gradient = jax.grad(loss_of, has_aux=True)
    first = jax.tree.map(lambda x: x[0], (pieces, starts))
    shapes = jax.eval_shape(gradient, trainable, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (grads, sums), _ = jax.lax.scan(add_piece, zeros, (pieces, starts))
    return grads, objective.means(sums, count)


@partial(jax.jit, static_argnames=("policy",))
def completion_logps(
    policy: Policy, base: Params, trainable: Params, batch: Batch
) -> Float[Array, "B n"]:
    """Log-probability of each completion, without dropout."""
    return sum_logps(policy.score(base, trainable, batch), batch)


@partial(jax.jit, static_argnames=("policy",))
def with_reference_point(policy: Policy, base: Params, trainable: Params, batch: Batch) -> Batch:
    """KTO's batch as its update takes it: the rows' own completions and the reference point.

    batch: completions [B, 2], of which the second ones answer another prompt, and their
        log-probabilities under the reference.

    The reference point is max(0, mean over rows of log(policy / reference) of the second
    completions), an estimate of KL(policy || reference) in nats (arXiv 2402.01306, section 4.1, and
    TRL). It carries no gradient, and it is that of the whole batch for any `micro_batch_size`.
    """
    if batch.reference_logps is None:
        raise ValueError("KTO needs the reference's log-probabilities of the batch")
    other = batch.replace(completions=batch.completions[:, 1:], lengths=batch.lengths[:, 1:])
    ratios = sum_logps(policy.score(base, trainable, other), other) - batch.reference_logps[:, 1:]
    real = batch.rows >= 0
    mean = jnp.sum(jnp.where(real, ratios[:, 0], 0.0)) / jnp.sum(real.astype(jnp.float32))
    own = batch.replace(
        completions=batch.completions[:, :1],
        lengths=batch.lengths[:, :1],
        reference_logps=batch.reference_logps[:, :1],
        reference_point=jnp.broadcast_to(jnp.maximum(0.0, mean), real.shape),
    )
    return constrain(policy.model.mesh, own, BATCH_AXES)
