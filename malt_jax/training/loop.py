"""The training loop: a generator of updates. Its caller logs, saves and stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from malt_jax.config import SftConfig
from malt_jax.errors import UserError
from malt_jax.model.llama import Params, variable_specs
from malt_jax.sharding.calls import Call
from malt_jax.sharding.rules import abstract, array_specs, device_put, to_host
from malt_jax.training.batches import BATCH_AXES, Batch, Batches, Example
from malt_jax.training.optimizer import epochs_for
from malt_jax.training.policy import Policy
from malt_jax.training.step import (
    Metrics,
    Objective,
    StageInputs,
    TrainState,
    batch_gradient,
    completion_logps,
    init_state,
    state_spec,
    train_step,
    with_reference_point,
)


def start_state(policy: Policy, objective: Objective, start: Params) -> TrainState:
    """A state at step 0 on the policy's mesh, with a copy of the weights `start`."""
    mesh = policy.model.mesh
    start = device_put(mesh, start, policy.spec)
    state = init_state(start, objective.options)
    return device_put(mesh, state, state_spec(policy, objective.options))


def total_updates(options: SftConfig, rows: int) -> int:
    """The number of updates of a whole training stage on `rows` examples."""
    return (options.epochs or epochs_for(rows)) * -(-rows // options.batch_size)


def train(
    policy: Policy,
    objective: Objective,
    base: Params,
    state: TrainState,
    batches: Batches,
) -> Iterator[tuple[int, TrainState, Metrics]]:
    """Updates from `state` to the end of the stage.

    base:  the frozen weights, unchanged.
    state: where training begins or goes on; donated.
    batches: their seed also decides dropout. Their anchors join the updates in turn.

    Yields the number of updates made, the state after them and the metrics of the last one. The
    metrics are on the device: who reads those of the previous update keeps the device busy. The
    next iteration donates the state. Training that goes on from a state ends in the same bits.
    """
    mesh = policy.model.mesh
    steps = total_updates(objective.options, len(batches.examples))
    inputs = StageInputs(np.int32(steps), jax.random.key(batches.seed))  # type: ignore[arg-type]
    stage, anchor = device_put(mesh, inputs, P()), objective.anchor
    for step in range(int(state.step), steps):
        others = None
        if anchor is not None and batches.anchors is not None:
            batch = device_put(mesh, batches.anchors.at(step), BATCH_AXES)
            others = batch_gradient(policy, anchor, state.trainable, base, batch, state.step, stage)
        batch = device_put(mesh, batches.at(step), BATCH_AXES)
        if objective.needs_reference_point:
            batch = with_reference_point(policy, base, state.trainable, batch)
        state, metrics = train_step(policy, objective, state, base, batch, stage, others)
        yield step + 1, state, metrics


def reference_logps(
    policy: Policy, base: Params, reference: Params, examples: Sequence[Example], batch_size: int
) -> Float[np.ndarray, "rows completions"]:
    """Log-probability of every completion of every example under a frozen policy, in nats."""
    batches = Batches(examples, batch_size, seed=0)
    mesh = policy.model.mesh
    reference = device_put(mesh, reference, policy.spec)
    logps = np.full((len(examples), len(examples[0].completions)), np.nan, np.float32)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(0, step)
        real = np.asarray(batch.rows) >= 0
        placed = device_put(mesh, batch, BATCH_AXES)
        values = to_host(completion_logps(policy, base, reference, placed))
        logps[batch.rows[real]] = values[real]
    return logps


def training_calls(
    policy: Policy, objective: Objective, batch: Batch, rows: int, anchors: Batch | None = None
) -> Iterator[Call]:
    """The compiled programs of `reference_logps`, if the objective has a reference, and of `train`.

    batch: the shape that all batches are taken to have.
    rows:  the number of examples.
    anchors: the shape of the batches that join the updates.
    """
    mesh, options = policy.model.mesh, objective.options
    base, trainable = abstract(mesh, variable_specs(policy.model)["params"]), policy.like()
    batch = abstract(mesh, array_specs(batch, BATCH_AXES))
    updates = total_updates(options, rows)
    if batch.reference_logps is not None:
        arguments = (policy, base, trainable, batch.replace(reference_logps=None))
        steps = -(-rows // options.batch_size)
        yield Call("reference", completion_logps, arguments, steps, tokens=batch.tokens)
    state = abstract(mesh, state_spec(policy, options))
    if objective.needs_reference_point:
        arguments = (policy, base, trainable, batch)
        shapes = jax.eval_shape(partial(with_reference_point, policy), *arguments[1:])
        batch = abstract(mesh, array_specs(shapes, BATCH_AXES))
        yield Call(
            "reference-point",
            with_reference_point,
            arguments,
            updates,
            tokens=batch.tokens,
            resident=(trainable, state.optimizer),
        )
    scalars = jax.eval_shape(lambda: StageInputs(jnp.int32(0), jax.random.key(0)))
    stage, others = abstract(mesh, array_specs(scalars, P())), None
    if objective.anchor is not None and anchors is not None:
        anchors = abstract(mesh, array_specs(anchors, BATCH_AXES))
        inputs = (trainable, base, anchors, state.step, stage)
        yield Call(
            "anchor",
            batch_gradient,
            (policy, objective.anchor, *inputs),
            updates,
            tokens=anchors.tokens,
            resident=(trainable, state.optimizer),
        )
        shapes = jax.eval_shape(partial(batch_gradient, policy, objective.anchor), *inputs)
        others = abstract(mesh, array_specs(shapes, (policy.spec, P())))
    yield Call(
        "update",
        train_step,
        (policy, objective, state, base, batch, stage, others),
        updates,
        tokens=batch.tokens,
        resident=trainable,  # the weights that training starts from
    )


def rows_that_fit(
    examples: Sequence[Example], max_positions: int, what: str
) -> tuple[list[Example], int]:
    """The examples that the model's positions can hold, and the number of the others.

    Raises UserError when there are no examples, or none that fits.
    """
    if not examples:
        raise UserError(f"there are no {what} to train on")
    kept = [example for example in examples if example.positions <= max_positions]
    if not kept:
        shortest = min(example.positions for example in examples)
        raise UserError(
            f"none of the {len(examples)} {what} fits into the model's {max_positions} positions"
            f" (the shortest needs {shortest}): raise model.max_positions or lower"
            " sampling.max_tokens"
        )
    return kept, len(examples) - len(kept)
