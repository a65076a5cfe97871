"""A small random Llama and training rows for it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Params
from malt_jax.training.batches import Batches, Example
from malt_jax.training.loop import start_state, train
from malt_jax.training.policy import Policy
from malt_jax.training.step import Objective

LLAMA = LlamaConfig(
    vocab_size=29,
    d_model=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    d_ff=24,
    max_positions=64,
)


def trained(policy: Policy, base: Params, seed: int = 1) -> Params:
    """A trainable tree that is somewhere else than at the start (B = 0 has no gradient for A)."""
    tree = policy.init(base, jax.random.key(seed))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def random_examples(rows: int, completions: int, seed: int = 0) -> list[Example]:
    """Rows of ragged lengths that all fit one padded shape (P, C) = (16, 16)."""
    generator = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [
            int(x) for x in generator.integers(0, LLAMA.vocab_size, generator.integers(low, high))
        ]

    return [
        Example(tokens(1, 12), tuple(tokens(1, 9) for _ in range(completions))) for _ in range(rows)
    ]


def same_bits(left: Params, right: Params) -> bool:
    equal = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), left, right)
    return jax.tree.all(equal)


def train_all(
    policy: Policy,
    objective: Objective,
    base: Params,
    start: Params,
    examples: Sequence[Example],
    *,
    seed: int = 0,
    reference: np.ndarray | None = None,
    anchors: Sequence[Example] | None = None,
) -> tuple[Params, list[dict[str, float]]]:
    """A whole training stage: the weights after it, and the metrics of every update."""
    size = objective.options.batch_size
    batches = Batches(examples, size, seed, reference_logps=reference)
    if anchors is not None:
        batches = batches.with_anchors(Batches(anchors, size, seed))
    updates = train(policy, objective, base, start_state(policy, objective, start), batches)
    history = []
    for _, last, metrics in updates:
        history.append({name: float(value) for name, value in metrics.items()})
        trainable = last.trainable
    return trainable, history
