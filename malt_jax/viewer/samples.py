"""The answers to the test questions before and after training, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from malt_jax.evaluation.sampling import Policies, resolved
from malt_jax.evaluation.store import FOLDER, folder_of, read_samples
from malt_jax.evaluation.systems import BASE, MALT, STAR, Chain
from malt_jax.files import names_in
from malt_jax.malt.objectives import objectives
from malt_jax.malt.round import Trained, training_stage
from malt_jax.runs.stage import MANIFEST
from malt_jax.tasks.base import Question
from malt_jax.viewer.answers import Answers
from malt_jax.viewer.completions import Row, completion, rows
from malt_jax.viewer.source import Source
from malt_jax.viewer.trees import SOLUTION, ShownQuestion, became, described

SEED = 0
"""The repetition of the evaluation that is shown."""

Turns = dict[tuple[int, int], Row]
"""The completions of one role by question and pass."""


class Stage(NamedTuple):
    """The pipeline at one point of its training."""

    name: str
    chain: Chain
    """The policy of every role."""
    turns: tuple[Turns, ...]
    passes: dict[int, list[int]]
    """The passes of every question, in the order of asking."""


def trained(source: Source) -> Policies:
    """The roles that have been trained; empty weights stand for theirs."""
    found = Trained({}, {})
    for number in range(source.config.rounds):
        for role in source.roles:
            for objective in objectives(source.config, role):
                if (source.path / training_stage(number, role, objective) / MANIFEST).exists():
                    found.keep(role, objective, {})
    return {STAR: found.sft, MALT: found.final}


def read_stages(source: Source) -> list[Stage]:
    """The pipeline without training, after SFT and after all, each if it has been evaluated."""
    policies, count = trained(source), len(source.roles)
    last = list(dict.fromkeys(name for role in source.roles for name in _names(source, role)[1:]))
    names = {BASE: "untrained", STAR: "after SFT", MALT: f"after {' and '.join(last)}"}
    stages: dict[Chain, Stage] = {}
    for policy, name in names.items():
        chain = resolved((policy,) * count, source.roles, policies)
        if chain in stages:
            continue
        turns = tuple(_read(source, chain[:depth]) for depth in range(1, count + 1))
        if all(turns):
            passes: dict[int, list[int]] = defaultdict(list)
            for question, number in turns[-1]:
                passes[question].append(number)
            stages[chain] = Stage(name, chain, turns, passes)
    return list(stages.values())


def read_questions(source: Source, stages: Sequence[Stage]) -> Iterator[ShownQuestion]:
    """Every question that all stages have answered, in the order of asking."""
    answers = Answers(source.task)
    for id in stages[0].passes if stages else ():
        if all(id in stage.passes for stage in stages):
            yield _shown(source, source.question("test", id), stages, answers)


def _names(source: Source, role: str) -> list[str]:
    """The training stages of a role."""
    return [objective.name.upper() for objective in objectives(source.config, role)]


def _training(source: Source, chain: Chain) -> list[str]:
    """The last training of every role under the policies of a chain."""
    words = []
    for role, policy in zip(source.roles, chain, strict=True):
        names = _names(source, role)
        words.append({STAR: names[0], MALT: names[-1]}.get(policy, "untrained"))
    return words


def _read(source: Source, chain: Chain) -> Turns:
    folder, turns = source.path / FOLDER / folder_of(SEED, chain), Turns()
    for name in names_in(folder, "*.parquet"):
        with source.noted():
            for row in rows(read_samples(folder / name)):
                turns[row["fields"]["question"], row["fields"]["pass"]] = row
    return turns


def _shown(
    source: Source, question: Question, stages: Sequence[Stage], answers: Answers
) -> ShownQuestion:
    columns, leaves, counts = [], [], defaultdict[str, int](int)
    for stage in stages:
        passes = []
        for number in sorted(stage.passes[question.id]):
            turns = []
            for role, of_role in zip(source.roles, stage.turns, strict=True):
                if (row := of_role.get((question.id, number))) is not None:
                    answer = answers.extract(row["text"])
                    correct = answers.verdict(answer, question)
                    shown = completion(row, source.pieces)
                    turns.append({"role": role, **shown, "answer": answer, "correct": correct})
                    counts["cut"] += row["cut"]
                    counts["tokens"] += len(row["ids"])
            counts["unparseable"] += turns[-1]["answer"] is None
            passes.append(turns)
        trained_by = _training(source, stage.chain)
        columns.append({"name": stage.name, "training": trained_by, "passes": passes})
        leaves.append([bool(turns[-1]["correct"]) for turns in passes])
    shares = [sum(correct) / len(correct) for correct in leaves]
    entry = {
        **described(question),
        "shares": [round(share, 4) for share in shares],
        "value": round(shares[-1], 4),
        "spread": round(max(shares) - min(shares), 4),
        "disputed": any(0 < share < 1 for share in shares),
        "cut": counts["cut"],
        "unparseable": counts["unparseable"],
        "tokens": counts["tokens"],
        **became(shares[0], shares[-1]),
    }
    return ShownQuestion(entry, {"stages": columns, "solution": question.metadata.get(SOLUTION)})
