"""`python -m tests.sharding.eight_devices FILE`: samples and trains a small Llama on meshes of
eight fake CPU devices, and writes what came out. The devices have to be there before JAX starts."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any
from unittest import mock

import numpy as np

MESHES = {"data": (8, 1, 1), "all": (2, 2, 2)}
"""Sizes of (data, fsdp, tensor), in words."""

QUESTIONS, ROWS = 6, 11
BRANCHES = 2
LEARNING_RATE = 1e-2
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Compiling takes nearly all of the time.
    "--xla_backend_optimization_level=0",
)
STOPS = tuple(range(0, 300, 12))


def outcomes(mesh: Any) -> dict[str, np.ndarray]:
    """Completions of a tree and an adapter after SFT and after DPO."""
    import jax

    from malt_jax.config import DpoConfig, LoraConfig, SftConfig
    from malt_jax.malt.objectives import Dpo, Sft
    from malt_jax.model.llama import Llama, init_params
    from malt_jax.sampling.decode import decode_chunk
    from malt_jax.sampling.sampler import Request, Sampler
    from malt_jax.sampling.token import SamplingParameters
    from malt_jax.sharding.rules import device_put, to_host
    from malt_jax.training.batches import Example
    from malt_jax.training.loop import reference_logps
    from malt_jax.training.policy import Policy
    from tests.model.small import CONFIG, nonzero_adapter
    from tests.training.small import train_all

    config = dataclasses.replace(CONFIG, vocab_size=304)
    model = Llama(config, LoraConfig(rank=4, dropout=0.0), mesh=mesh)
    base = init_params(model, jax.random.key(1))
    policy = Policy(model, "lora")

    generator = np.random.default_rng(0)

    def tokens() -> list[int]:
        return generator.integers(20, 300, generator.integers(3, 16)).tolist()

    def examples(completions: int) -> list[Example]:
        return [Example(tokens(), tuple(tokens() for _ in range(completions))) for _ in range(ROWS)]

    start = policy.init(base, jax.random.key(2))
    sft = SftConfig(learning_rate=LEARNING_RATE, batch_size=8, epochs=2, warmup_share=0.0)
    first, sft_history = train_all(policy, Sft(sft), base, start, examples(1))
    dpo = DpoConfig(learning_rate=LEARNING_RATE, batch_size=8, epochs=1, warmup_share=0.0)
    pairs = examples(2)
    reference = reference_logps(policy, base, first, pairs, dpo.batch_size)
    second, dpo_history = train_all(policy, Dpo(dpo), base, first, pairs, reference=reference)

    levels = [[tokens()], [tokens() for _ in range(QUESTIONS)]]
    parameters = SamplingParameters.create(0.8, stop_ids=STOPS, max_tokens=20)
    sampler = Sampler(model, parameters, chunk=4)
    adapter = device_put(mesh, nonzero_adapter(dataclasses.replace(model, mesh=None)), policy.spec)
    variables = {"params": base, "adapter": adapter}
    ids = np.arange(QUESTIONS)
    sizes: list[int] = []

    def noted(model: Any, variables: Any, ancestors: Any, state: Any, *rest: Any) -> Any:
        sizes.append(len(state.last))
        return decode_chunk(model, variables, ancestors, state, *rest)

    with mock.patch("malt_jax.sampling.decode.decode_chunk", noted):
        drawn = sampler.sample(variables, Request(levels, (BRANCHES,), ids, jax.random.key(5)))

    found: dict[str, np.ndarray] = {
        "tokens": drawn.tokens,
        "log_probabilities": drawn.log_probabilities,
        "finish": drawn.finish,
        "sizes": np.array(sizes),
        "reference_logps": reference,
        "losses": np.array([step["loss"] for step in sft_history + dpo_history]),
    }
    for stage, trained in (("sft", first), ("dpo", second)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(trained)):
            found[stage + jax.tree_util.keystr(path)] = leaf
    return found


def windows(mesh: Any) -> dict[str, np.ndarray]:
    """Completions of a model with sliding windows, which end in the levels above."""
    import jax

    from malt_jax.model.llama import Llama, init_params
    from malt_jax.sampling.sampler import Request, Sampler
    from malt_jax.sampling.token import SamplingParameters
    from tests.model.small import MIXED

    model = Llama(dataclasses.replace(MIXED, vocab_size=304), mesh=mesh)
    variables = {"params": init_params(model, jax.random.key(1))}
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 16, QUESTIONS)
    questions = [generator.integers(20, 300, length).tolist() for length in lengths]
    parameters = SamplingParameters.create(0.8, stop_ids=(), max_tokens=16)
    request = Request(
        [[questions[0]], questions], (BRANCHES,), np.arange(QUESTIONS), jax.random.key(5)
    )
    drawn = Sampler(model, parameters, chunk=16).sample(variables, request)
    return {
        "window_tokens": drawn.tokens,
        "window_log_probabilities": drawn.log_probabilities,
    }


def served(mesh: Any) -> dict[str, np.ndarray]:
    """Completions of eleven requests of two roles and the base model in eight slots."""
    from collections import deque

    import jax

    from malt_jax.config import LoraConfig
    from malt_jax.model.llama import Llama, init_params
    from malt_jax.serving.batch import Batch, Job, Ticket, Weights
    from malt_jax.training.policy import Policy, SamplingWeights
    from tests.model.small import CONFIG, nonzero_adapter

    config = dataclasses.replace(CONFIG, vocab_size=304)
    model = Llama(config, LoraConfig(rank=4, dropout=0.0), mesh=mesh)
    base = init_params(model, jax.random.key(1))
    alone = dataclasses.replace(model, mesh=None)
    with SamplingWeights(model, Policy(model, "lora"), base) as weights:
        joined = weights.joined([nonzero_adapter(alone, key) for key in (2, 12)])
    batch = Batch(Weights(*joined, 2), jax.random.key(5), STOPS, slots=8, chunk=4)
    generator = np.random.default_rng(0)
    tokens = np.zeros((11, 20), np.int64)
    waiting: deque[Ticket] = deque()
    for number, row in enumerate(tokens):
        prompt = generator.integers(20, 300, generator.integers(3, 40)).tolist()
        job = Job(prompt, 0, number % 3 - 1, (number,), 0.8, 0.9, 0, max_tokens=len(row))
        ids: list[int] = []

        def deliver(new: list[int], _: Any, ids: list[int] = ids, row: Any = row) -> None:
            ids += new
            row[: len(ids)] = ids

        waiting.append(Ticket(job, deliver))
    while waiting or batch.tickets:
        batch.advance(waiting)
    return {"served_tokens": tokens}


def reloaded(mesh: Any) -> dict[str, np.ndarray]:
    """Random weights after they are read as a checkpoint's tensors, and after a reshard."""
    import jax

    from malt_jax.checkpoints.weights import TensorSource, assemble, disassemble
    from malt_jax.model.llama import Llama, init_params, variable_specs
    from malt_jax.sharding.mesh import Sizes, build
    from malt_jax.sharding.rules import device_put, to_host
    from tests.model.small import CONFIG

    config = dataclasses.replace(CONFIG, vocab_size=304)
    model = Llama(config, mesh=mesh)
    params = init_params(model, jax.random.key(1))
    tensors = dict(disassemble(params, config))
    read: list[str] = []

    def note(name: str) -> np.ndarray:
        read.append(name)
        return tensors[name]

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    loaded = assemble(TensorSource("memory", shapes, note), model)
    other = build(Sizes(4, 1, 2), jax.devices())
    moved = device_put(other, loaded, variable_specs(model)["params"])
    same = jax.tree.map(
        lambda *copies: all(np.array_equal(copies[0], copy) for copy in copies),
        *map(to_host, (params, loaded, moved)),
    )
    resharded = jax.tree.map(lambda a, b: a.sharding == b.sharding, loaded, params)
    return {
        "same": np.array(jax.tree.leaves(same)),
        "sharding": np.array(jax.tree.leaves(resharded)),
        "read": np.array([len(read), len(tensors)]),
        "share": np.array([_share(x) for x in jax.tree.leaves(loaded)]),
        "moved_share": np.array([_share(x) for x in jax.tree.leaves(moved)]),
    }


def variables() -> dict[str, np.ndarray]:
    """The sampler's weights of a run, on another mesh than that of training."""
    import jax

    from malt_jax.config import QUICKSTART, load_config
    from malt_jax.malt.experiment import prepare
    from malt_jax.model.lora import merge_adapter
    from malt_jax.sharding.rules import to_host

    meshes = [f"sampling_mesh.{size}" for size in ("data=4", "tensor=2")]
    experiment = prepare(load_config(QUICKSTART, [*meshes, "training_mesh.fsdp=8"]))
    lora, base = experiment.policy.model.lora, experiment.base
    assert lora is not None
    adapter = experiment.policy.init(base, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 0.1, adapter)
    with experiment.sampling_weights() as weights:
        merged = weights.of(adapter)["params"]
        first, second = (weights.of(None)["params"] for _ in range(2))
    expected = merge_adapter(*jax.device_put((to_host(base), to_host(adapter))), lora)
    leaves = [jax.tree.leaves(tree) for tree in (merged, expected, first, second, base)]
    return {
        "error": np.array(
            [np.abs(to_host(a) - to_host(b)).max() for a, b in zip(*leaves[:2], strict=True)]
        ),
        "same_base": np.array(
            [np.array_equal(to_host(a), to_host(b)) for a, b in zip(*leaves[3:], strict=True)]
        ),
        "shared": np.array([a is b for a, b in zip(*leaves[2:4], strict=True)]),
        "merged_share": np.array([_share(x) for x in leaves[0]]),
        "training_share": np.array([_share(x) for x in leaves[4]]),
    }


def _share(array: Any) -> float:
    """The share of an array on each device."""
    return array.addressable_data(0).nbytes / array.nbytes


def main(file: str) -> None:
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
    import jax

    from malt_jax.sharding.mesh import Sizes, build

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    meshes = {name: build(Sizes(*sizes), jax.devices()) for name, sizes in MESHES.items()}
    found = {name: outcomes(mesh) for name, mesh in meshes.items()}
    found |= {"alone": outcomes(None) | windows(None) | served(None)}
    found["all"] |= windows(meshes["all"])
    for name, mesh in meshes.items():
        found[name] |= served(mesh)
    found |= {"reloaded": reloaded(meshes["all"])}
    found |= {"variables": variables()}
    flat = {f"{name}/{key}": x for name, values in found.items() for key, x in values.items()}
    np.savez(file, **flat)


if __name__ == "__main__":
    main(sys.argv[1])
