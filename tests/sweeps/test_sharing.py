"""Stages that a setting of a sweep takes from others."""

from pathlib import Path

import pytest
from upath import UPath

from malt_jax.config import load_config
from malt_jax.runs.copying import stage_source
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.runs.metrics import Metrics, read_metrics
from malt_jax.sweeps.sharing import share_sft

SFT = tuple(f"round-0/{role}/sft" for role in ("generator", "verifier", "refiner"))
TREES = "round-0/on-policy-trees"
BASE = ("training.on_policy_pairs=true",)


@pytest.fixture
def first(tmp_path: Path) -> RunDirectory:
    """A setting that has finished its SFT stages and sampled on-policy trees."""
    with open_run(tmp_path / "first", load_config(None, BASE)) as run:
        with Metrics(run.path) as metrics:
            for name in SFT:
                metrics.restart(name)
                metrics.log(name, 1, {"loss": 0.5, "other": float("nan")})
        for name in (*SFT, TREES):
            with run.stage(name) as stage:
                stage.write("weights/array", f"of {name}")
    return run


def taken(tmp_path: Path, *overrides: str) -> set[str]:
    """The stages that a new setting takes from others."""
    config = load_config(None, [*BASE, *overrides])
    sweep = RunDirectory(UPath(tmp_path), config)
    with open_run(sweep.path / "new", config) as run:
        share_sft(run, sweep)
        found = {name for name in (*SFT, TREES) if run.is_done(name)}
        for name in found:
            assert (run.path / name / "weights/array").read_text() == f"of {name}"
            assert stage_source(run, name) == str(sweep.path / "first")
        curves = read_metrics(run.path)
        assert set(curves) == found - {TREES}
        for name, records in curves.items():
            assert records == [{"stage": name, "step": 1, "loss": 0.5, "other": None}]
    return found


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dpo.beta=0.7", "roles.refiner.dpo.epochs=2"], {*SFT, TREES}),
        (["training.on_policy_pairs=false", "training.dpo_roles=[refiner]"], {*SFT}),
        (["sft.epochs=7"], set()),
        (["roles.verifier.sft.epochs=7"], set()),
        (["credit.threshold=0.2"], set()),
        (["lora.rank=3"], set()),
    ],
)
def test_stages_are_taken_where_only_later_options_differ(
    tmp_path: Path, overrides: list[str], expected: set[str]
) -> None:
    assert taken(tmp_path, *overrides) == expected


def test_trees_of_other_sft_weights_are_not_taken(first: RunDirectory, tmp_path: Path) -> None:
    config = load_config(None, [*BASE, "dpo.beta=0.7"])
    with open_run(tmp_path / "new", config) as run:
        with run.stage(SFT[0]) as stage:
            stage.write("weights/array", "trained here, with other rounding")
        share_sft(run, RunDirectory(UPath(tmp_path), config))
        assert [run.is_done(name) for name in (*SFT, TREES)] == [True, True, True, False]
        assert stage_source(run, SFT[0]) is None
