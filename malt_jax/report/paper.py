"""Figures of the MALT paper (arXiv 2412.01928v3, section 4 and its ablations), by our names.

They are accuracies in percent over four random subsets of 100 test questions, some with their
population standard deviation. The ablations are entered as systems with a vote: the paper's figures
for the generator alone are those of its STaR baseline of a single agent with a vote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SOURCE = "arXiv 2412.01928"


@dataclass(frozen=True)
class PaperResults:
    """Figures of one model on one task, as the paper prints them."""

    systems: Mapping[str, str]
    """System -> accuracy."""
    transitions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Transition -> share of questions from wrong to correct, and from correct to wrong."""
    turns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """System -> role -> accuracy after it."""
    others: str = ""
    """Systems that we do not have, or that the paper does not define closely enough."""


_MODELS = {
    # A precision may follow, as in the names of GGUF files; a quantised model is another model.
    "llama": re.compile(r"(meta)?llama318binstruct(b?f16|f32)?(gguf)?"),
    "qwen": re.compile(r"qwen2515b(base)?(b?f16|f32)?(gguf)?"),
}
_MODEL_NAMES = {"llama": "Llama-3.1-8B-Instruct", "qwen": "Qwen-2.5-1.5B-Base"}
_PRESET = "qwen-2.5-1.5b"
"""The model of this name has random weights; it is not the paper's."""
_TRAINED_ON = {"gsm_symbolic/p1": "gsm8k"}
"""Tasks on which the paper evaluates models that it trained on another one."""
_UNTRAINED = re.compile(r"(sa|ma|debate)([+]mv)?")

# Columns are at least two blanks apart.
_SYSTEMS = """
system                       llama/gsm8k   llama/commonsense_qa  llama/math    llama/gsm_symbolic/p1  qwen/gsm8k
sa                           84.25 ± 2.28  74.50 ± 3.35          49.50 ± 2.06  71.75                  61.75
sa+mv                        86.75 ± 2.38  75.75 ± 5.49          52.50 ± 2.50  73.75                  65.00
ma                           84.75 ± 2.86  77.50 ± 5.17          51.75 ± 3.56  -                      60.50
ma+mv                        87.00 ± 4.00  79.00 ± 2.55          53.50 ± 2.87  75.25                  62.25
star-sa                      81.75 ± 0.83  76.25 ± 4.32          52.25 ± 1.48  -                      63.50
star-sa+mv                   84.75 ± 2.68  78.75 ± 4.26          54.00 ± 2.73  -                      64.25
star-ma                      80.00 ± 1.58  75.50 ± 2.69          52.50 ± 3.20  -                      62.50
star-ma+mv                   86.75 ± 2.28  76.00 ± 1.73          53.75 ± 2.68  -                      64.25
malt                         83.50 ± 2.18  77.50 ± 1.12          52.25 ± 1.79  -                      71.00
malt+mv                      90.50 ± 2.06  81.50 ± 2.29          57.25 ± 1.48  84.75 ± 3.30           74.50 ± 2.65
malt-untrained-generator+mv  87.00         78.75                 54.25         -                      -
malt-untrained-verifier+mv   85.75         76.75                 54.50         -                      -
malt-untrained-refiner+mv    86.25         75.50                 55.25         -                      -
malt-until-generator+mv      84.75         78.75                 54.00         -                      -
malt-until-verifier+mv       88.75         78.00                 55.75         -                      -
malt-without-verifier+mv     84.75         76.25                 54.75         -                      -
debate                       86.75         71.25                 52.00         -                      -
"""  # noqa: E501
_TRANSITIONS = {
    "llama/gsm8k": {"sa -> malt+mv": ("9.50", "3.75")},
    "llama/commonsense_qa": {"sa -> malt+mv": ("11.25", "4.25")},
    "llama/math": {"sa -> malt+mv": ("14.25", "6.50")},
}
_TURNS = {
    "llama/math": {"malt+mv": {"generator": "53.50", "verifier": "55.75", "refiner": "57.25"}}
}
_OTHERS = {"llama/gsm_symbolic/p1": "STaR+MV 76.75; Llama-3.1-70B-Instruct 88.25"}


def paper_results(content: Mapping[str, Any]) -> PaperResults | None:
    """The paper's figures for the model and task of a results.json; None if it has none.

    The model is known by the name of its directory or file, or by a directory
    `models--OWNER--NAME` of a hub cache above it: Llama-3.1-8B-Instruct, with or without Meta-
    before it, or Qwen2.5-1.5B (the base model), punctuation and case aside.

    Only figures of untrained systems are returned if roles were trained on another task than the
    paper's.
    """
    return _results(_model(str(content["model"])), content)


def paper_columns(content: Mapping[str, Any]) -> list[tuple[str, PaperResults]]:
    """The paper's figures for the task of a results.json, each with the heading of a column.

    They are those of the same model ("paper"), or else those of every model of the paper, with its
    name in the heading.
    """
    if same := paper_results(content):
        return [("paper", same)]
    others = ((name, _results(model, content)) for model, name in _MODEL_NAMES.items())
    return [(f"paper, {name}", found) for name, found in others if found]


def _model(name: str) -> str:
    """The key in _MODELS of the paper's model of this name; empty if it is none."""
    if name == _PRESET:
        return ""
    parts = [part.rsplit("--", 1)[-1] for part in name.split("/")]
    names = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts]
    return next((model for model, name in _MODELS.items() if any(map(name.fullmatch, names))), "")


def _results(model: str, content: Mapping[str, Any]) -> PaperResults | None:
    """The figures of a model for the task of a results.json; None if there are none."""
    task = content["task"]
    if task == "gsm_symbolic":
        options = content["config"]["task"].get("options") or {}
        task = f"{task}/{options.get('variant', 'main')}"
    column = f"{model}/{task}"
    systems, others = _column(column), _OTHERS.get(column, "")
    if not systems:
        return None
    if content.get("trained_on", content["task"]) == _TRAINED_ON.get(task, task):
        return PaperResults(systems, _TRANSITIONS.get(column, {}), _TURNS.get(column, {}), others)
    untrained = {name: figure for name, figure in systems.items() if _UNTRAINED.fullmatch(name)}
    return PaperResults(untrained, others=others)


def _column(name: str) -> dict[str, str]:
    """A column of `_SYSTEMS`, system -> figure; empty if there is no such column."""
    rows = [re.split(r"  +", line) for line in _SYSTEMS.strip().splitlines()]
    figures = {row[0]: dict(zip(rows[0], row, strict=True)).get(name, "-") for row in rows[1:]}
    return {system: figure for system, figure in figures.items() if figure != "-"}
