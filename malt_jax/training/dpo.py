"""Direct preference optimisation of one role, from and against its SFT policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from malt_jax.config import DpoConfig
from malt_jax.model.llama import Params
from malt_jax.sharding.rules import device_put, to_host
from malt_jax.training.batches import BATCH_AXES, Batches, Example
from malt_jax.training.loop import OnStep, Saver, Trained, fit, rows_that_fit
from malt_jax.training.policy import Policy
from malt_jax.training.step import DpoObjective, completion_logps


def reference_logps(
    policy: Policy,
    base: Params,
    reference: Params,
    examples: Sequence[Example],
    batch_size: int,
) -> Float[np.ndarray, "rows N"]:
    """Log-probability of every completion of every example under a frozen policy, in nats.

    Examples that do not fit into the model's positions get NaN.
    """
    kept, _ = rows_that_fit(examples, policy, "preference pairs")
    batches = Batches([examples[i] for i in kept], batch_size, seed=0)
    mesh = policy.model.mesh
    reference = device_put(mesh, reference, policy.axes)
    logps = np.full((len(examples), len(examples[0].completions)), np.nan, np.float32)
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(0, step)
        real = np.asarray(batch.rows) >= 0
        placed = device_put(mesh, batch, BATCH_AXES)
        values = to_host(completion_logps(policy, base, reference, placed))
        logps[np.asarray(kept)[batch.rows[real]]] = values[real]
    return logps


def train_dpo(
    policy: Policy,
    base: Params,
    start: Params,
    pairs: Sequence[Example],
    config: DpoConfig,
    *,
    seed: int,
    reference: Float[np.ndarray, "rows 2"] | None = None,
    on_step: OnStep | None = None,
    saver: Saver | None = None,
) -> Trained:
    """Trains a role from its SFT policy `start`, which is also the frozen reference (paper, 4.3).

    pairs:     rows with two completions each, (chosen, rejected).
    reference: what `reference_logps` gave for these pairs under `start`; None computes it.
    seed:      decides the order of the pairs.
    on_step:   called with the metrics of every update; the first loss is log 2 (unless
               `nll_weight` adds to it), since policy and reference are still the same.
    saver:     keeps the state now and then, and gives it back to a later attempt.

    Neither `base` nor `start` is changed. Raises UserError when no pair can be trained on.
    """
    kept, dropped = rows_that_fit(pairs, policy, "preference pairs")
    if reference is None:
        reference = reference_logps(policy, base, start, pairs, config.batch_size)
    batches = Batches(
        [pairs[i] for i in kept], config.batch_size, seed, reference_logps=reference[kept]
    )
    objective = DpoObjective(config.beta, config.label_smoothing, config.nll_weight)
    trainable, history = fit(
        policy, objective, base, start, batches, config, seed=seed, on_step=on_step, saver=saver
    )
    return Trained(trainable, history, len(kept), dropped, reference)
