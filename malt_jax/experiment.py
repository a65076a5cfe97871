"""What a configuration stands for: task, model, prompts, policy and sampler, ready to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.malt.roles import Pipeline, RolePrompt, load_pipeline
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params, variable_specs
from malt_jax.model.lora import merge_adapter
from malt_jax.sampling.sampler import Sampler
from malt_jax.sampling.token import SamplingParameters
from malt_jax.sharding.mesh import Hardware, Meshes, MeshRequest, build, choose
from malt_jax.sharding.placement import SharedCopy
from malt_jax.sharding.rules import device_put
from malt_jax.tasks.base import Question, Split, Task
from malt_jax.training.policy import Policy

FULL_STATE_BYTES = 16
"""Per weight when all are trained: float32 weight, gradient and two moments of Adam."""

Trainables = Mapping[str, Params]
"""What each trained role has learned, by the role's name; absent: the role is the base model."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The fixed parts of a run."""

    config: Config
    task: Task
    checkpoint: Checkpoint
    pipeline: Pipeline
    prompts: tuple[RolePrompt, ...]
    policy: Policy
    sampler: Sampler
    _sampling_base: SharedCopy = dataclasses.field(default_factory=SharedCopy)

    def variables(self, trainable: Params | None) -> Params:
        """The sampler's variables for a role, on its mesh; None is the untrained base model.

        The base weights are laid out for sampling once for all roles, as long as any of their
        variables are kept.
        """
        model, base = self.sampler.model, self.checkpoint.params
        specs = variable_specs(model)
        if model.lora is not None or trainable is None:
            variables = {
                "params": self._sampling_base.of(
                    base, lambda: device_put(model.mesh, base, specs["params"])
                )
            }
            if model.lora is not None:
                adapter = trainable
                if adapter is None:
                    adapter = self.policy.init(base, jax.random.key(0))
                variables["adapter"] = device_put(model.mesh, adapter, specs["adapter"])
            return variables
        lora = self.policy.model.lora
        if lora is None:
            params = jax.tree.map(lambda x: x.astype(model.dtype), trainable)
        else:
            trainable = device_put(self.policy.model.mesh, trainable, self.policy.axes)
            params = merge_adapter(base, trainable, lora)
        return {"params": device_put(model.mesh, params, specs["params"])}

    def questions(self, split: Split, limit: int | None) -> list[Question]:
        """The first `limit` questions of a split in the order that the run's seed gives it."""
        questions = self.task.questions(split)
        generator = np.random.default_rng([self.config.seed, ("train", "test").index(split)])
        order = generator.permutation(len(questions))
        return [questions[index] for index in order[:limit]]

    def check_lengths(self, questions: Sequence[Question]) -> None:
        """Raises UserError if a prompt with its longest completions could exceed the model."""
        limit = self.policy.model.config.max_positions
        longest = self.config.sampling.max_tokens
        for prompt in self.prompts:
            fixed = sum(len(prompt.completion_level(d + 1, [])) for d in range(prompt.depth))
            for question in questions:
                asked = len(prompt.root) + len(prompt.question_level(question.text))
                needed = asked + fixed + (prompt.depth + 1) * longest
                if needed > limit:
                    raise UserError(
                        f"{self.task.name} question {question.id}: the {prompt.role.name}'s prompt"
                        f" has {asked + fixed} tokens of its own; with {prompt.depth + 1}"
                        f" completions of up to sampling.max_tokens={longest} it needs {needed}"
                        f" positions, and the model has {limit}. Lower sampling.max_tokens,"
                        " shorten the question, or take a model with a longer context."
                    )


def mesh_requests(
    config: Config, shape: LlamaConfig, dtype: Any
) -> tuple[MeshRequest, MeshRequest]:
    """The needs that the meshes of sampling and of training have to meet."""
    weights = trained = shape.num_parameters * jnp.dtype(dtype).itemsize
    if config.training.method == "full":
        trained += shape.num_parameters * FULL_STATE_BYTES
    batch_sizes = {}
    for stage, options in (("sft", config.sft), ("dpo", config.dpo)):
        name = "batch_size" if options.micro_batch_size is None else "micro_batch_size"
        batch_sizes[f"{stage}.{name}"] = getattr(options, name)
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
    """The model that learns and the one that is sampled from, each on its mesh."""
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


def prepare(config: Config) -> Experiment:
    """Loads the task, the model and the prompts of a configuration.

    Raises UserError for whatever of these is missing, malformed or does not fit together.
    """
    task = tasks.create(config.task)
    pipeline = load_pipeline(config.pipeline.roles, task.prompts)
    dtype = jnp.dtype(config.model.resolve_dtype(jax.default_backend()))
    stored = StoredCheckpoint(config.model.name, config.model.tokenizer)
    shape = stored.config
    placed = meshes(config, shape, dtype)
    checkpoint = stored.load(
        dtype=dtype,
        key=jax.random.fold_in(jax.random.key(config.seed), 0),
        mesh=placed.training,
    )
    trained, sampled = models(config, shape, dtype, placed)
    sampling = config.sampling
    sampler = Sampler(
        sampled,
        SamplingParameters.create(sampling.temperature, sampling.top_p, sampling.top_k),
        checkpoint.tokenizer.stop_ids,
        sampling.max_tokens,
        sampling.chunk,
    )
    return Experiment(
        config=config,
        task=task,
        checkpoint=checkpoint,
        pipeline=pipeline,
        prompts=pipeline.prompts(checkpoint.tokenizer),
        policy=Policy(trained, config.training.method),
        sampler=sampler,
    )
