"""The host loop that both training stages run: epochs of batches through `train_step`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from malt_jax.config import DpoConfig, SftConfig
from malt_jax.errors import UserError
from malt_jax.model.llama import Params
from malt_jax.sharding.rules import device_put
from malt_jax.training.batches import BATCH_AXES, Batches, Example, within_limit
from malt_jax.training.optimizer import epochs_for
from malt_jax.training.policy import Policy
from malt_jax.training.step import (
    Metrics,
    Objective,
    TrainState,
    init_state,
    state_axes,
    train_step,
)

StepMetrics = dict[str, float]
OnStep = Callable[[StepMetrics], None]


class Saver(Protocol):
    """Keeps the state of a training stage, so that it goes on there after an interruption."""

    def restore(self, state: TrainState) -> TrainState:
        """The state that was kept, laid out as `state`; `state` itself if there is none."""

    def is_due(self, step: int) -> bool:
        """Whether the state after so many updates is to be kept."""

    def save(self, step: int, state: TrainState) -> None:
        """Keeps it; what it raises ends the training."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training stage leaves behind."""

    trainable: Params
    history: list[StepMetrics]
    """Metrics of every update of this attempt, with "step" (from 1), "steps", "epoch" and
    "seconds_left"."""
    rows: int
    """Rows trained on."""
    dropped: int
    """Rows left out because they do not fit into the model's positions."""
    reference_logps: Float[np.ndarray, "rows N"] | None = None
    """DPO: the reference's log-probabilities of every row given, dropped ones NaN."""


def rows_that_fit(examples: Sequence[Example], policy: Policy, what: str) -> tuple[list[int], int]:
    """Indices of the rows that the model's positions can hold, and how many it cannot.

    Raises UserError when there are no rows, or none that fits.
    """
    if not examples:
        raise UserError(f"there are no {what} to train on")
    limit = policy.model.config.max_positions
    kept, dropped = within_limit(examples, limit)
    if not kept:
        shortest = min(example.positions for example in examples)
        raise UserError(
            f"none of the {len(examples)} {what} fits into the model's {limit} positions (the"
            f" shortest needs {shortest}): raise model.max_positions or lower sampling.max_tokens"
        )
    return kept, dropped


def fit(
    policy: Policy,
    objective: Objective,
    base: Params,
    start: Params,
    batches: Batches,
    config: SftConfig | DpoConfig,
    *,
    seed: int,
    on_step: OnStep | None,
    saver: Saver | None = None,
) -> tuple[Params, list[StepMetrics]]:
    """Trains from `start`, which is left as it is, for the configured number of epochs.

    Metrics reach `on_step` one update late: the host never waits for the update in progress, unless
    its state is saved. An attempt that goes on with a saved state ends in the same bits.
    """
    micro = config.micro_batch_size
    if micro is not None and config.batch_size % micro:
        raise UserError(f"micro_batch_size={micro} does not divide batch_size={config.batch_size}")
    epochs = config.epochs or epochs_for(len(batches.examples))
    per_epoch = batches.steps_per_epoch
    steps = epochs * per_epoch
    mesh = policy.model.mesh
    start = device_put(mesh, start, policy.axes)
    state = device_put(mesh, init_state(start, config), state_axes(policy, config))
    if saver is not None:
        state = saver.restore(state)
    first = int(state.step)
    key, total_steps = device_put(mesh, (jax.random.key(seed), np.int32(steps)), P())
    history: list[StepMetrics] = []
    began = time.monotonic()

    def record(metrics: Metrics) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        made = len(history) + 1
        done = first + made
        values |= {"step": done, "steps": steps, "epoch": done / per_epoch}
        values["seconds_left"] = (time.monotonic() - began) / made * (steps - done)
        history.append(values)
        if on_step is not None:
            on_step(values)

    pending: Metrics | None = None
    for step in range(first, steps):
        batch = device_put(mesh, batches.batch(step // per_epoch, step % per_epoch), BATCH_AXES)
        state, metrics = train_step(policy, objective, config, state, base, batch, total_steps, key)
        if pending is not None:
            record(pending)
        pending = metrics
        if saver is not None and saver.is_due(step + 1):
            record(metrics)
            pending = None
            saver.save(step + 1, state)
    if pending is not None:
        record(pending)
    return state.trainable, history
