"""Comparison of systems on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from malt_jax.errors import UserError
from malt_jax.evaluation.judging import Judge
from malt_jax.evaluation.results import evaluated
from malt_jax.evaluation.sampling import Team, sample
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import BASE, DEBATE, DEBATER, system
from malt_jax.tasks.base import Question, Task


def evaluate(
    team: Team,
    task: Task,
    names: Sequence[str],
    questions: Sequence[Question],
    seeds: int,
    store: Store,
) -> dict[str, Any]:
    """Compares the named systems.

    Samples the completions that the store lacks, judges all, and returns the part of results.json
    (docs/results-schema.md) that depends on them. A team without trained policies answers for the
    untrained systems alone.

    Raises UserError for unknown systems, for those that need trained roles that the team lacks, and
    when a prompt could exceed the model's positions.
    """
    roles, policies = team.pipeline.names, team.policies
    systems = [system(name, roles, team.votes) for name in dict.fromkeys(names)]
    trained = [s.name for s in systems if not set(s.chain) <= {BASE, DEBATER}]
    if trained and not policies:
        raise UserError(
            f"{', '.join(trained)}: these systems need trained roles; give a finished run with"
            " --run-dir"
        )
    texts = [question.text for question in questions]
    limits = int(team.sampler.parameters.max_tokens), team.sampler.model.config.max_positions
    team.pipeline.check_lengths(texts, *limits)
    if any(s.name == DEBATE for s in systems):
        team.debate.check_lengths(texts, *limits)
    sample(team, systems, questions, seeds, store)
    judge = Judge(task, roles, policies, questions, seeds, store)
    return evaluated(judge, systems)
