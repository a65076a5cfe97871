"""The stages of a run by name, and the weights that they left."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from malt_jax.config import Config, ProcessesConfig, load_config
from malt_jax.distributed.processes import joined
from malt_jax.malt.round import restore_trained, stage_names
from malt_jax.runs.checkpoints import save_tree
from malt_jax.runs.directory import RunDirectory, open_run


def test_stages_follow_the_objectives_of_the_roles() -> None:
    roles = "pipeline.roles=[{name: generator}, {name: verifier}]"
    config = load_config(None, ["rounds=2", roles, "training.dpo_roles=[verifier]"])
    first = ["trees", "rows", "generator/sft", "verifier/sft", "verifier/dpo"]
    assert stage_names(config) == [f"round-{number}/{name}" for number in (0, 1) for name in first]


def test_the_weights_of_the_last_stages_are_restored(tmp_path: Path) -> None:
    stages = ("round-0/verifier/sft", "round-0/verifier/dpo", "round-0/refiner/sft")
    with joined(ProcessesConfig(), {}), open_run(tmp_path / "run", Config()) as run:
        for number, name in enumerate(stages):
            with run.stage(name) as stage:
                save_tree(stage.path / "weights", {"a": jnp.full(2, number, jnp.float32)})

    directory = RunDirectory.read(tmp_path / "run")
    found = restore_trained(directory, directory.config, {"a": jnp.zeros(2)})
    first = {role: float(np.max(weights["a"])) for role, weights in found.sft.items()}
    last = {role: float(np.max(weights["a"])) for role, weights in found.final.items()}
    assert first == {"verifier": 0, "refiner": 2}
    assert last == {"verifier": 1, "refiner": 2}
