"""The programs that a run executes, with arguments of the shapes and places that they have there.

Nothing is computed and nothing allocated: all arguments are abstract. They come from the functions
that the run itself calls, wherever these can be asked without arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from malt_jax.config import Config
from malt_jax.malt.experiment import models
from malt_jax.malt.objectives import Dpo, Objective, Sft
from malt_jax.model.config import LlamaConfig
from malt_jax.model.levels import Level, level_spec
from malt_jax.model.llama import Llama, Params, variable_specs
from malt_jax.planning.workload import RoleLengths, Workload
from malt_jax.sampling.cache import bucket, prefill
from malt_jax.sampling.decode import cache_sizes, decode_chunk, decode_state_spec, grow
from malt_jax.sampling.token import SamplingParameters
from malt_jax.sharding.mesh import Meshes, Sizes
from malt_jax.sharding.rules import ArraySpec, abstract, array_specs, batch_shards
from malt_jax.training.batches import BATCH_AXES, Batch, Batches, Example
from malt_jax.training.optimizer import epochs_for
from malt_jax.training.policy import Policy
from malt_jax.training.step import (
    completion_logps,
    state_spec,
    train_step,
)

STOP_IDS = 3
"""Stop tokens of Llama 3.1 Instruct; their number hardly matters."""


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a run, and how often it is called."""

    name: str
    stage: str
    """trees, evaluation, sft or dpo."""
    function: Any
    """A jitted function."""
    arguments: tuple[Any, ...]
    mesh: Sizes
    calls: int
    loop_steps: int = 1
    """Iterations of its while loop in one call."""
    tokens: int = 0
    """Sampled or trained on in one call."""
    weights: Any = None
    """Those of its arguments that do not grow with the batch."""
    beside: Any = None
    """Arrays that stay on the devices during a call without being its arguments."""

    @property
    def updates(self) -> bool:
        """Whether a call is an update of weights."""
        return self.function is train_step


def programs(
    config: Config, shape: LlamaConfig, dtype: Any, meshes: Meshes, load: Workload
) -> list[Program]:
    """Every program of a run whose completions have the workload's length, in the order of first
    use. Of the sizes that a batch may shrink to when questions finish, only the full one is listed,
    so that `calls` is an upper bound."""
    trained, sampled = models(config, shape, dtype, meshes)
    resident = _resident(trained, sampled)
    listed = [
        *_sampling_programs(config, sampled, resident, load, "trees"),
        *_training_programs(config, Policy(trained, config.training.method), load),
        *_sampling_programs(config, sampled, resident, load, "evaluation"),
    ]
    return [program for program in listed if program.calls]


def _variables(model: Llama) -> Params:
    variables: Params = abstract(model.mesh, variable_specs(model))
    return variables


def _base(model: Llama) -> Params:
    base: Params = _variables(dataclasses.replace(model, lora=None))["params"]
    return base


def _resident(trained: Llama, sampled: Llama) -> Params | None:
    """The base weights as training has them, which stay where they are while sampling has a copy of
    its own; None if it has none."""
    base = _base(trained)
    merged = trained.lora is not None and sampled.lora is None
    same = jax.tree.map(lambda x, y: x.sharding == y.sharding, base, _base(sampled))
    return base if merged or not all(jax.tree.leaves(same)) else None


def _sampling_programs(
    config: Config, model: Llama, resident: Params | None, load: Workload, stage: str
) -> Iterator[Program]:
    roles = load.roles
    if stage == "trees":
        questions, asked = config.sampling.questions_per_batch, load.train_questions
        branching = tuple(role.branching for role in roles)
        repetitions = [config.rounds] * len(roles)
    else:
        asked = load.test_questions
        questions = min(config.evaluation.questions_per_batch, asked)
        branching = (config.evaluation.votes,) + (1,) * (len(roles) - 1)
        # The untrained and the SFT policy; the policy after DPO from the first role that differs.
        differs = [role.name in config.training.dpo_roles for role in roles]
        repetitions = [
            config.evaluation.seeds * (3 if any(differs[: depth + 1]) else 2)
            for depth in range(len(roles))
        ]
    questions += -questions % batch_shards(model.mesh)
    variables = _variables(model)
    batches = math.ceil(asked / questions)
    for depth, role in enumerate(roles):
        yield from _role_programs(
            config,
            model,
            variables,
            resident,
            f"{stage}/{role.name}",
            stage,
            role,
            (questions, *branching[: depth + 1]),
            [other.name for other in roles[:depth]],
            load.completion_tokens,
            batches * repetitions[depth],
        )


def _role_programs(
    config: Config,
    model: Llama,
    variables: Params,
    resident: Params | None,
    name: str,
    stage: str,
    role: RoleLengths,
    nodes: tuple[int, ...],
    earlier: Sequence[str],
    completion_tokens: int,
    batches: int,
) -> Iterator[Program]:
    """The programs of `Sampler.sample` for one role: a prefill a level, and decoding."""
    mesh = _sizes(model)
    ancestors: tuple[Level, ...] = ()
    for depth, (length, what) in enumerate(
        zip(role.levels, ("root", "question", *earlier), strict=True)
    ):
        leading = nodes[:depth]
        # The last token of a prompt is fed by the decode.
        width = bucket(length - (depth == len(role.levels) - 1))
        axes = P("batch") if leading else P()
        tokens, lengths = abstract(
            model.mesh,
            (ArraySpec((*leading, width), jnp.int32, axes), ArraySpec(leading, jnp.int32, axes)),
        )
        yield Program(
            f"{name}/prefill-{what}",
            stage,
            prefill,
            (model, variables, tokens, lengths, ancestors),
            mesh,
            calls=batches,
            weights=variables,
            beside=resident,
        )
        ancestors = (*ancestors, abstract(model.mesh, level_spec(model, leading, width)))

    parameters = jax.eval_shape(lambda: SamplingParameters.create(0.0, stop_ids=range(STOP_IDS)))
    parameters = abstract(model.mesh, array_specs(parameters, P()))
    chunk, before = config.sampling.chunk, 0
    state = None
    for size in cache_sizes(config.sampling.max_tokens, chunk):
        steps = min(size, completion_tokens) - before
        if steps <= 0:
            break
        if state is not None:
            yield Program(
                f"{name}/grow-{size}",
                stage,
                grow,
                (model, state, size),
                mesh,
                calls=batches,
                weights=variables,
                beside=(variables, ancestors, resident),
            )
        state = _decode_state(model, nodes, size)
        calls = math.ceil(steps / chunk)
        yield Program(
            f"{name}/decode-{size}",
            stage,
            decode_chunk,
            (model, variables, ancestors, state, parameters, chunk),
            mesh,
            calls=batches * calls,
            loop_steps=math.ceil(steps / calls),
            tokens=math.prod(nodes) * math.ceil(steps / calls),
            weights=variables,
            beside=resident,
        )
        before = size


def _decode_state(model: Llama, nodes: tuple[int, ...], size: int) -> Any:
    return abstract(model.mesh, decode_state_spec(model, nodes, size))


def _training_programs(config: Config, policy: Policy, load: Workload) -> Iterator[Program]:
    base = _base(policy.model)
    trainable = policy.like()
    dpo = config.dpo
    for depth, role in enumerate(load.roles):
        rows, pairs = load.rows[depth], load.pairs[depth]
        if rows:
            batch = _batch(role, load.completion_tokens, config.sft.batch_size, 1, policy)
            name = f"sft/{role.name}"
            yield _update(name, policy, Sft(config.sft), base, batch, rows, config.rounds)
        if role.name not in config.training.dpo_roles or not pairs:
            continue
        batch = _batch(role, load.completion_tokens, dpo.batch_size, 2, policy)
        name = f"dpo/{role.name}"
        yield Program(
            f"{name}/reference",
            "dpo",
            completion_logps,
            (policy, base, trainable, batch.replace(reference_logps=None)),
            _sizes(policy.model),
            calls=math.ceil(pairs / dpo.batch_size) * config.rounds,
            tokens=_tokens(batch),
            weights=(base, trainable),
        )
        yield _update(name, policy, Dpo(dpo), base, batch, pairs, config.rounds)


def _update(
    name: str,
    policy: Policy,
    objective: Objective,
    base: Params,
    batch: Batch,
    rows: int,
    rounds: int,
) -> Program:
    mesh, config = policy.model.mesh, objective.options
    trainable = policy.like()
    state = abstract(mesh, state_spec(policy, config))
    key, total = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    return Program(
        f"{name}/update",
        name.partition("/")[0],
        train_step,
        (
            *(policy, objective, state, base, batch),
            *abstract(mesh, array_specs((total, key), P())),
        ),
        _sizes(policy.model),
        calls=rounds * (config.epochs or epochs_for(rows)) * math.ceil(rows / config.batch_size),
        tokens=_tokens(batch),
        weights=(state, base),
        beside=trainable,  # what training starts from
    )


def _batch(
    role: RoleLengths, completion: int, batch_size: int, branches: int, policy: Policy
) -> Batch:
    """The batch that the longest rows of a role come in."""
    behind = role.question + sum(role.completions)
    # They differ after what all prompts begin with.
    examples = [
        Example((0,) * role.root + (number,) * behind, ((0,) * completion,) * branches)
        for number in (1, 2)
    ]
    reference = np.zeros((2, 2), np.float32) if branches == 2 else None
    batch = Batches(examples, batch_size, seed=0, reference_logps=reference).batch(0, 0)
    described: Batch = abstract(policy.model.mesh, array_specs(batch, BATCH_AXES))
    return described


def _tokens(batch: Batch) -> int:
    rows, branches, width = batch.completions.shape
    return batch.prefix.size + batch.prompts.size + rows * branches * (width - 1)


def _sizes(model: Llama) -> Sizes:
    return Sizes(1, 1, 1) if model.mesh is None else Sizes(*model.mesh.shape.values())
