"""A results.json with everything in it: the figures of the tiny model, the rest made up."""

import math
from typing import Any

import pytest

ROLES = ("generator", "verifier", "refiner")
ACCURACIES = {
    "sa": (58.7, 1, 24),
    "sa+mv": (71.3, 3, 72),
    "sa+mv@9": (79.1, 9, 216),
    "ma": (71.8, 3, 70),
    "ma+mv": (82.4, 9, 210),
    "star-sa": (55.8, 1, 23),
    "star-sa+mv": (67.6, 3, 68),
    "star-ma": (77.9, 3, 74),
    "star-ma+mv": (87.1, 9, 221),
    "malt": (78.5, 3, 74),
    "malt+mv": (87.0, 9, 222),
    "debate": (73.9, 9, 260),
    "malt-untrained-generator+mv": (86.2, 9, 219),
    "malt-untrained-verifier+mv": (84.9, 9, 220),
    "malt-untrained-refiner+mv": (83.3, 9, 214),
    "malt-until-generator+mv": (67.6, 3, 68),
    "malt-until-verifier+mv": (80.4, 6, 140),
    "malt-without-verifier+mv": (81.5, 6, 150),
}
SUBJECTS = {
    "Algebra": 1187,
    "Counting & Probability": 474,
    "Geometry": 479,
    "Intermediate Algebra": 903,
    "Number Theory": 540,
    "Prealgebra": 871,
    "Precalculus": 546,
}


def share(percent: float, questions: int) -> dict[str, Any]:
    """An accuracy with the interval of a normal approximation."""
    p = percent / 100
    half = 1.96 * math.sqrt(p * (1 - p) / questions)
    return {"accuracy": p, "ci95": [max(0.0, p - half), min(1.0, p + half)]}


def transition(wrong_to_right: float, right_to_wrong: float) -> dict[str, Any]:
    mended, spoilt = share(wrong_to_right, 1000), share(right_to_wrong, 1000)
    return {
        "wrong_to_right": mended["accuracy"],
        "wrong_to_right_ci95": mended["ci95"],
        "right_to_wrong": spoilt["accuracy"],
        "right_to_wrong_ci95": spoilt["ci95"],
    }


@pytest.fixture
def content() -> dict[str, Any]:
    return example()


def example() -> dict[str, Any]:
    def compared(name: str, other: str) -> dict[str, Any]:
        difference = (ACCURACIES[name][0] - ACCURACIES[other][0]) / 100
        return {"difference": difference, "ci95": [difference - 0.02, difference + 0.02]}

    def by_group(offset: float, questions: int) -> dict[str, Any]:
        return {
            name: {**share(ACCURACIES[name][0] - offset, questions), "questions": questions}
            for name in ("sa", "sa+mv", "ma+mv", "star-ma+mv", "malt+mv")
        }

    comparisons = {
        f"malt+mv - {name}": compared("malt+mv", name) for name in ACCURACIES if name != "malt+mv"
    }
    comparisons |= {f"{name} - sa": compared(name, "sa") for name in ACCURACIES if name != "sa"}
    comparisons["malt+mv - sa+mv"] |= {"mcnemar_p": 0.0004, "mcnemar_p_holm": 0.0012}
    comparisons["malt+mv - star-ma+mv"] |= {"mcnemar_p": 0.31, "mcnemar_p_holm": 0.31}
    comparisons["ma+mv - sa"] |= {"mcnemar_p": 2e-5, "mcnemar_p_holm": 4e-5}
    return {
        "model": "tiny",
        "task": "arithmetic",
        "systems": {
            name: {
                **share(percent, 1000),
                "questions": 1000,
                "seeds": 4,
                "calls": calls,
                "tokens": tokens,
                "prompt_tokens": 3 * tokens,
                "seconds": 0.004 * tokens,
                "paper_protocol": {"mean": percent / 100, "std": 0.021, "subsets": 4, "size": 100},
            }
            for name, (percent, calls, tokens) in ACCURACIES.items()
        },
        "comparisons": comparisons,
        "turns": {
            name: {role: share(p, 1000) for role, p in zip(ROLES, percents, strict=True)}
            for name, percents in {
                "ma": (58.7, 67.2, 71.8),
                "ma+mv": (71.3, 78.0, 82.4),
                "malt": (55.9, 72.9, 78.5),
                "malt+mv": (67.8, 83.2, 87.0),
            }.items()
        },
        "transitions": {
            "sa -> malt+mv": transition(31.2, 2.9),
            "ma: generator -> refiner": transition(19.8, 6.7),
            "malt: generator -> refiner": transition(26.1, 3.5),
        },
        "groups": {
            "level": {
                f"Level {level}": by_group(9 * (level - 2), questions)
                for level, questions in enumerate((437, 894, 1131, 1214, 1324), 1)
            },
            "subject": {
                name: by_group(3 * place, questions)
                for place, (name, questions) in enumerate(SUBJECTS.items())
            },
        },
        "pass_at_k": {
            "sa": {str(k): 1 - 0.413**k for k in range(1, 4)},
            "malt": {str(k): 1 - 0.215**k for k in range(1, 4)},
        },
        "values": {
            role: {
                "nodes": nodes,
                "leaves": leaves,
                "label_doubt": doubt,
                "standard_error": error,
                "paper_epsilon": bound,
            }
            for role, nodes, leaves, doubt, error, bound in (
                ("generator", 900, 9, 0.071, 0.094, 0.75),
                ("verifier", 2700, 3, 0.118, 0.146, 1.39),
            )
        },
        "training": {
            "round-0/verifier/sft": {"updates": 13, "loss": 0.079, "mean_token_accuracy": 0.978},
            "round-0/verifier/dpo": {
                "updates": 1028,
                "loss": 0.549,
                "rewards/margins": 0.336,
                "rewards/chosen": -0.013,
                "rewards/rejected": None,
                "rewards/accuracies": 0.899,
            },
        },
        "seconds": {"evaluation/seed-0": 41.0},
        "config": {"seed": 0, "rounds": 1, "model": {"name": "tiny"}, "task": {"options": {}}},
        "versions": {"python": "3", "malt_jax": "1", "jax": "1", "flax": "1", "optax": "1"},
    }


def votes(calls: int, counts: range) -> dict[str, Any]:
    return {
        str(k): {
            **share(30 + 4 * k, 1000),
            "calls": calls * k,
            "tokens": 8.0 * calls * k,
            "prompt_tokens": 20.0 * calls * k,
            "seconds": None,
        }
        for k in counts
    }


@pytest.fixture
def paper_content() -> dict[str, Any]:
    """The example with the measurements of `--paper`."""
    content = example()
    correction = transition(22.0, 6.0) | {
        "accuracy_before": 0.6,
        "net": 0.16,
        "net_ci95": [0.13, 0.19],
    }
    nothing = transition(0.0, 0.0) | {"accuracy_before": 0.0, "net": 0.0, "net_ci95": [0.0, 0.0]}
    sides = ("malt+mv - sa+mv@9", "malt+mv - ma+mv")
    counts = {"split": "test", "asked": 1000, "available": 1319, "published": 5000}
    content["rounds"] = [{role: {"rows": 1396, "pairs": 440} for role in ROLES}]
    content["config"]["pipeline"] = {"roles": [{"branching": 3}] * 3}
    content["paper"] = {
        "questions": counts,
        "votes": {"sa": votes(1, range(1, 10)), "malt": votes(3, range(1, 4))},
        "self_correction": {"ma": {"verifier": nothing, "refiner": correction}},
        "equal_calls": {
            name: content["comparisons"][name] | {"mcnemar_p": 0.02, "mcnemar_p_holm": 0.04}
            for name in sides
        },
        "transfer": [
            {
                "task": "gsm_symbolic",
                "options": {"variant": "p1"},
                "source": "data/p1.jsonl",
                "questions": {**counts, "asked": 1319, "published": None},
                "systems": {name: content["systems"][name] for name in ("sa", "malt+mv")},
                "comparisons": {"malt+mv - sa": content["comparisons"]["malt+mv - sa"]},
            }
        ],
        "missing": ["debate: the question 'x|y' is too long"],
    }
    return content
