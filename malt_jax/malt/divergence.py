"""Training that diverges: its error names the update, its questions and the way on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from malt_jax.errors import UserError
from malt_jax.malt.objectives import Objective
from malt_jax.runs.directory import RunDirectory
from malt_jax.training.batches import Batches

_LISTED = 8
"""Questions that a message names before it says how many more there are."""


class Diverged(UserError):
    """The training of a stage has no finite numbers any more."""


def require_finite(
    directory: RunDirectory,
    name: str,
    objective: Objective,
    batches: Batches,
    step: int,
    values: Mapping[str, float],
) -> None:
    """Raises Diverged when the loss or the norm of the gradient of an update is not finite.

    name:   of the training stage.
    step:   number of the update, from 1.
    values: its metrics. Others of them may be NaN: they are means over nothing.
    """
    bad = [key for key in ("loss", "grad_norm") if not math.isfinite(values[key])]
    if not bad:
        return
    figures = " and ".join(f"{key} is {values[key]}" for key in bad)
    role, section = name.split("/")[-2:] if "/" in name else ("", objective.name)
    rate = f"{directory.config.section_name(role, section)}.learning_rate"
    now = objective.options.learning_rate
    raise Diverged(
        f"{name}: {figures} in update {step}, on rows of {_questions(batches, step)}: the training"
        f" has diverged, and the last saved state stays in {directory.path / name}. This run would"
        " come to the same update again. Train a new one on the same trees with a lower"
        f" {rate} (here {now:g}): the same command with --run-dir NEW --trees {directory.path}"
        f" {rate}={now / 10:g}"
    )


def _questions(batches: Batches, step: int) -> str:
    """The questions of an update's rows and of its anchors, by their ids."""
    asked = set()
    for source in (batches, batches.anchors):
        if source is not None:
            rows = source.at(step - 1).rows
            asked |= {source.examples[row].question for row in rows if row >= 0}
    known = sorted(question for question in asked if question is not None)
    more = [f"{len(known) - _LISTED} more"] * (len(known) > _LISTED)
    shown = ", ".join([*map(str, known[:_LISTED]), *more])
    return f"the training questions {shown}" if known else "unknown questions"
