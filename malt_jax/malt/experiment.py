"""The parts of a run: task, prompts, policy and sampler of a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import Config
from malt_jax.malt.objectives import objectives
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import Role, load_roles
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params
from malt_jax.sampling.sampler import Sampler
from malt_jax.sampling.token import SamplingParameters
from malt_jax.sharding.mesh import Hardware, Meshes, MeshRequest, build, choose
from malt_jax.tasks.base import Question, Split, Task
from malt_jax.training.policy import Policy, SamplingWeights

FULL_STATE_BYTES = 16
"""Per weight when all are trained: float32 weight, gradient and two moments of Adam."""


class Experiment(NamedTuple):
    """The fixed parts of a run."""

    name: str
    """The model's."""
    task: Task
    pipeline: Pipeline
    policy: Policy
    """The model on the mesh for training, and which of its weights are trained."""
    base: Params
    """The base weights on the mesh for training."""
    sampler: Sampler

    def sampling_weights(self) -> SamplingWeights:
        """The roles' weights as the sampler takes them, inside a `with` block."""
        return SamplingWeights(self.sampler.model, self.policy, self.base)


def select_questions(
    task: Task, split: Split, limit: int | None, seed: int, skip: int = 0
) -> list[Question]:
    """The first `limit` questions of a split in the order that the run's seed gives it.

    skip: questions at the beginning that are left out before.
    """
    questions = task.questions(split)
    generator = np.random.default_rng([seed, ("train", "test").index(split)])
    order = generator.permutation(len(questions))
    return [questions[index] for index in order[skip:][:limit]]


def mesh_requests(
    config: Config, shape: LlamaConfig, dtype: Any
) -> tuple[MeshRequest, MeshRequest]:
    """The needs that the meshes of sampling and of training have to meet."""
    weights = trained = shape.num_parameters * jnp.dtype(dtype).itemsize
    if config.training.method == "full":
        trained += shape.num_parameters * FULL_STATE_BYTES
    batch_sizes = {}
    for role in config.pipeline.names:
        for objective in objectives(config, role):
            options = objective.options
            name = "batch_size" if options.micro_batch_size is None else "micro_batch_size"
            section = config.section_name(role, objective.name)
            batch_sizes[f"{section}.{name}"] = getattr(options, name)
    sampling = MeshRequest(
        "sampling_mesh",
        config.sampling_mesh,
        weights,
        shape.axis_sizes,
        questions=config.sampling.questions_per_batch,
    )
    training = MeshRequest(
        "training_mesh", config.training_mesh, trained, shape.axis_sizes, batch_sizes
    )
    return sampling, training


def meshes(config: Config, shape: LlamaConfig, dtype: Any) -> Meshes:
    """The meshes of a run over all devices. Raises UserError for options that do not fit."""
    devices = jax.devices()
    chosen = choose(*mesh_requests(config, shape, dtype), Hardware.of(devices))
    return Meshes(*(build(sizes, devices) for sizes in chosen))


def models(config: Config, shape: LlamaConfig, dtype: Any, placed: Meshes) -> tuple[Llama, Llama]:
    """The model that is trained and the one that is sampled from, each on its mesh."""
    if config.model.max_positions is not None:
        shape = dataclasses.replace(shape, max_positions=config.model.max_positions)
    lora = config.lora if config.training.method == "lora" else None
    remat = config.training.remat
    trained = Llama(shape, lora=lora, dtype=dtype, remat=remat, mesh=placed.training)
    # Where a merged copy is exact to float32 rounding, sampling without the adapter's many small
    # products is faster. In bfloat16 the adapter would be lost in the kernels' rounding.
    merged = dtype == jnp.float32 or lora is None
    sampled = Llama(shape, lora=None if merged else lora, dtype=dtype, mesh=placed.sampling)
    return trained, sampled


def create_sampler(config: Config, model: Llama, stop_ids: Sequence[int]) -> Sampler:
    """The sampler of a run's trees."""
    sampling = config.sampling
    parameters = SamplingParameters.create(
        sampling.temperature,
        sampling.top_p,
        sampling.top_k,
        stop_ids=stop_ids,
        max_tokens=sampling.max_tokens,
    )
    return Sampler(model, parameters, sampling.chunk, sampling.questions_per_batch)


def prepare(config: Config, roles: Sequence[Role] | None = None) -> Experiment:
    """Loads the task, the model and the prompts of a configuration.

    roles: with their prompts; None: those that the configuration names.

    Raises UserError for whatever of these is missing, malformed or does not fit together.
    """
    task = tasks.create(config.task)
    if roles is None:
        roles = load_roles(config.pipeline.roles, task.prompts)
    dtype = jnp.dtype(config.model.resolve_dtype(jax.default_backend()))
    stored = StoredCheckpoint.of(config.model)
    shape = stored.config
    placed = meshes(config, shape, dtype)
    checkpoint = stored.load(
        dtype=dtype,
        key=jax.random.fold_in(jax.random.key(config.seed), 0),
        mesh=placed.training,
    )
    trained, sampled = models(config, shape, dtype, placed)
    return Experiment(
        name=checkpoint.name,
        task=task,
        pipeline=Pipeline.of(roles, checkpoint.tokenizer),
        policy=Policy(trained, config.training.method),
        base=checkpoint.params,
        sampler=create_sampler(config, sampled, checkpoint.tokenizer.stop_ids),
    )
