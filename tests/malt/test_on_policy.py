"""Pairs from trees that the SFT policies sample (training.on_policy_pairs)."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from malt_jax.config import QUICKSTART, Config, load_config
from malt_jax.malt import round as malt_round
from malt_jax.malt.experiment import Experiment, prepare, select_questions
from malt_jax.malt.round import Trained, phases, restore_trained, stage_names
from malt_jax.malt.rows import row_counts
from malt_jax.malt.tree import Tree, expand, from_parquet
from malt_jax.run import train_roles
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.training.batches import Example
from malt_jax.training.loop import reference_logps

SMALL = (
    *("task.train_questions=6", "sampling.questions_per_batch=3", "sampling.chunk=48"),
    *("sft.batch_size=16", "dpo.batch_size=16", "dpo.epochs=1", "training.on_policy_pairs=true"),
)


def small(*overrides: str) -> Config:
    return load_config(QUICKSTART, [*SMALL, *overrides])


def start(path: Path, config: Config) -> Trained:
    with open_run(path, config) as directory:
        experiment = prepare(config)
        asked = select_questions(experiment.task, "train", 6, config.seed)
        return train_roles(experiment, config, directory, asked).trained


def read_trees(run: Path, stage: str, experiment: Experiment) -> list[Tree]:
    asked, pipeline = select_questions(experiment.task, "train", 6, 0), experiment.pipeline
    files = sorted((run / stage).glob("batch-*.parquet"))
    assert len(files) == 2
    return [
        from_parquet(file, asked[3 * n : 3 * n + 3], pipeline.names, pipeline.branching)
        for n, file in enumerate(files)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    path = tmp_path_factory.mktemp("on-policy") / "run"
    return path, start(path, small())


def test_stages_in_their_order() -> None:
    trees, rows = "round-0/on-policy-trees", "round-0/on-policy-rows"
    sft = [f"round-0/{role}/sft" for role in ("generator", "verifier", "refiner")]
    dpo = ["round-0/verifier/dpo", "round-0/refiner/dpo"]
    assert stage_names(small()) == ["round-0/trees", "round-0/rows", *sft, trees, rows, *dpo]
    assert len(phases(small("training.dpo_roles=[]"), 0)) == 1
    (plain,) = phases(small("training.on_policy_pairs=false"), 0)
    assert [stage.name for stage in plain.stages] == [sft[0], sft[1], dpo[0], sft[2], dpo[1]]


def test_the_trees_are_sampled_by_the_sft_policies(run: tuple[Path, Trained]) -> None:
    """Their stored log-probabilities are those of the SFT weights, not of the base model's."""
    config, (path, trained) = small(), run
    experiment = prepare(config)
    (tree, _), first = (
        read_trees(path, stage, experiment)
        for stage in ("round-0/on-policy-trees", "round-0/trees")
    )
    assert any((tree.texts[d] != first[0].texts[d]).any() for d in range(3))
    for depth, role in enumerate(experiment.pipeline.names):
        node = (1, *(2,) * (depth + 1))
        prompt = experiment.pipeline.prompts[depth]
        ids = prompt.ids(tree.questions[1].text, tree.ancestors(1, node[1:]))
        example = Example(ids, (tuple(tree.ids(1, node[1:])),))
        level = tree.completions[depth]
        stored = level.log_probabilities[node][: level.lengths[node]].sum()
        start_weights = experiment.policy.init(experiment.base, jax.random.key(0))
        (after,), (before,) = (
            reference_logps(experiment.policy, experiment.base, weights, [example], 1)[0]
            for weights in (trained.sft[role], start_weights)
        )
        assert after == pytest.approx(stored, abs=2e-3), role
        assert abs(before - stored) > 10 * abs(after - stored), role


def test_pairs_come_from_them_and_dpo_starts_at_the_sft_policy(run: tuple[Path, Trained]) -> None:
    path, _ = run
    experiment = prepare(small())
    trees = read_trees(path, "round-0/on-policy-trees", experiment)
    values = {}
    for tree in trees:
        for depth in range(3):
            rewards = tree.rewards.mean(axis=tuple(range(depth + 2, tree.rewards.ndim)))
            for (row, *branches), value in np.ndenumerate(rewards):
                values[tree.questions[row].id, tuple(branches)] = value
    lines = (path / "round-0/on-policy-rows/refiner/pairs.jsonl").read_text().splitlines()
    assert lines
    for pair in map(json.loads, lines):
        chosen, rejected = (
            values[pair[side]["question"], tuple(pair[side]["path"])]
            for side in ("chosen", "rejected")
        )
        assert (chosen, rejected) == (1, 0)
    counts = row_counts(RunDirectory.read(path), 0)
    assert counts["refiner"]["pairs"] == len(lines)
    sft = (path / "round-0/rows/refiner/sft.jsonl").read_text().splitlines()
    assert counts["refiner"]["rows"] == len(sft)
    steps = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    first = next(step for step in steps if step["stage"] == "round-0/refiner/dpo")
    # At the reference every reward is 0.
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-3)


def test_an_interrupted_run_ends_in_the_same_weights(
    run: tuple[Path, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(run[0], tmp_path / "run"))
    for stage in ("on-policy-trees", "on-policy-rows", "verifier/dpo", "refiner/dpo"):
        shutil.rmtree(path / "round-0" / stage)
    sampled = []

    def dying(*arguments: object) -> object:
        if sampled:
            raise KeyboardInterrupt
        sampled.append(expand(*arguments))
        return sampled[0]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(malt_round, "expand", dying)
        start(path, small())
    assert [f.name for f in (path / "round-0/on-policy-trees").glob("batch-*")] == [
        "batch-00000.parquet"
    ]
    again = start(path, small())
    jax.tree.map(np.testing.assert_array_equal, again.final, run[1].final)
    like = prepare(small()).policy.like()
    restored = restore_trained(RunDirectory.read(path), small(), like)
    jax.tree.map(np.testing.assert_array_equal, restored.final, run[1].final)


def test_sft_does_not_depend_on_the_option(run: tuple[Path, Trained], tmp_path: Path) -> None:
    plain = start(tmp_path / "plain", small("training.on_policy_pairs=false"))
    jax.tree.map(np.testing.assert_array_equal, plain.sft, run[1].sft)
    differs = [
        not np.array_equal(x, y)
        for x, y in zip(
            jax.tree.leaves(plain.final["refiner"]),
            jax.tree.leaves(run[1].final["refiner"]),
            strict=True,
        )
    ]
    assert any(differs)
