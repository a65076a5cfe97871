"""The command that plans a run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from malt_jax import plan
from malt_jax.errors import UserError
from malt_jax.planning import estimate, targets
from malt_jax.planning.estimate import Compiled

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is made for Linux on x86-64 alone"
)
SMALL = [
    *("sampling.max_tokens=16", "task.train_questions=10", "task.test_questions=4"),
    *("sampling.questions_per_batch=4", "evaluation.questions_per_batch=4"),
    "pipeline.roles=[{name: generator, branching: 2}, {name: verifier, branching: 2}]",
    *("training.dpo_roles=[verifier]", "--question-tokens", "8"),
]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, Compiled | int]:
    """What programs need, by name instead of by compiling them."""
    needed: dict[str, Compiled | int] = {}

    def fake(program):
        return needed.get(program.name, Compiled(1000, 200, 30, 5e6))

    monkeypatch.setattr(estimate, "compiled", fake)
    monkeypatch.setattr(targets, "usable_hbm", lambda device: 10**9)
    monkeypatch.setattr(targets, "CHIPS", {"cpu": targets.CHIPS["TPU v4"]})
    return needed


def test_json_is_one_object(memory, capsys: pytest.CaptureFixture) -> None:
    plan.main(["--json", "--price-per-chip-hour", "2", *SMALL])
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"] is True
    fields = {"name", "fits", "hbm_bytes", "hbm_limit_bytes", "flops", "bytes_accessed"}
    for program in printed["programs"]:
        assert fields | {"roofline_seconds", "calls"} <= set(program)
        held = program["hbm"]
        assert (held["arguments"], held["temporaries"], held["output"]) == (1000, 200, 30)
        assert program["hbm_bytes"] == sum(held.values()) < program["hbm_limit_bytes"] == 10**9
        assert program["network_bytes"] == 5e6
        assert program["roofline_seconds"] == pytest.approx(
            max(program["flops"] / 275e12, program["bytes_accessed"] / 1200e9, 5e6 / 300e9)
        )
    names = [program["name"] for program in printed["programs"]]
    for name in ("trees/verifier/prefill-generator", "evaluation/verifier/decode-16"):
        assert name in names
    assert names.index("sft/verifier/update") < names.index("dpo/verifier/update")
    run = printed["run"]
    seconds = sum(p["calls"] * p["roofline_seconds"] for p in printed["programs"])
    assert run["hours"] == pytest.approx(seconds / 3600)
    assert run["dollars"] == pytest.approx(2 * run["chip_hours"])
    updates = ("sft/generator/update", "sft/verifier/update", "dpo/verifier/update")
    assert run["steps"] == sum(p["calls"] for p in printed["programs"] if p["name"] in updates)
    assert run["tokens"] > 0


def test_what_does_not_fit_comes_with_advice(
    memory, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    million = 10**6
    memory["trees/verifier/decode-16"] = 200 * million
    memory["dpo/verifier/update"] = Compiled(100 * million, 100 * million, 0, 0.0)
    monkeypatch.setattr(targets, "usable_hbm", lambda device: 150 * million)
    overrides = ["sampling.questions_per_batch=8", "training.remat=false"]
    plan.main(["--json", *SMALL, *overrides])
    printed = json.loads(capsys.readouterr().out)
    assert not printed["fits"]
    refused = {p["name"]: p["remedies"] for p in printed["programs"] if not p["fits"]}
    assert set(refused) == {"trees/verifier/decode-16", "dpo/verifier/update"}
    assert refused["trees/verifier/decode-16"][0].startswith("sampling.questions_per_batch=")
    assert "training.remat=true" in refused["dpo/verifier/update"]
    assert refused["dpo/verifier/update"][0].startswith("dpo.micro_batch_size=")


def test_the_table_shows_every_program(memory, capsys: pytest.CaptureFixture) -> None:
    memory["sft/verifier/update"] = 2 * 10**9
    plan.main(["--only", "verifier", *SMALL])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "trees/verifier/decode-16" in printed and "generator/decode" not in printed
    assert "sft/verifier/update does not fit; try" in printed and "chip-hours" in printed


def test_names_that_are_not_there(memory) -> None:
    with pytest.raises(UserError, match="no program has such a name; there are trees/generator"):
        plan.main(["--only", "nobody", *SMALL])


def test_an_unknown_topology() -> None:
    with pytest.raises(UserError, match="v5e: 1x1, 2x2"):
        plan.main(["--topology", "v5e:5x5"])


def test_without_libtpu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]'"):
        plan.main(["--topology", "v5e:2x2", *SMALL])


def planned(*arguments: str) -> dict[str, Any]:
    """A plan for a real topology, in a process of its own, which may load libtpu."""
    command = [sys.executable, "-m", "malt_jax.plan", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "slices", "chips", "gib"),
    [("v5e:2x2", 1, 4, 15.75), ("v6e:2x2", 2, 8, 31.25), ("tpu7x:2x2x1", 1, 4, 94.75)],
)
def test_a_small_model_for_a_real_topology(
    topology: str, slices: int, chips: int, gib: float
) -> None:
    chosen = ["--only", "generator/decode", "--only", "sft/verifier", *SMALL]
    plan = planned("--topology", topology, "--slices", str(slices), *chosen)
    assert plan["fits"] and plan["run"]["chips"] == chips
    assert plan["training_mesh"]["data"] % slices == 0
    for program in plan["programs"]:
        # libtpu prints it with two digits after the point, and rounds from version to version.
        assert program["hbm_limit_bytes"] == pytest.approx(gib * 2**30, rel=1e-3)
        assert 0 < program["hbm_bytes"] < 2**30 < program["hbm_limit_bytes"]
        assert program["hbm"]["arguments"] > 0


@pytest.mark.slow
@needs_libtpu
def test_llama_8b_fits_sixteen_small_chips() -> None:
    """The paper's settings: the largest programs of sampling and of training."""
    config = Path(__file__).parent.parent / "configs/llama31_8b_gsm8k.yaml"
    plan = planned(
        *("--config", str(config), "--topology", "v5e:4x4", "model.name=llama-3.1-8b"),
        *("--only", "trees/refiner/decode-512", "--only", "dpo/refiner/update"),
    )
    programs = {program["name"]: program for program in plan["programs"]}
    assert programs.keys() == {"trees/refiner/decode-512", "dpo/refiner/update"}
    assert plan["fits"]
    # Weights and cache, and not many times as much, by arithmetic: docs/gpu.md.
    weights, cache = 16.1e9 / 4, 16 * 3.1e9 / 16
    decode = programs["trees/refiner/decode-512"]
    assert weights + cache < decode["hbm_bytes"] < 2 * (weights + cache)
    # No step collects the vocabulary's matrix of 1 GB, which is split over four devices.
    assert decode["hbm"]["temporaries"] < 0.5e9
