"""A run whose roles have random weights: what training leaves, without training."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import Config, load_config
from malt_jax.export import __main__ as export
from malt_jax.model.config import Llama
from malt_jax.runs.checkpoints import save_tree
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.training.policy import Policy

OPTIONS = (
    "seed=3",
    "task.test_questions=3",
    "sampling.max_tokens=40",
    "sampling.chunk=40",
    "sampling.top_p=0.9",
    "lora.rank=4",
    "lora.alpha=6.0",
    "lora.targets=[q, k, v, o, gate, up, down]",
    "evaluation.questions_per_batch=3",
    "evaluation.votes=2",
)
STAGES = (
    "round-0/generator/sft",
    "round-0/verifier/sft",
    "round-0/verifier/dpo",
    "round-0/refiner/sft",
    "round-0/refiner/dpo",
)
SYSTEM = {
    "accuracy": 0.5,
    "ci95": [0.25, 0.75],
    "questions": 3,
    "seeds": 1,
    "calls": 3,
    "tokens": 30.0,
    "prompt_tokens": 90.0,
    "seconds": 0.1,
    "paper_protocol": None,
}
RESULTS: dict[str, Any] = {
    "model": "tiny",
    "task": "riddles",
    "systems": {"sa": SYSTEM, "malt": SYSTEM},
    "comparisons": {},
}


def policy_of(config: Config) -> Policy:
    shape = StoredCheckpoint(config.model.name).config
    lora = config.lora if config.training.method == "lora" else None
    return Policy(Llama(shape, lora=lora), config.training.method)


def random_weights(policy: Policy, seed: int) -> Any:
    """Weights of a role that differ from the untrained ones enough to change many tokens."""
    rng = np.random.default_rng(seed)

    def noise(shape: tuple[int, ...], size: float) -> jax.Array:
        return jnp.asarray(size * rng.standard_normal(shape, np.float32))

    if policy.method == "lora":
        return jax.tree.map(lambda spec: noise(spec.shape, 0.05), policy.spec)
    base = StoredCheckpoint("tiny").load(dtype=jnp.float32, key=jax.random.key(0)).params
    return jax.tree.map(lambda x: x + noise(x.shape, 0.01), base)


def make_run(
    path: Path, *overrides: str, stages: tuple[str, ...] = STAGES, results: Any = RESULTS
) -> RunDirectory:
    """A run directory with these finished training stages, and results.json unless None."""
    config = load_config(None, [*OPTIONS, *overrides])
    policy = policy_of(config)
    with open_run(path, config) as directory:
        for number, name in enumerate(stages):
            with directory.stage(name) as stage:
                save_tree(stage.path / "weights", random_weights(policy, number))
        if results is not None:
            directory.write("results.json", json.dumps(results))
    return RunDirectory.read(path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs") / "lora")


@pytest.fixture(scope="session")
def exported(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of `run`, with the base model and merged checkpoints."""
    out = tmp_path_factory.mktemp("exports") / "lora"
    export.main([str(run.path), "--out", str(out), "--merged", "--base"])
    return out
