import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import SftConfig
from malt_jax.errors import UserError
from malt_jax.malt.objectives import Sft
from malt_jax.model.llama import Params
from malt_jax.training.batches import Batches, Example
from malt_jax.training.loop import rows_that_fit, start_state, total_updates, train
from malt_jax.training.policy import Policy
from malt_jax.training.step import train_step
from tests.training.small import random_examples, same_bits, train_all, trained

CONFIG = SftConfig(learning_rate=3e-2, batch_size=4, epochs=60, warmup_share=0.1)


def copied(tree: Params) -> Params:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def test_one_batch_can_be_learned_by_heart(lora: Policy, base: Params) -> None:
    start = lora.init(base, jax.random.key(1))
    other_role = lora.init(base, jax.random.key(2))
    before = copied({"base": base, "start": start, "other": other_role})
    after, seen = train_all(lora, Sft(CONFIG), base, start, random_examples(4, completions=1))

    assert len(seen) == 60
    assert seen[0]["loss"] > 2
    assert seen[-1]["loss"] < 0.05
    assert seen[-1]["mean_token_accuracy"] == 1
    assert seen[-1]["entropy"] < seen[0]["entropy"]
    rates = [step["learning_rate"] for step in seen]
    np.testing.assert_allclose(rates[:6], 3e-2 * np.arange(1, 7) / 6, rtol=1e-6)
    assert rates[5] == max(rates) and min(rates) > 0
    # Only the returned tree is new: the base, the start and other roles keep every bit.
    assert same_bits(before, {"base": base, "start": start, "other": other_role})
    assert not same_bits(after, start)


def test_full_training_leaves_the_base_as_it_is(full: Policy, base: Params) -> None:
    before = copied(base)
    start = full.init(base, jax.random.key(1))
    config = dataclasses.replace(CONFIG, epochs=30, learning_rate=1e-2)
    _, history = train_all(full, Sft(config), base, start, random_examples(4, 1))
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]
    assert same_bits(before, base)
    assert same_bits(before, start)


def test_a_run_is_repeated_bit_for_bit_in_few_programs(lora: Policy, base: Params) -> None:
    start = lora.init(base, jax.random.key(1))
    config = dataclasses.replace(CONFIG, epochs=2)
    programs = train_step._cache_size()
    runs = [
        train_all(lora, Sft(config), base, start, random_examples(rows, 1), seed=seed)[0]
        for rows, seed in ((10, 0), (10, 0), (10, 1), (7, 0))
    ]
    # One program serves roles, seeds and numbers of steps alike.
    assert train_step._cache_size() <= programs + 1
    assert same_bits(runs[0], runs[1])
    assert not same_bits(runs[0], runs[2])


def test_every_length_of_training_is_an_option(
    lora: Policy, base: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(rows: int, **changes: Any) -> int:
        config = dataclasses.replace(CONFIG, **changes)
        start = lora.init(base, jax.random.key(1))
        examples = random_examples(rows, 1)
        return len(train_all(lora, Sft(config), base, start, examples)[1])

    # The update itself is tested elsewhere.
    monkeypatch.setattr(
        "malt_jax.training.loop.train_step",
        lambda policy, objective, state, *rest: (state, {"loss": jnp.zeros(())}),
    )
    assert steps(10, epochs=2, batch_size=4) == 6
    assert steps(10, epochs=2, batch_size=8) == 4
    assert steps(10, epochs=3, batch_size=8) == 6
    assert steps(10, epochs=None, batch_size=8) == 20


def test_the_generator_yields_every_state_and_goes_on_from_it(lora: Policy, base: Params) -> None:
    start, objective = trained(lora, base), Sft(dataclasses.replace(CONFIG, epochs=2))
    batches = Batches(random_examples(10, 1), 4, seed=0)
    state, steps = start_state(lora, objective, start), []
    updates = train(lora, objective, base, state, batches)
    for step, state, _ in updates:
        assert int(state.step) == step
        steps.append(step)
        if step == 3:
            kept = copied(state)
    assert steps == [1, 2, 3, 4, 5, 6] and total_updates(objective.options, 10) == 6
    for step, resumed, _ in train(lora, objective, base, kept, batches):
        steps.append(step)
        again = resumed
    assert steps[6:] == [4, 5, 6]
    assert same_bits(state.trainable, again.trainable)


def test_rows_beyond_the_models_positions_are_left_out() -> None:
    long, *short = Example([1] * 60, ([2] * 5,)), *random_examples(4, 1)
    assert rows_that_fit([long, *short], 64, "SFT rows") == (short, 1)
    with pytest.raises(UserError, match=r"none of the 1 SFT rows fits.*64 positions.*needs 65"):
        rows_that_fit([long], 64, "SFT rows")
    with pytest.raises(UserError, match="no SFT rows"):
        rows_that_fit([], 64, "SFT rows")
