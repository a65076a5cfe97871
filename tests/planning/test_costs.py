"""Work counted in jaxprs, against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from malt_jax.model.llama import forward, next_logits, variable_specs
from malt_jax.planning.costs import Work, work
from malt_jax.sharding.mesh import Sizes
from malt_jax.sharding.rules import abstract
from tests.model.small import CONFIG, small_model

ONE = Sizes(1, 1, 1)
X, W = jax.ShapeDtypeStruct((4, 8, 16), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
PRODUCT = 2 * 4 * 8 * 32 * 16


def counted(function, *arguments, mesh=ONE, **options) -> Work:
    return work(jax.make_jaxpr(function)(*arguments).jaxpr, mesh, **options)


def product(x, w):
    return jnp.einsum("bti,oi->bto", x, w)


def test_a_product() -> None:
    done = counted(product, X, W)
    assert done == Work(PRODUCT, 4 * (4 * 8 * 16 + 32 * 16 + 4 * 8 * 32))


def test_weights_are_split_over_tensor_and_activations_over_all() -> None:
    done = counted(product, X, W, mesh=Sizes(1, 4, 2))
    assert done.flops == PRODUCT / 8
    assert done.bytes_accessed == 4 * ((4 * 8 * 16 + 4 * 8 * 32) / 8 + 32 * 16 / 2)


def test_every_iteration_counts() -> None:
    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (c + product(x, w).sum(), None), 0.0, None, length=5)

    def looped(x, w):
        return jax.lax.while_loop(lambda c: c < 9.0, lambda c: c + product(x, w).sum(), 0.0)

    assert counted(scanned, X, W) == Work(0, 0).plus(counted(product, X, W), 5)
    assert counted(looped, X, W, loop_steps=7) == Work(0, 0).plus(counted(product, X, W), 7)


def test_the_costliest_branch_counts() -> None:
    def either(x, w):
        return jax.lax.cond(x[0, 0, 0] > 0, lambda: product(x, w).sum(), lambda: x.sum())

    assert counted(either, X, W) == counted(product, X, W)


def test_what_the_backward_pass_computes_again_counts() -> None:
    loss = lambda x, w: jnp.sum(jnp.sin(jnp.sin(product(x, w))))  # noqa: E731
    plain = counted(jax.grad(loss, argnums=(0, 1)), X, W)
    again = counted(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), X, W)
    assert plain.flops == 3 * PRODUCT and again.flops == 4 * PRODUCT


@pytest.mark.parametrize("tokens", [1, 24])
def test_a_forward_pass_is_two_operations_a_weight_and_token(tokens: int) -> None:
    model = small_model()[0]
    variables = abstract(None, variable_specs(model))

    def run(variables, ids, lengths):
        hidden, _ = forward(model, variables, ids, lengths)
        return next_logits(model, variables, hidden)

    ids, lengths = jnp.zeros((3, tokens), jnp.int32), jnp.full(3, tokens)
    done = counted(run, variables, ids, lengths)
    c = CONFIG
    norms = (2 * c.num_layers + 1) * c.d_model
    looked_up = 0 if c.tie_embeddings else c.vocab_size * c.d_model
    weights = c.num_parameters - norms - looked_up
    attention = 4 * 3 * tokens * tokens * c.num_heads * c.head_dim * c.num_layers
    angles = 3 * tokens * c.head_dim  # positions times frequencies, half of them
    assert done.flops == 2 * weights * 3 * tokens + attention + angles
