"""The sharding of every array of Llama 3.1 8B on two sets of devices, as text.

`python -m tests.sharding.golden_shardings` writes the files that test_rules.py compares with, so
that a change of a sharding shows as a change of these files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from malt_jax.checkpoints.checkpoint import PRESETS
from malt_jax.config import MESH_AXES, Config, load_config
from malt_jax.malt.experiment import mesh_requests, models
from malt_jax.model.levels import level_spec
from malt_jax.model.llama import variable_specs
from malt_jax.sampling.decode import decode_state_spec
from malt_jax.sharding.mesh import Hardware, Meshes, Sizes, choose
from malt_jax.sharding.rules import abstract, array_specs
from malt_jax.training.batches import BATCH_AXES, Batches, Example
from malt_jax.training.policy import Policy
from malt_jax.training.step import state_spec

FOLDER = Path(__file__).parent / "golden"
MODEL = "llama-3.1-8b"
CASES: dict[str, tuple[Hardware, list[str]]] = {
    "v5e-16": (Hardware(devices=16, memory=15.75 * 2**30), []),
    "8-devices": (
        Hardware(devices=8, memory=64 * 2**30),
        [
            *("sampling_mesh.data=4", "sampling_mesh.tensor=2"),
            *("training_mesh.data=2", "training_mesh.fsdp=2", "training_mesh.tensor=2"),
        ],
    ),
}
TOKENS = 512
"""In every segment of a prompt and in a completion."""

Arrays = dict[str, dict[str, jax.ShapeDtypeStruct]]
"""The arrays of each stage by what they belong to and their path in it."""


def arrays(case: str) -> Arrays:
    """Every array of a run with the paper's settings, with its sharding."""
    hardware, overrides = CASES[case]
    config = load_config(None, [f"model.name={MODEL}", "model.dtype=bfloat16", *overrides])
    dtype = jnp.bfloat16
    sizes = choose(*mesh_requests(config, PRESETS[MODEL], dtype), hardware)
    # By default their axes would be JAX's explicit ones.
    automatic = (AxisType.Auto,) * len(MESH_AXES)
    sampling, training = (AbstractMesh(tuple(size), MESH_AXES, automatic) for size in sizes)
    trained, sampled = models(config, PRESETS[MODEL], dtype, Meshes(sampling, training))
    described: Arrays = {}
    for title, tree in (*_sampling(config, sampled), *_learning(config, trained)):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        described[title] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves
        }
    return described


def _sampling(config: Config, model: Any) -> Iterator[tuple[str, Any]]:
    where = f"sampling on {Sizes(*model.mesh.axis_sizes)}"
    for name, tree in abstract(model.mesh, variable_specs(model)).items():
        yield f"{where}: {name}", tree
    nodes = (config.sampling.questions_per_batch, *(r.branching for r in config.pipeline.roles))
    for depth in range(len(nodes)):
        level = abstract(model.mesh, level_spec(model, nodes[:depth], TOKENS))
        yield f"{where}: cache level {depth}", level
    state = abstract(model.mesh, decode_state_spec(model, nodes, TOKENS))
    yield f"{where}: decode state", state


def _learning(config: Config, model: Any) -> Iterator[tuple[str, Any]]:
    where = f"training on {Sizes(*model.mesh.axis_sizes)}"
    policy = Policy(model, config.training.method)
    yield f"{where}: params", abstract(model.mesh, variable_specs(model)["params"])
    yield f"{where}: state", abstract(model.mesh, state_spec(policy, config.dpo))
    examples = [Example([token] * TOKENS, ([token] * TOKENS,) * 2) for token in (1, 2)]
    logps = np.zeros((2, 2), np.float32)
    batch = Batches(examples, config.dpo.batch_size, 0, reference_logps=logps).batch(0, 0)
    yield f"{where}: batch of pairs", abstract(model.mesh, array_specs(batch, BATCH_AXES))


def device_bytes(array: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on each device."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def text(case: str) -> str:
    """A line an array: path, type, what its axes are split over, bytes on each device."""
    lines = [f"{MODEL}, {case}: how each array is split, and its bytes on each device"]
    for title, members in arrays(case).items():
        lines += ["", f"{title}: {sum(map(device_bytes, members.values())):,}"]
        for path, array in members.items():
            shape = f"{array.dtype}[{','.join(map(str, array.shape))}]"
            split = ", ".join(map(str, array.sharding.spec)) or "replicated"
            lines.append(f"  {path:44} {shape:38} ({split}) {device_bytes(array):,}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in CASES:
        (FOLDER / f"{name}.txt").write_text(text(name), encoding="utf-8")
