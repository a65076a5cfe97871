import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from malt_jax.config import LoraConfig
from malt_jax.model.llama import Llama, Params, forward, next_logits
from malt_jax.model.lora import merge_adapter
from malt_jax.training.batches import Batch, Batches, Example
from malt_jax.training.policy import Policy, SamplingWeights
from malt_jax.training.step import completion_logps, sum_logps
from tests.training.small import LLAMA, random_examples, same_bits, trained


def naive_logps(
    policy: Policy, base: Params, tree: Params, examples: list[Example]
) -> Float[Array, "B N"]:
    """Every completion a row of its own with the prompt in front of it, and plain log-softmax."""
    rows = [[*e.prompt, *completion] for e in examples for completion in e.completions]
    width = max(map(len, rows))
    tokens = jnp.asarray([row + [0] * (width - len(row)) for row in rows])
    variables = policy.variables(base, tree)
    lengths = jnp.asarray([len(row) for row in rows])
    hidden, _ = forward(policy.model, variables, tokens, lengths)
    logits = next_logits(policy.model, variables, hidden)
    logps = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    logps = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
    begins = [len(e.prompt) for e in examples for _ in e.completions]
    mask = [
        [begin <= place < len(row) for place in range(1, width)]
        for begin, row in zip(begins, rows, strict=True)
    ]
    return jnp.sum(logps * jnp.asarray(mask, jnp.float32), axis=-1).reshape(len(examples), -1)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_shared_prompts_equal_concatenated_rows(
    method: str, base: Params, request: pytest.FixtureRequest
) -> None:
    policy: Policy = request.getfixturevalue(method)
    tree = trained(policy, base)
    examples = random_examples(3, completions=2)
    batch = jax.tree.map(jnp.asarray, Batches(examples, 4, seed=0).batch(0, 0))
    signs = jnp.asarray([1.0, -0.7])

    def shared(tree: Params) -> Array:
        logps = sum_logps(policy.score(base, tree, batch), batch)
        return jnp.sum(batch.weights * (logps @ signs))

    def naive(tree: Params) -> Array:
        return jnp.sum(naive_logps(policy, base, tree, examples) @ signs)

    value, gradient = jax.jit(jax.value_and_grad(shared))(tree)
    expected, expected_gradient = jax.jit(jax.value_and_grad(naive))(tree)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        gradient,
        expected_gradient,
    )


def test_padding_rows_and_wider_padding_change_nothing(lora: Policy, base: Params) -> None:
    tree = trained(lora, base)
    examples = random_examples(3, completions=2)
    long = Example([1] * 20, ([2] * 20, [3]))
    narrow = Batches(examples, 4, seed=0).batch(0, 0)
    wide = Batches([*examples, long], 4, seed=0).batch(0, 0)
    assert wide.prompts.shape > narrow.prompts.shape
    logps = {}
    for batch in (narrow, wide):
        values = completion_logps(lora, base, tree, batch)
        for row in range(3):
            slot = int(np.flatnonzero(batch.rows == row)[0])
            logps.setdefault(row, []).append(values[slot])
    for first, second in logps.values():
        np.testing.assert_allclose(first, second, rtol=1e-5)


def test_a_common_beginning_changes_nothing(lora: Policy, base: Params) -> None:
    tree = trained(lora, base)
    beginning = [3, 1, 4, 1, 5] * 13
    rows = [
        Example([*beginning, *row.prompt], row.completions)
        for row in random_examples(3, completions=2)
    ]
    other = Example([2, 7, 18], ([2, 8], [1]))
    shared = Batches(rows, 4, seed=0).batch(0, 0)
    alone = Batches([*rows, other], 4, seed=0).batch(0, 0)
    assert (shared.prefix.tolist(), alone.prefix.size) == (beginning[:64], 0)
    order = [int(np.flatnonzero(alone.rows == row)[0]) for row in shared.rows[:3]]

    def logps(tree: Params, batch: Batch) -> jax.Array:
        return completion_logps(lora, base, tree, batch)

    def total(tree: Params, batch: Batch, slots: list[int]) -> jax.Array:
        return jnp.sum(logps(tree, batch)[jnp.array(slots)])

    np.testing.assert_allclose(
        logps(tree, shared)[:3], logps(tree, alone)[jnp.array(order)], rtol=1e-5
    )
    ours = jax.grad(total)(tree, shared, [0, 1, 2])
    expected = jax.grad(total)(tree, alone, order)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_new_role_behaves_as_the_base(lora: Policy, full: Policy, base: Params) -> None:
    batch = Batches(random_examples(4, completions=1), 4, seed=0).batch(0, 0)
    plain = completion_logps(full, base, base, batch)
    for policy in (lora, full):
        start = policy.init(base, jax.random.key(0))
        np.testing.assert_allclose(completion_logps(policy, base, start, batch), plain, rtol=1e-6)


def test_full_training_starts_from_a_float32_copy(full: Policy, base: Params) -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    start = full.init(half, jax.random.key(0))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(start))
    copy = full.init(base, jax.random.key(0))
    assert same_bits(copy, base)
    jax.tree.leaves(copy)[0].delete()
    assert not jax.tree.leaves(base)[0].is_deleted()


def test_method_and_model_have_to_fit() -> None:
    with pytest.raises(ValueError, match="lora"):
        Policy(Llama(LLAMA), "lora")
    with pytest.raises(ValueError, match="lora"):
        Policy(Llama(LLAMA, LoraConfig()), "full")


def test_sampling_takes_base_and_merged_weights_while_its_block_runs(
    lora: Policy, base: Params
) -> None:
    merged = Llama(LLAMA)
    with SamplingWeights(merged, lora, base) as weights:
        untrained = weights.of(None)["params"]
        assert weights.of(None)["params"] is untrained
        assert same_bits(untrained, base)
        # A new adapter changes nothing, a trained one does; the base stays as it is.
        new = lora.init(base, jax.random.key(0))
        assert same_bits(weights.of(new)["params"], base)
        assert not same_bits(weights.of(trained(lora, base))["params"], base)
        assert same_bits(untrained, base)
    with SamplingWeights(lora.model, lora, base) as weights:
        variables = weights.of(trained(lora, base))
        assert same_bits(variables["adapter"], trained(lora, base))
        assert variables["params"] is weights.of(None)["params"]


def test_the_adapter_s_weight_acts_in_sampling_and_not_in_training(base: Params) -> None:
    lora = LoraConfig(rank=4, alpha=8.0)
    plain, weighted = (
        Policy(Llama(LLAMA, dataclasses.replace(lora, adapter_weight=weight)), "lora")
        for weight in (1.0, 0.25)
    )
    tree = trained(plain, base)
    batch = Batches(random_examples(3, completions=1), 4, seed=0).batch(0, 0)
    logps = [completion_logps(policy, base, tree, batch) for policy in (plain, weighted)]
    np.testing.assert_array_equal(*logps)
    quarter = merge_adapter(base, tree, dataclasses.replace(lora, alpha=2.0))
    with SamplingWeights(Llama(LLAMA), weighted, base) as weights:
        merged = weights.of(tree)["params"]
        for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(quarter), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        assert same_bits(weights.of(None)["params"], base)
    # Where the adapter is not merged, it is weighted itself.
    with SamplingWeights(weighted.model, weighted, base) as weights:
        variables = weights.of(tree)
    sampled = merge_adapter(variables["params"], variables["adapter"], lora)
    for a, b in zip(jax.tree.leaves(sampled), jax.tree.leaves(quarter), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
