"""The model over levels, its adapter, and its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from malt_jax.config import LoraConfig
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import (
    Llama,
    forward_levels,
    init_adapter,
    init_params,
    next_logits,
    variable_specs,
)
from malt_jax.model.llama import forward as eager_forward
from malt_jax.model.lora import dropout, merge_adapter
from malt_jax.sharding.rules import ArraySpec
from tests.model.small import CONFIG, MIXED, nonzero_adapter, small_model

LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.5)

forward = jax.jit(eager_forward, static_argnums=0)


def tokens(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 300, shape), jnp.int32)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["alike", "mixed"])
def test_levels_equal_the_concatenated_sequence(config: LlamaConfig) -> None:
    model, params = small_model(config=config)
    variables = {"params": params}
    question, answer, reply = tokens(1, 12), tokens(1, 2, 9, seed=1), tokens(1, 2, 3, 6, seed=2)
    valid = {"question": 7, "answer": [[9, 4]], "reply": 6}
    _, first = forward(model, variables, question, jnp.array([valid["question"]]))
    _, second = forward(model, variables, answer, jnp.array(valid["answer"]), [first])
    hidden, _ = forward(model, variables, reply, jnp.full((1, 2, 3), 6), [first, second])
    for a, r in np.ndindex(2, 3):
        row = jnp.concatenate(
            [question[0, :7], answer[0, a, : valid["answer"][0][a]], reply[0, a, r]]
        )
        whole, _ = forward(model, variables, row[None], jnp.array([len(row)]))
        np.testing.assert_allclose(hidden[0, a, r], whole[0, -6:], atol=2e-5)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["alike", "mixed"])
def test_levels_in_one_pass_equal_one_after_the_other(config: LlamaConfig) -> None:
    """Below a root that all share: hidden states, caches and gradients."""
    model, params = small_model(config=config)
    root = tokens(6)
    questions, answers = tokens(2, 12, seed=1), tokens(2, 3, 9, seed=2)
    valid = jnp.array([7, 12]), jnp.array([[9, 4, 1], [2, 9, 3]])

    def together(params):
        variables = {"params": params}
        _, above = forward(model, variables, root, jnp.int32(6))
        segments = list(zip((questions, answers), valid, strict=True))
        return forward_levels(model, variables, segments, [above])

    def in_turn(params):
        variables = {"params": params}
        _, above = forward(model, variables, root, jnp.int32(6))
        first, questions_level = forward(model, variables, questions, valid[0], [above])
        last, answers_level = forward(model, variables, answers, valid[1], [above, questions_level])
        return [first, last], [questions_level, answers_level]

    def gradient(run):
        return jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(run(params)[0][1]))))(params)

    def assert_close(ours, theirs, tolerance):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, tolerance), ours, theirs)

    assert_close(jax.jit(together)(params), jax.jit(in_turn)(params), 2e-5)
    assert_close(gradient(together), gradient(in_turn), 1e-3)


@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["alike", "mixed"])
def test_gradients_flow_through_the_levels(config: LlamaConfig) -> None:
    """Shared levels give the gradient of the sum over separate rows."""
    model, params = small_model(config=config)
    prompt, replies = tokens(1, 8), tokens(1, 3, 5, seed=1)

    def shared(params):
        _, level = forward(model, {"params": params}, prompt, jnp.array([8]))
        hidden, _ = forward(model, {"params": params}, replies, jnp.full((1, 3), 5), [level])
        return jnp.sum(jnp.sin(hidden))

    def separate(params):
        rows = jnp.concatenate([jnp.repeat(prompt, 3, axis=0), replies[0]], axis=1)
        hidden, _ = forward(model, {"params": params}, rows, jnp.full(3, 13))
        return jnp.sum(jnp.sin(hidden[:, 8:]))

    ours, theirs = jax.jit(jax.grad(shared))(params), jax.jit(jax.grad(separate))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-3), ours, theirs)


def test_remat_changes_no_number() -> None:
    model, params = small_model()

    def loss(params, model):
        hidden, _ = forward(model, {"params": params}, tokens(2, 9), jnp.full(2, 9))
        return jnp.sum(jnp.square(next_logits(model, {"params": params}, hidden))) / 1000

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain = gradient(params, model)
    changed = gradient(params, dataclasses.replace(model, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, changed)


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 3},
        {"layer_types": ("full_attention", "sliding_attention", "sliding_attention")},
        {"local_rope_theta": None},
        {"rope_layers": ()},
        {"query_scalar": 64},
        {"attention_softcap": 0.5},
        {"scale_embeddings": True},
        {"activation": "gelu_pytorch_tanh"},
    ],
)
def test_every_option_of_the_layers_changes_the_outputs(change: dict) -> None:
    model, params = small_model(config=MIXED)
    changed = dataclasses.replace(model, config=dataclasses.replace(MIXED, **change))
    x, lengths = tokens(1, 30), jnp.array([30])
    want, _ = forward(model, {"params": params}, x, lengths)
    other, _ = forward(changed, {"params": params}, x, lengths)
    assert float(jnp.max(jnp.abs(other - want))) > 1e-3


def test_a_window_longer_than_the_sequence_changes_nothing() -> None:
    model, params = small_model()
    layers = ("full_attention", "sliding_attention", "sliding_attention")
    config = dataclasses.replace(CONFIG, sliding_window=30, layer_types=layers)
    x, lengths = tokens(1, 30), jnp.array([30])
    want, _ = forward(model, {"params": params}, x, lengths)
    got, _ = forward(Llama(config), {"params": params}, x, lengths)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_padding_does_not_matter() -> None:
    model, params = small_model()
    short = tokens(1, 6)
    padded = jnp.concatenate([short, tokens(1, 5, seed=3)], axis=1)
    _, a = forward(model, {"params": params}, short, jnp.array([6]))
    _, b = forward(model, {"params": params}, padded, jnp.array([6]))
    follow = tokens(1, 2, 4, seed=4)
    hidden_a, _ = forward(model, {"params": params}, follow, jnp.full((1, 2), 4), [a])
    hidden_b, _ = forward(model, {"params": params}, follow, jnp.full((1, 2), 4), [b])
    np.testing.assert_allclose(hidden_a, hidden_b, atol=1e-5)


def test_a_new_adapter_changes_nothing_and_a_trained_one_does() -> None:
    model, params = small_model(LORA)
    base = Llama(CONFIG)
    x, lengths = tokens(2, 7), jnp.full(2, 7)
    want, _ = forward(base, {"params": params}, x, lengths)
    new = init_adapter(model, jax.random.key(0))
    assert all(not np.any(leaf["b"]) for leaf in new["layers"]["attention"].values())
    assert all(np.any(leaf["a"]) for leaf in new["layers"]["mlp"].values())
    same, _ = forward(model, {"params": params, "adapter": new}, x, lengths)
    np.testing.assert_array_equal(same, want)
    other, _ = forward(model, {"params": params, "adapter": nonzero_adapter(model)}, x, lengths)
    assert float(jnp.max(jnp.abs(other - want))) > 1e-2


def test_adapters_only_where_they_are_wanted() -> None:
    model, _ = small_model(LoraConfig(rank=5, targets=("q", "down")))
    shapes = jax.tree.map(jnp.shape, init_adapter(model, jax.random.key(0)))
    assert shapes == {
        "layers": {
            "attention": {"q": {"a": (3, 5, 32), "b": (3, 32, 5)}},
            "mlp": {"down": {"a": (3, 5, 48), "b": (3, 32, 5)}},
        }
    }


def test_the_merged_copy_equals_the_adapter_and_leaves_the_base_alone() -> None:
    model, params = small_model(LORA)
    adapter = nonzero_adapter(model)
    before = jax.tree.map(np.array, params)
    x, lengths = tokens(2, 7), jnp.full(2, 7)
    want, _ = forward(model, {"params": params, "adapter": adapter}, x, lengths)
    merged = merge_adapter(params, adapter, LORA)
    got, _ = forward(Llama(CONFIG), {"params": merged}, x, lengths)
    np.testing.assert_allclose(got, want, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_dropout_acts_iff_a_key_is_given() -> None:
    model, params = small_model(LORA)
    variables = {"params": params, "adapter": nonzero_adapter(model)}
    x, lengths = tokens(1, 7), jnp.array([7])
    plain, _ = forward(model, variables, x, lengths)
    one, _ = forward(model, variables, x, lengths, dropout_key=jax.random.key(0))
    again, _ = forward(model, variables, x, lengths, dropout_key=jax.random.key(0))
    other, _ = forward(model, variables, x, lengths, dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, plain)


@pytest.mark.parametrize("option", [{"rank": 4}, {"alpha": 1.0}, {"targets": ("q",)}])
def test_every_lora_option_changes_the_outputs(option: dict) -> None:
    def output(lora: LoraConfig) -> jax.Array:
        model, params = small_model(lora)
        variables = {"params": params, "adapter": nonzero_adapter(model)}
        return forward(model, variables, tokens(1, 7), jnp.array([7]))[0]

    assert not np.allclose(output(LORA), output(dataclasses.replace(LORA, **option)))


def test_every_parameter_carries_logical_axes_without_being_made() -> None:
    specs = variable_specs(Llama(CONFIG, lora=LORA))
    leaves = jax.tree.leaves(specs)
    assert leaves and all(len(spec.axes) == len(spec.shape) for spec in leaves)
    kernel = specs["params"]["layers"]["mlp"]["down"]["kernel"]
    assert kernel == ArraySpec((3, 32, 48), jnp.float32, P("layers", "embed", "mlp"))


def test_the_number_of_parameters_is_that_of_the_arrays() -> None:
    bias = {"attention_bias": True, "model_type": "qwen2"}
    for change in ({}, {"tie_embeddings": True}, bias, {"qk_norm": True, "post_norms": True}):
        config = dataclasses.replace(CONFIG, **change)
        params = init_params(Llama(config), jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.num_parameters


def test_a_part_of_a_batch_has_the_mask_of_its_rows() -> None:
    x, key = jnp.ones((6, 5, 7)), jax.random.key(3)
    whole = dropout(x, 0.5, key)
    for start in (0, 2, 4):
        part = dropout(x[start : start + 2], 0.5, key, jnp.int32(start))
        np.testing.assert_array_equal(part, whole[start : start + 2])


def test_dropout_keeps_a_share_at_random() -> None:
    x = jnp.full((7, 64, 129), 3.0)
    keys = jax.random.split(jax.random.key(0), 3)
    rows = [np.asarray(dropout(x, 0.25, key)) for key in keys]
    kept = np.stack([row != 0 for row in rows]).astype(float)
    np.testing.assert_allclose(rows[0][kept[0] == 1], 4.0)
    np.testing.assert_allclose(kept.mean(axis=(1, 2, 3)), 0.75, atol=0.01)
    np.testing.assert_allclose(kept.mean(axis=(0, 1, 2)), 0.75, atol=0.06)
    # Neither neighbours nor keys are correlated.
    centred = kept - kept.mean()
    for other in (centred[1:], centred[:, 1:], centred[:, :, 1:], centred[..., 1:]):
        first = centred[tuple(slice(n) for n in other.shape)]
        assert abs(np.mean(first * other)) < 0.004
