"""A learning rate that is too high stops the stage before anything useless is written."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from malt_jax.config import Config, SftConfig
from malt_jax.malt.divergence import Diverged, require_finite
from malt_jax.malt.objectives import Sft
from malt_jax.malt.stage import Records, train_stage
from malt_jax.model.llama import Llama, Params, init_params
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.runs.metrics import Metrics
from malt_jax.training.batches import Batches
from malt_jax.training.policy import Policy
from tests.training.small import LLAMA, random_examples

NAME = "round-0/verifier/sft"
EXAMPLES = [
    dataclasses.replace(example, question=100 + index)
    for index, example in enumerate(random_examples(8, completions=1))
]


def sft(rate: float) -> Sft:
    return Sft(SftConfig(learning_rate=rate, batch_size=4, epochs=3, warmup_share=0.0))


def train(run: RunDirectory, rate: float) -> Params:
    policy = Policy(Llama(LLAMA), "full")
    base = init_params(policy.model, jax.random.key(0))
    batches = Batches(EXAMPLES, 4, seed=0)
    with Metrics(run.path) as metrics:
        records = Records(run, metrics, save_every=1)
        start = policy.init(base, jax.random.key(1))
        return train_stage(NAME, sft(rate), policy, base, start, batches, records)


def test_a_stage_that_diverges_stops_and_keeps_its_last_good_state(tmp_path: Path) -> None:
    asked = sorted(EXAMPLES[row].question or 0 for row in Batches(EXAMPLES, 4, seed=0).at(1).rows)
    said = (
        rf"{NAME}: loss is nan and grad_norm is nan in update 2, on rows of the training"
        rf" questions {', '.join(map(str, asked))}: .* sft\.learning_rate \(here 1e\+30\): .*"
        rf" --trees {tmp_path} sft\.learning_rate=1e\+29"
    )
    for _ in range(2):  # the second time from the state that was saved
        with pytest.raises(Diverged, match=said), open_run(tmp_path, Config()) as run:
            train(run, 1e30)
        states = [path.name for path in (tmp_path / NAME).iterdir() if path.name[0] != "."]
        assert states == ["state-00000001"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] is None for line in lines] == [False, True]


@pytest.mark.parametrize("bad", ["loss", "grad_norm"])
def test_means_over_nothing_are_no_divergence(bad: str, tmp_path: Path) -> None:
    batches, run = Batches(EXAMPLES, 8, seed=0), RunDirectory(tmp_path, Config())  # type: ignore[arg-type]
    values = {"loss": 1.0, "grad_norm": 2.0, "rewards/chosen": np.nan}
    require_finite(run, NAME, sft(1.0), batches, 1, values)
    with pytest.raises(Diverged, match=rf": {bad} is inf in .*100, 101, .* 107:"):
        require_finite(run, NAME, sft(1.0), batches, 1, values | {bad: np.inf})
