"""The schema of results.json accepts what it should, and its documentation is complete."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import malt_jax
from malt_jax.evaluation.systems import STANDARD

SCHEMA = json.loads((Path(malt_jax.__file__).parent / "results_schema.json").read_text())
DOCUMENT = Path(__file__).parent.parent / "docs" / "results-schema.md"
SYSTEM: dict[str, Any] = {
    "accuracy": 0.5,
    "ci95": [0.4, 0.6],
    "questions": 100,
    "seeds": 1,
    "calls": 3,
    "tokens": 31.5,
}
RESULTS: dict[str, Any] = {
    "model": "tiny",
    "task": "arithmetic",
    "systems": {name: SYSTEM for name in STANDARD},
    "comparisons": {
        "malt+mv - sa": {"difference": 0.1, "ci95": [0.0, 0.2]},
        "malt+mv - sa+mv": {"difference": -0.1, "ci95": [-0.2, 0.0], "mcnemar_p": 0.04},
    },
    "rounds": [
        {
            "generator": {"rows": 7, "pairs": 0},
            "verifier": {
                "rows": 7,
                "correct": 8,
                "incorrect": 3,
                "pairs": 2,
                "pair_doubt": 0.05,
                "pair_lengths": {"shorter": 1, "equal": 0, "longer": 1},
                "pair_styles": {"full": {"verdict": 1, "full": 1}},
            },
        }
    ],
    "policies": {
        "star": {"verifier": ["round-0/verifier/sft"]},
        "malt": {"verifier": ["round-0/verifier/sft", "round-0/verifier/dpo"]},
    },
    "seconds": {"round-0/trees": 1.5},
    "config": {"seed": 0, "rounds": 1, "model": {}, "task": {}},
    "versions": {"python": "3", "malt_jax": "1", "jax": "1", "flax": "1", "optax": "1"},
}


RIGHT = {"accuracy": 0.5, "ci95": [0.4, 0.6]}
EVALUATION: dict[str, Any] = {
    **{field: content for field, content in RESULTS.items() if field != "rounds"},
    "trained_on": "addition",
    "accepted_changes": ["version of jax: 0.10.1 -> 0.10.2"],
    "systems": {
        "sa": {
            **SYSTEM,
            "prompt_tokens": 80.0,
            "seconds": 0.2,
            "paper_protocol": {"mean": 0.5, "std": 0.02, "subsets": 4, "size": 100},
        },
        "sa+mv@9": {**SYSTEM, "prompt_tokens": 720, "seconds": None, "paper_protocol": None},
        "malt+mv": SYSTEM,
        "malt-until-verifier+mv": SYSTEM,
        "malt-without-fact_checker": SYSTEM,
        "debate": SYSTEM,
    },
    "comparisons": {
        "malt+mv - debate": {"difference": 0.1, "ci95": [0.0, 0.2]},
        "sa+mv@9 - sa": {
            "difference": 0.1,
            "ci95": [0.0, 0.2],
            "mcnemar_p": 0.01,
            "mcnemar_p_holm": 0.05,
        },
    },
    "turns": {"malt+mv": {"generator": RIGHT, "refiner": RIGHT}},
    "transitions": {
        name: {
            "wrong_to_right": 0.2,
            "wrong_to_right_ci95": [0.1, 0.3],
            "right_to_wrong": 0.0,
            "right_to_wrong_ci95": [0.0, 0.1],
        }
        for name in ("sa -> malt+mv", "malt: generator -> refiner")
    },
    "groups": {"level": {"Level 5": {"sa": {**RIGHT, "questions": 7}}}},
    "pass_at_k": {"sa": {"1": 0.5, "3": 0.7}},
    "values": {
        "generator": {
            "nodes": 21,
            "leaves": 9,
            "label_doubt": 0.1,
            "standard_error": None,
            "paper_epsilon": 1.2,
        }
    },
}


def valid(results: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(results)


def test_good_results_pass() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RESULTS, SCHEMA)
    jsonschema.validate(EVALUATION, SCHEMA)


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("seconds"),
        lambda r: r.update(extra=1),
        lambda r: r["systems"].pop("malt+mv"),
        lambda r: r["systems"].update(oracle=SYSTEM),
        lambda r: r["systems"]["sa"].update(accuracy=84.0),
        lambda r: r["systems"]["sa"].update(accuracy=None),
        lambda r: r["systems"]["sa"].update(ci95=[0.1]),
        lambda r: r["systems"]["sa"].update(questions=0),
        lambda r: r["comparisons"].update(sa=r["comparisons"]["malt+mv - sa"]),
        lambda r: r["rounds"][0]["generator"].update(pairs=-1),
        lambda r: r["rounds"][0]["verifier"].update(pair_doubt=1.2),
        lambda r: r["rounds"][0]["verifier"]["pair_lengths"].pop("equal"),
        lambda r: r["rounds"][0]["verifier"]["pair_styles"]["full"].update(full=-1),
        lambda r: r.update(rounds=[]),
        lambda r: r["policies"].update(sa={}),
        lambda r: r["policies"]["star"].update(verifier=[]),
        lambda r: r["policies"]["malt"].update(verifier=["verifier/dpo"]),
        lambda r: r["seconds"].update(trees="1 s"),
        lambda r: r["versions"].pop("jax"),
    ],
)
def test_bad_results_do_not(damage: Callable[[Any], Any]) -> None:
    results = copy.deepcopy(RESULTS)
    damage(results)
    assert not valid(results)


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r["systems"].update({"sa+mv@0": SYSTEM}),
        lambda r: r["systems"].update({"malt-until": SYSTEM}),
        lambda r: r["systems"].pop("sa"),
        lambda r: r["systems"]["sa"]["paper_protocol"].pop("std"),
        lambda r: r["comparisons"].update({"debate - ma": {"difference": 0, "ci95": [0, 0]}}),
        lambda r: r["comparisons"]["sa+mv@9 - sa"].pop("mcnemar_p"),
        lambda r: r["turns"].update(judge={"generator": RIGHT}),
        lambda r: r["turns"]["malt+mv"].update(refiner=0.5),
        lambda r: r["transitions"].update({"sa": r["transitions"]["sa -> malt+mv"]}),
        lambda r: r["groups"]["level"]["Level 5"].update(sa=RIGHT),
        lambda r: r["pass_at_k"]["sa"].update({"0": 0.0}),
        lambda r: r["pass_at_k"]["sa"].update({"2": 1.1}),
        lambda r: r["values"]["generator"].update(leaves=0),
    ],
)
def test_bad_evaluations_do_not(damage: Callable[[Any], Any]) -> None:
    results = copy.deepcopy(EVALUATION)
    damage(results)
    assert not valid(results)


def fields_of(schema: Any) -> set[str]:
    """The names of all properties, however deep."""
    if isinstance(schema, list):
        return set[str]().union(*map(fields_of, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", ())).union(*map(fields_of, schema.values()))


def test_every_field_is_documented() -> None:
    document = DOCUMENT.read_text()
    fields = fields_of(SCHEMA)
    assert {"systems", "mcnemar_p_holm", "paper_epsilon"} <= fields
    fields |= {name.removesuffix("+mv") for name in STANDARD}
    documented = set(re.findall(r"`([^`]+)`", document))
    assert fields <= documented, fields - documented
