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
from malt_jax.evaluation import SYSTEMS

SCHEMA = json.loads((Path(malt_jax.__file__).parent / "results_schema.json").read_text())
DOCUMENT = Path(__file__).parent.parent / "docs" / "results-schema.md"
SYSTEM = {
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
    "systems": {name: SYSTEM for name in SYSTEMS},
    "comparisons": {
        "malt+mv - sa": {"difference": 0.1, "ci95": [0.0, 0.2]},
        "malt+mv - sa+mv": {"difference": -0.1, "ci95": [-0.2, 0.0], "mcnemar_p": 0.04},
    },
    "rounds": [{"generator": {"rows": 7, "pairs": 0}}],
    "seconds": {"round-0/trees": 1.5},
    "config": {"seed": 0, "rounds": 1, "model": {}, "task": {}},
    "versions": {"python": "3", "malt_jax": "1", "jax": "1", "flax": "1", "optax": "1"},
}


def valid(results: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(results)


def test_good_results_pass() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RESULTS, SCHEMA)


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
        lambda r: r.update(rounds=[]),
        lambda r: r["seconds"].update(trees="1 s"),
        lambda r: r["versions"].pop("jax"),
    ],
)
def test_bad_results_do_not(damage: Callable[[Any], Any]) -> None:
    results = copy.deepcopy(RESULTS)
    damage(results)
    assert not valid(results)


def test_every_field_is_documented() -> None:
    document = DOCUMENT.read_text()
    definitions = SCHEMA["$defs"]
    fields = {*SCHEMA["properties"], "rows", "pairs"}
    fields |= {*definitions["system"]["properties"], *definitions["comparison"]["properties"]}
    fields |= {name.removesuffix("+mv") for name in SYSTEMS}
    documented = set(re.findall(r"`([^`]+)`", document))
    assert fields <= documented, fields - documented
