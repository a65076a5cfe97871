import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import DpoConfig, LoraConfig
from malt_jax.errors import UserError
from malt_jax.model.llama import Llama, Params
from malt_jax.training.batches import Example
from malt_jax.training.dpo import reference_logps, train_dpo
from malt_jax.training.policy import Policy
from tests.training.small import LLAMA, random_examples, same_bits, trained

CONFIG = DpoConfig(learning_rate=1e-2, batch_size=4, epochs=30, warmup_steps=2)


@pytest.fixture(scope="module")
def policy() -> Policy:
    # Dropout is there to show that it does not act in DPO.
    return Policy(Llama(LLAMA, LoraConfig(rank=4, dropout=0.5)), "lora")


def test_starts_at_log_2_and_separates_the_pairs(policy: Policy, base: Params) -> None:
    start = trained(policy, base)
    before = jax.tree.map(lambda x: jnp.array(x, copy=True), {"base": base, "start": start})
    pairs = random_examples(4, completions=2)
    result = train_dpo(policy, base, start, pairs, CONFIG, seed=0)

    first, last = result.history[0], result.history[-1]
    np.testing.assert_allclose(first["loss"], math.log(2), rtol=1e-5)
    np.testing.assert_allclose(first["rewards/margins"], 0, atol=1e-5)
    assert last["loss"] < 0.2
    assert last["rewards/accuracies"] == 1
    assert last["rewards/margins"] > 2
    assert last["logps/chosen"] > last["logps/rejected"]

    # The reference is the start, which has not moved.
    assert same_bits(before, {"base": base, "start": start})
    again = reference_logps(policy, base, start, pairs, CONFIG.batch_size)
    assert result.reference_logps is not None
    np.testing.assert_array_equal(again, result.reference_logps)
    moved = reference_logps(policy, base, result.trainable, pairs, CONFIG.batch_size)
    margins = (moved - again)[:, 0] - (moved - again)[:, 1]
    np.testing.assert_allclose(CONFIG.beta * margins.mean(), last["rewards/margins"], rtol=0.05)


def test_a_stored_reference_is_used_as_it_is(policy: Policy, base: Params) -> None:
    start = trained(policy, base)
    pairs = random_examples(5, completions=2)
    reference = reference_logps(policy, base, start, pairs, CONFIG.batch_size)
    shifted = reference - np.asarray([[3.0, 0.0]], np.float32)
    result = train_dpo(policy, base, start, pairs, CONFIG, seed=0, reference=shifted)
    # A chosen completion that is e**3 times as probable as under the reference.
    expected = math.log1p(math.exp(-CONFIG.beta * 3.0))
    np.testing.assert_allclose(result.history[0]["loss"], expected, rtol=1e-4)
    assert result.reference_logps is shifted


def test_pairs_beyond_the_models_positions_are_left_out(policy: Policy, base: Params) -> None:
    start = trained(policy, base)
    long = Example([1] * 60, ([2] * 2, [3] * 5))
    pairs = [long, *random_examples(4, completions=2)]
    result = train_dpo(policy, base, start, pairs, CONFIG, seed=0)
    assert (result.rows, result.dropped) == (4, 1)
    np.testing.assert_allclose(result.history[0]["loss"], math.log(2), rtol=1e-5)
    assert result.reference_logps is not None
    assert list(np.isnan(result.reference_logps).all(axis=1)) == [True, *[False] * 4]
    with pytest.raises(UserError, match="no preference pairs"):
        train_dpo(policy, base, start, [], CONFIG, seed=0)
