"""What a configuration stands for, where sampling and training have to agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import QUICKSTART, load_config
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.tree import expand
from malt_jax.training.batches import Batches, Example
from malt_jax.training.step import completion_logps


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.3)])
def test_the_learner_sees_the_probabilities_that_the_sampler_drew_from(
    dtype: str, tolerance: float
) -> None:
    """With an adapter that matters: merged into the kernels in float32, applied next to them in
    bfloat16, where the kernels' rounding would swallow it."""
    options = [f"model.dtype={dtype}", "sampling.max_tokens=24", "sampling.chunk=24"]
    experiment = prepare(load_config(QUICKSTART, options))
    assert (experiment.sampler.model.lora is None) == (dtype == "float32")
    policy, base = experiment.policy, experiment.base
    start = policy.init(base, jax.random.key(0))
    leaves, structure = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    adapter = jax.tree.unflatten(
        structure,
        [x + 0.06 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)],
    )
    questions = select_questions(experiment.task, "train", 4, seed=0)
    prompts = experiment.pipeline.prompts[:1]
    with experiment.sampling_weights() as weights:
        variables = [weights.of(adapter)]
    (sampled,) = expand(experiment.sampler, prompts, variables, questions, (2,), jax.random.key(2))
    nodes = list(np.ndindex(4, 2))
    examples = [
        Example(prompts[0].ids(questions[q].text, []), (sampled.ids(q, n),)) for q, n in nodes
    ]
    batch = Batches(examples, len(nodes), seed=0).batch(0, 0)
    learner = np.asarray(completion_logps(policy, base, adapter, batch))[:, 0]
    untrained = np.asarray(completion_logps(policy, base, start, batch))[:, 0]
    drawn = np.array([sampled.log_probabilities[nodes[row]].sum() for row in batch.rows])
    np.testing.assert_allclose(learner, drawn, atol=tolerance)
    assert np.abs(untrained - drawn).max() > 3 * np.abs(learner - drawn).max()
    assert jnp.asarray(learner).dtype == jnp.float32
