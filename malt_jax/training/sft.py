"""Supervised fine-tuning of one role on its correct completions."""

from __future__ import annotations

from collections.abc import Sequence

from malt_jax.config import SftConfig
from malt_jax.model.llama import Params
from malt_jax.training.batches import Batches, Example
from malt_jax.training.loop import OnStep, Saver, Trained, fit, rows_that_fit
from malt_jax.training.policy import Policy
from malt_jax.training.step import SftObjective


def train_sft(
    policy: Policy,
    base: Params,
    start: Params,
    examples: Sequence[Example],
    config: SftConfig,
    *,
    seed: int,
    on_step: OnStep | None = None,
    saver: Saver | None = None,
) -> Trained:
    """Trains a role from `start` to imitate its correct completions (paper, section 4.3).

    examples: rows with one completion each; the loss is on the completion tokens alone.
    seed:     decides the order of the rows and the dropout.
    on_step:  called with the metrics of every update.
    saver:    keeps the state now and then, and gives it back to a later attempt.

    Neither `base` nor `start` is changed. Raises UserError when no row can be trained on.
    """
    kept, dropped = rows_that_fit(examples, policy, "SFT rows")
    batches = Batches([examples[i] for i in kept], config.batch_size, seed)
    trainable, history = fit(
        policy,
        SftObjective(),
        base,
        start,
        batches,
        config,
        seed=seed,
        on_step=on_step,
        saver=saver,
    )
    return Trained(trainable, history, rows=len(kept), dropped=dropped)
