"""Comparing systems: who answers, what is sampled for it, how it is judged, what it means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from malt_jax.errors import UserError
from malt_jax.evaluation.debate import DebatePrompt
from malt_jax.evaluation.judging import Judge
from malt_jax.evaluation.results import evaluated
from malt_jax.evaluation.sampling import Policies, sample
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import BASE, DEBATE, DEBATER, system
from malt_jax.experiment import Experiment
from malt_jax.tasks.base import Question


def evaluate(
    experiment: Experiment,
    policies: Policies,
    names: Sequence[str],
    questions: Sequence[Question],
    seeds: int,
    store: Store,
) -> dict[str, Any]:
    """Compares the named systems: samples what the store lacks, judges, and returns that part of
    results.json (docs/results-schema.md) that depends on it.

    policies: what the roles have learned; without any, only the untrained systems can be asked for.

    Raises UserError for unknown systems, for those that need a training that there was not, and
    when a prompt could exceed the model's positions.
    """
    roles, config = experiment.pipeline.names, experiment.config
    systems = [system(name, roles, config.evaluation.votes) for name in dict.fromkeys(names)]
    trained = [s.name for s in systems if not set(s.chain) <= {BASE, DEBATER}]
    if trained and not policies:
        raise UserError(
            f"{', '.join(trained)}: these systems need trained roles; give a finished run with"
            " --run-dir"
        )
    experiment.check_lengths(questions)
    if any(s.name == DEBATE for s in systems):
        limit = experiment.policy.model.config.max_positions
        DebatePrompt(experiment).check_lengths(questions, limit, config.sampling.max_tokens)
    sample(experiment, policies, systems, questions, seeds, store)
    judge = Judge(experiment.task, roles, policies, questions, seeds, store)
    return evaluated(judge, systems)
