"""One training stage of one role, for any objective, as a part of a run that can be interrupted."""

from __future__ import annotations

import io
import logging
import math
from collections import deque
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from upath import UPath

from malt_jax.distributed.processes import is_coordinator, stop_requested
from malt_jax.errors import Stopped, UserError, require_no_machine_problem
from malt_jax.malt.divergence import require_finite
from malt_jax.malt.objectives import Objective
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.runs.checkpoints import StateStore, save_tree
from malt_jax.runs.directory import RunDirectory
from malt_jax.runs.metrics import LAST_UPDATES, Metrics
from malt_jax.runs.stage import Stage
from malt_jax.training.batches import Batches
from malt_jax.training.loop import reference_logps, start_state, total_updates, train
from malt_jax.training.policy import Policy
from malt_jax.training.step import Metrics as StepMetrics

logger = logging.getLogger(__name__)

_REFERENCE = "reference_logps.npy"


class Records(NamedTuple):
    """The files of a run."""

    directory: RunDirectory
    metrics: Metrics
    save_every: int
    """Updates between two saved training states."""


def train_stage(
    name: str,
    objective: Objective,
    policy: Policy,
    base: Params,
    start: Params,
    batches: Batches,
    records: Records,
) -> Params:
    """Trains a role from the weights `start` as one stage of the run.

    The state is saved every `save_every` updates and on SIGTERM; a later attempt goes on from it
    and ends in the same bits. Metrics are read one update late, so that the device is never idle.

    Raises Stopped, once the state is saved, after SIGTERM in any process, and UserError when the
    loss, the gradient or weights to be saved are not finite; the last saved state stays.
    """
    directory, metrics, save_every = records
    with directory.stage(name) as stage:
        if objective.needs_reference:
            batches = _with_reference(stage, policy, base, start, batches)
        states = StateStore(stage)
        state = states.restore(start_state(policy, objective, start))
        metrics.restart(name, after=states.latest_step)
        total = total_updates(objective.options, len(batches.examples))
        quiet = not is_coordinator()
        last: deque[dict[str, float]] = deque(maxlen=LAST_UPDATES)
        with Progress(name, total, "steps", start=states.latest_step, quiet=quiet) as progress:

            def log(step: int, on_device: StepMetrics) -> None:
                values = {key: float(value) for key, value in jax.device_get(on_device).items()}
                last.append(values)
                progress.update(done=step, loss=values["loss"])
                epoch = step / batches.steps_per_epoch
                metrics.log(name, step, values | {"steps": total, "epoch": epoch})
                require_finite(directory, name, objective, batches, step, values)

            pending = None
            updates = train(policy, objective, base, state, batches)
            for step, state, values in updates:
                if pending is not None:
                    log(*pending)
                pending = step, values
                stop = stop_requested()
                if stop or step % save_every == 0:
                    log(*pending)
                    pending = None
                    metrics.flush()
                    states.save(step, state)
                if stop:
                    raise Stopped
            if pending is not None:
                log(*pending)
        if last:
            _warn(name, objective, total, list(last))
        stage.require_held()
        save_tree(stage.path / "weights", state.trainable)
        states.clear()
    return state.trainable


def _warn(name: str, objective: Objective, total: int, last: list[dict[str, float]]) -> None:
    """Logs the signs that a stage has not trained as it should, from its last updates."""
    means = {key: _mean([values[key] for values in last]) for key in last[0]}
    for warning in objective.warnings(total, means):
        logger.warning("%s: %s", name, warning)


def _mean(values: list[float]) -> float:
    """The mean without the batches in which there was nothing to take a mean of."""
    return float(np.mean([value for value in values if not math.isnan(value)] or [math.nan]))


def _with_reference(
    stage: Stage, policy: Policy, base: Params, start: Params, batches: Batches
) -> Batches:
    """The batches with the log-probabilities of their completions under the policy `start`."""
    shape = (len(batches.examples), len(batches.examples[0].completions))
    if stage.has(_REFERENCE):
        logps = _from_npy(stage.path / _REFERENCE, shape)
    else:
        logps = reference_logps(policy, base, start, batches.examples, batches.batch_size)
        if bad := int(np.sum(~np.isfinite(logps).all(axis=1))):
            raise UserError(
                f"{stage.path}: the policy that training starts from gives {bad} of {len(logps)}"
                " rows log-probabilities that are not finite: lower the learning rate of the stage"
                " before it"
            )
        content = io.BytesIO()
        np.save(content, logps)
        stage.write(_REFERENCE, content.getvalue())
    return batches.with_reference(logps)


def _from_npy(file: UPath, shape: tuple[int, int]) -> Float[np.ndarray, "rows 2"]:
    try:
        array = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        require_no_machine_problem(error)
        raise _damaged(file, str(error)) from None
    if array.shape != shape or array.dtype != np.float32:
        raise _damaged(file, f"it holds {array.dtype}{list(array.shape)}, not float32{list(shape)}")
    return array


def _damaged(file: UPath, problem: str) -> UserError:
    return UserError(f"{file} is damaged: {problem}; delete it, and it is computed again")
