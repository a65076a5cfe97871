"""The inputs of a run that no option holds: files and versions, which may change meanwhile."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.distributed.processes import broadcast
from malt_jax.errors import UserError
from malt_jax.files import parse_json_object
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.reuse import tree_inputs
from malt_jax.model.digest import weights_digest
from malt_jax.runs.agreement import questions_hash
from malt_jax.runs.directory import RunDirectory, versions
from malt_jax.tasks.base import Question

logger = logging.getLogger(__name__)

INPUTS_FILE = "inputs.json"


def run_inputs(
    experiment: Experiment, train: Sequence[Question], test: Sequence[Question]
) -> dict[str, str]:
    """Hashes of questions, prompts, weights and tokenizer, the weights' dtype, and the versions."""
    weights = experiment.base
    return {
        "training questions": questions_hash(train),
        "test questions": questions_hash(test),
        "prompts": tree_inputs(experiment, train)["prompts"],
        "weights": weights_digest(weights),
        "dtype": experiment.policy.model.dtype.name,
        "tokenizer": _tokenizer(experiment),
        **{f"version of {name}": version for name, version in versions().items()},
    }


def require_same_inputs(
    directory: RunDirectory, inputs: Mapping[str, str], *, accept: bool
) -> list[str]:
    """Records the inputs of a new run in `inputs.json`, and compares those of a resumed one.

    accept: changes are recorded, and the run goes on with them.

    Returns the changes that were accepted, now and before: "NAME: BEFORE -> AFTER".

    Raises UserError, in all processes, which names every change that is not accepted.
    """
    return broadcast(lambda: _compare(directory, inputs, accept))


def require_trained_on(earlier: RunDirectory, experiment: Experiment) -> None:
    """Raises UserError, in all processes, when the base model or the tokenizer of an experiment is
    not the one that a run's roles were trained on.

    Weights in another dtype are not compared: they round differently.
    """
    now = {
        "weights": weights_digest(experiment.base),
        "dtype": experiment.policy.model.dtype.name,
        "tokenizer": _tokenizer(experiment),
    }
    file = earlier.path / INPUTS_FILE
    stored = broadcast(lambda: _read(earlier)[0] if file.exists() else {})
    names = ["weights", "tokenizer"] if stored.get("dtype") == now["dtype"] else ["tokenizer"]
    for name in names:
        if stored.get(name, now[name]) != now[name]:
            raise UserError(
                f"{earlier.path}: the {name} of {experiment.name} changed since its roles were"
                f" trained: {stored[name]} -> {now[name]}; name the model of the run with"
                " model.name=PATH"
            )


def _tokenizer(experiment: Experiment) -> str:
    return f"SHA-256 {experiment.pipeline.tokenizer.fingerprint[:16]}"


def _compare(directory: RunDirectory, inputs: Mapping[str, str], accept: bool) -> list[str]:
    file = directory.path / INPUTS_FILE
    stored, accepted = _read(directory) if file.exists() else ({}, [])
    # An input that an earlier version has not recorded is taken as it is.
    changes = [
        f"{name}: {stored[name]} -> {value}"
        for name, value in inputs.items()
        if stored.get(name, value) != value
    ]
    if changes and not accept:
        raise UserError(
            f"{directory.path} was made with other inputs (there -> now):\n  "
            + "\n  ".join(changes)
            + "\nuse those that it was made with, choose another --run-dir, or go on with"
            " --accept-changes, which is recorded in the results"
        )
    if changes:
        logger.warning("changed inputs, accepted: %s", "; ".join(changes))
    accepted += changes
    if stored != inputs:
        content = {"inputs": {**stored, **inputs}, "accepted_changes": accepted}
        directory.write(INPUTS_FILE, json.dumps(content, indent=1) + "\n")
    return accepted


def _read(directory: RunDirectory) -> tuple[dict[str, str], list[str]]:
    file = directory.path / INPUTS_FILE
    content: dict[str, Any] = parse_json_object(file.read_bytes(), str(file))
    stored, accepted = content.get("inputs"), content.get("accepted_changes")
    if not isinstance(stored, dict) or not isinstance(accepted, list):
        raise UserError(f"{file} is damaged: delete it, and it is written again")
    return {str(k): str(v) for k, v in stored.items()}, [str(change) for change in accepted]
