"""The figures of the MALT paper (arXiv 2412.01928v3, section 4 and its ablations), by our names.

All are accuracies in percent over four random subsets of 100 test questions. The ablations are
entered as systems with a vote: the paper's figures for the generator alone are those of its STaR
baseline of a single agent with a vote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from malt_jax.checkpoints.presets import PRESETS

SOURCE = "arXiv 2412.01928"


class Score(NamedTuple):
    """An accuracy, with the population standard deviation over subsets where one is given."""

    accuracy: float
    deviation: float | None = None


class Transition(NamedTuple):
    """Questions whose answer changed, in percent of all."""

    wrong_to_right: float
    right_to_wrong: float


@dataclass(frozen=True)
class PaperResults:
    """What the paper reports of one model on one task."""

    trained_on: str
    systems: Mapping[str, Score]
    transitions: Mapping[str, Transition] = field(default_factory=dict)
    turns: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    others: Mapping[str, float] = field(default_factory=dict)
    """Systems that we do not have, or that the paper does not define closely enough."""


_UNTRAINED = re.compile(r"(sa|ma|debate)([+]mv)?")
_SYSTEMS = (
    "sa", "sa+mv", "ma", "ma+mv",
    "star-sa", "star-sa+mv", "star-ma", "star-ma+mv",
    "malt", "malt+mv",
)  # fmt: skip
_ABLATIONS = (
    "malt-untrained-generator+mv",
    "malt-untrained-verifier+mv",
    "malt-untrained-refiner+mv",
    "malt-until-generator+mv",
    "malt-until-verifier+mv",
    "malt-without-verifier+mv",
    "debate",
)


def _main(*scores: tuple[float, float]) -> dict[str, Score]:
    return {name: Score(*score) for name, score in zip(_SYSTEMS, scores, strict=True)}


def _ablations(*accuracies: float) -> dict[str, Score]:
    return {name: Score(value) for name, value in zip(_ABLATIONS, accuracies, strict=True)}


_LLAMA = {
    "gsm8k": PaperResults(
        "gsm8k",
        _main(
            (84.25, 2.28), (86.75, 2.38), (84.75, 2.86), (87.00, 4.00),
            (81.75, 0.83), (84.75, 2.68), (80.00, 1.58), (86.75, 2.28),
            (83.50, 2.18), (90.50, 2.06),
        )
        | _ablations(87.00, 85.75, 86.25, 84.75, 88.75, 84.75, 86.75),
        {"sa -> malt+mv": Transition(9.50, 3.75)},
    ),
    "commonsense_qa": PaperResults(
        "commonsense_qa",
        _main(
            (74.50, 3.35), (75.75, 5.49), (77.50, 5.17), (79.00, 2.55),
            (76.25, 4.32), (78.75, 4.26), (75.50, 2.69), (76.00, 1.73),
            (77.50, 1.12), (81.50, 2.29),
        )
        | _ablations(78.75, 76.75, 75.50, 78.75, 78.00, 76.25, 71.25),
        {"sa -> malt+mv": Transition(11.25, 4.25)},
    ),
    "math": PaperResults(
        "math",
        _main(
            (49.50, 2.06), (52.50, 2.50), (51.75, 3.56), (53.50, 2.87),
            (52.25, 1.48), (54.00, 2.73), (52.50, 3.20), (53.75, 2.68),
            (52.25, 1.79), (57.25, 1.48),
        )
        | _ablations(54.25, 54.50, 55.25, 54.00, 55.75, 54.75, 52.00),
        {"sa -> malt+mv": Transition(14.25, 6.50)},
        {"malt+mv": {"generator": 53.50, "verifier": 55.75, "refiner": 57.25}},
    ),
    "gsm_symbolic/p1": PaperResults(
        "gsm8k",
        {
            "sa": Score(71.75),
            "sa+mv": Score(73.75),
            "ma+mv": Score(75.25),
            "malt+mv": Score(84.75, 3.30),
        },
        others={"STaR+MV": 76.75, "Llama-3.1-70B-Instruct": 88.25},
    ),
}  # fmt: skip

_QWEN = {
    "gsm8k": PaperResults(
        "gsm8k",
        {
            name: Score(value)
            for name, value in zip(
                _SYSTEMS[:-1],
                (61.75, 65.00, 60.50, 62.25, 63.50, 64.25, 62.50, 64.25, 71.00),
                strict=True,
            )
        }
        | {"malt+mv": Score(74.50, 2.65)},
    )
}

_MODELS = (
    # A precision may follow, as in the names of GGUF files; a quantised model is another one.
    (re.compile(r"(meta)?llama318binstruct(b?f16|f32)?(gguf)?"), _LLAMA),
    (re.compile(r"qwen2515b(base)?(b?f16|f32)?(gguf)?"), _QWEN),
)


def paper_results(content: Mapping[str, Any]) -> PaperResults | None:
    """What the paper reports of the model and the task of a results.json; None if it has neither.

    The model is known by the name of its directory or file, or by a hub cache's directory
    `models--OWNER--NAME` above it: Llama-3.1-8B-Instruct, with Meta- before it or not, or
    Qwen2.5-1.5B (the base model), punctuation and case aside. A preset's name is a model with
    random weights, and so not the paper's.

    If the roles were trained on another task than the paper's, only untrained systems remain.
    """
    if content["model"] in PRESETS:
        return None
    parts = [part.rsplit("--", 1)[-1] for part in str(content["model"]).split("/")]
    names = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts]
    tasks = next(
        (tasks for pattern, tasks in _MODELS if any(pattern.fullmatch(name) for name in names)), {}
    )
    task = content["task"]
    if task == "gsm_symbolic":
        options = content["config"]["task"].get("options") or {}
        task = f"{task}/{options.get('variant', 'main')}"
    found = tasks.get(task)
    if found is None or found.trained_on == content.get("trained_on", content["task"]):
        return found
    untrained = {name: score for name, score in found.systems.items() if _UNTRAINED.fullmatch(name)}
    return PaperResults(found.trained_on, untrained, others=found.others)
