"""Trees of another run: compared with what this run would sample, verified and copied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from upath import UPath

from malt_jax.config import Config, diff
from malt_jax.distributed.processes import broadcast
from malt_jax.errors import UserError
from malt_jax.files import parse_json_object
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.prompts import Pipeline
from malt_jax.model.llama import Params
from malt_jax.runs.copying import copy_stage, stage_source
from malt_jax.runs.directory import RunDirectory
from malt_jax.sharding.rules import to_host
from malt_jax.tasks.base import Question

TREES = "round-0/trees"
"""The trees that other runs can use: those of the base model."""
INPUTS = "inputs.json"
"""In a stage of trees: hashes of what it was sampled from."""

_AFTER_TREES = frozenset(
    ("rounds", "credit", "lora", "training", "sft", "dpo", "kto", "evaluation")
)
"""Sections and options that the trees of round 0 do not depend on."""
_TEST = ("task.test", "task.test_questions")
"""The test may remove training questions that it asks too; the hash of the questions tells."""
_PROBE = 8
"""Numbers of an array that are hashed, at either end."""


def tree_inputs(experiment: Experiment, questions: Sequence[Question]) -> dict[str, str]:
    """Hashes of what trees are sampled from and no option holds: files may have changed."""
    asked = [(question.id, question.text, question.answer) for question in questions]
    return {
        "questions": f"{len(asked)} with {_hash(asked)}",
        "prompts": _hash(_prompt_ids(experiment.pipeline)),
        "weights": _hash(_probe(experiment.base)),
    }


def reuse_trees(
    experiment: Experiment,
    config: Config,
    directory: RunDirectory,
    questions: Sequence[Question],
    source: UPath | None,
) -> None:
    """Copies the trees of round 0 from the run at `source`, unless that is done.

    source: None: this run samples its trees, or goes on with a copy that was interrupted.

    Raises UserError when the run there has no finished or damaged trees, when they are not those
    that this run would sample, and when this run has other trees already.
    """
    recorded = stage_source(directory, TREES)
    given = None if source is None else str(source.absolute())
    if directory.is_done(TREES):
        if given not in (None, recorded):
            raise UserError(
                f"{directory.path} has trees already"
                + (f", from {recorded}" if recorded else ", which it sampled itself")
                + ": leave --trees out, or choose another --run-dir"
            )
        return
    if given is None and recorded is None:
        return
    earlier = RunDirectory.read(given or recorded or "")
    if earlier.path.absolute() == directory.path.absolute():
        raise UserError(f"--trees {given} is the run itself: leave it out")
    earlier.finished(TREES)
    _require_equal(earlier, config, tree_inputs(experiment, questions))
    copy_stage(earlier, directory, TREES)


def tree_differences(there: Config, here: Config) -> list[str]:
    """The options that change the trees of round 0 and differ, with both values, one line each."""
    return [line for line in diff(there, here) if not _is_free(line.partition(":")[0])]


def require_same_options(earlier: RunDirectory, config: Config) -> None:
    """Raises UserError, which names every option that changes trees and differs from a run's."""
    _require_none(tree_differences(earlier.config, config), earlier)


def _require_equal(earlier: RunDirectory, config: Config, inputs: dict[str, str]) -> None:
    """Raises UserError, which names every difference that changes trees."""
    file = earlier.path / TREES / INPUTS
    # Runs of earlier versions have no such file.
    stored = broadcast(lambda: _content(file) if file.exists() else {})
    differences = tree_differences(earlier.config, config) + [
        f"the {name}' content: {stored[name]} -> {value}"
        for name, value in inputs.items()
        if stored.get(name, value) != value
    ]
    _require_none(differences, earlier)


def _require_none(differences: list[str], earlier: RunDirectory) -> None:
    if differences:
        raise UserError(
            f"the trees of {earlier.path} are not those that this run would sample (there -> here):"
            "\n  " + "\n  ".join(differences) + "\nuse its values of these, or leave --trees out;"
            f" options of {', '.join(sorted(_AFTER_TREES))} may differ"
        )


def _content(file: UPath) -> dict[str, Any]:
    return parse_json_object(file.read_bytes(), str(file))


def _is_free(option: str) -> bool:
    """Whether trees of round 0 do not depend on an option; any section may be one of a role."""
    section, *_ = parts = option.split(".")
    return option in _TEST or (section != "task" and not _AFTER_TREES.isdisjoint(parts))


def _prompt_ids(pipeline: Pipeline) -> list[Any]:
    """The fixed segments of every role's prompt."""
    return [
        (prompt.role.name, prompt.segments("", [()] * prompt.depth)) for prompt in pipeline.prompts
    ]


def _probe(params: Params) -> list[Any]:
    """Shapes and some weights of every array, as bfloat16: equal for every mesh and dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    ends = to_host([_ends(leaf) for _, leaf in leaves])
    return [
        (jax.tree_util.keystr(path), leaf.shape, np.asarray(end, np.float32).tolist())
        for (path, leaf), end in zip(leaves, ends, strict=True)
    ]


def _ends(leaf: jax.Array) -> jax.Array:
    first, last = leaf[(0,) * (leaf.ndim - 1)], leaf[(-1,) * (leaf.ndim - 1)]
    return jnp.concatenate([first[:_PROBE], last[-_PROBE:]]).astype(jnp.bfloat16)


def _hash(content: Any) -> str:
    return f"SHA-256 {hashlib.sha256(repr(content).encode()).hexdigest()[:16]}"
