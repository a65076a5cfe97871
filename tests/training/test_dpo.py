import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import DpoConfig, LoraConfig
from malt_jax.malt.objectives import Dpo
from malt_jax.model.llama import Llama, Params
from malt_jax.training.loop import reference_logps
from malt_jax.training.policy import Policy
from tests.training.small import LLAMA, random_examples, same_bits, train_all, trained

CONFIG = DpoConfig(learning_rate=1e-2, batch_size=4, epochs=30, warmup_share=0.1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    # Dropout is there to show that it does not act in DPO.
    return Policy(Llama(LLAMA, LoraConfig(rank=4, dropout=0.5)), "lora")


def test_starts_at_log_2_and_separates_the_pairs(policy: Policy, base: Params) -> None:
    start = trained(policy, base)
    before = jax.tree.map(lambda x: jnp.array(x, copy=True), {"base": base, "start": start})
    pairs = random_examples(4, completions=2)
    reference = reference_logps(policy, base, start, pairs, CONFIG.batch_size)
    after, history = train_all(policy, Dpo(CONFIG), base, start, pairs, reference=reference)

    first, last = history[0], history[-1]
    np.testing.assert_allclose(first["loss"], math.log(2), rtol=1e-5)
    np.testing.assert_allclose(first["rewards/margins"], 0, atol=1e-5)
    assert last["loss"] < 0.2
    assert last["rewards/accuracies"] == 1
    assert last["rewards/margins"] > 2
    assert last["logps/chosen"] > last["logps/rejected"]

    # The reference is the start, which has not moved.
    assert same_bits(before, {"base": base, "start": start})
    again = reference_logps(policy, base, start, pairs, CONFIG.batch_size)
    np.testing.assert_array_equal(again, reference)
    moved = reference_logps(policy, base, after, pairs, CONFIG.batch_size)
    margins = (moved - again)[:, 0] - (moved - again)[:, 1]
    np.testing.assert_allclose(CONFIG.beta * margins.mean(), last["rewards/margins"], rtol=0.05)


def test_the_loss_compares_with_the_given_reference(policy: Policy, base: Params) -> None:
    start = trained(policy, base)
    pairs = random_examples(5, completions=2)
    reference = reference_logps(policy, base, start, pairs, CONFIG.batch_size)
    shifted = reference - np.asarray([[3.0, 0.0]], np.float32)
    _, history = train_all(policy, Dpo(CONFIG), base, start, pairs, reference=shifted)
    # A chosen completion that is e**3 times as probable as under the reference.
    expected = math.log1p(math.exp(-CONFIG.beta * 3.0))
    np.testing.assert_allclose(history[0]["loss"], expected, rtol=1e-4)
