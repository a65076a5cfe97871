"""The plan's programs are those that a run compiles and calls: functions, shapes, numbers."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import load_config
from malt_jax.malt.experiment import meshes, prepare
from malt_jax.malt.objectives import objectives
from malt_jax.malt.tree import expand
from malt_jax.planning.programs import Assumptions, Program, Workload, programs
from malt_jax.sampling import decode, sampler
from malt_jax.sharding.calls import device_bytes
from malt_jax.tasks.base import Question
from malt_jax.training import loop
from malt_jax.training.batches import Example
from malt_jax.training.loop import reference_logps
from tests.training.small import train_all

OPTIONS = [
    *("sampling.max_tokens=80", "sampling.questions_per_batch=2", "sampling.chunk=24"),
    *("evaluation.questions_per_batch=2", "evaluation.votes=2", "evaluation.seeds=2"),
    *("task.train_questions=4", "task.test_questions=3", "sft.batch_size=4", "dpo.batch_size=4"),
    *("sft.epochs=2", "dpo.epochs=2"),
    "pipeline.roles=[{name: generator, branching: 2}, {name: verifier, branching: 3}]",
    *("training.dpo_roles=[verifier]", "training.kto_roles=[verifier]"),
    *("kto.batch_size=4", "kto.epochs=2", "dpo.sft_weight=0.5"),
    "dpo.label_smoothing=null",
]
CONFIG = load_config(None, OPTIONS)


def shapes(arguments) -> tuple:
    """Shapes and types of all arrays."""
    leaves = [x for x in jax.tree.leaves(arguments) if hasattr(x, "shape") and hasattr(x, "dtype")]
    return tuple((x.shape, str(x.dtype)) for x in leaves)


@pytest.fixture(scope="module")
def experiment():
    return prepare(CONFIG)


@pytest.fixture(scope="module")
def planned(experiment):
    load = Workload.of(CONFIG, Assumptions(question_tokens=7), "cpu")
    return load, programs(load, meshes(CONFIG, load.shape, load.dtype))


def questions(tokenizer) -> list[Question]:
    """Two questions of 7 tokens that have no common beginning."""
    texts = [tokenizer.decode(tokenizer.encode(letters)[:7]) for letters in ("x" * 50, "7" * 50)]
    assert [len(tokenizer.encode(text)) for text in texts] == [7, 7]
    return [Question(number, text, "0") for number, text in enumerate(texts)]


def recorded(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: Counter) -> Any:
    """The jitted function `name`, uncompiled, whose calls in `module` are counted by shapes."""
    function = getattr(module, name)
    function.clear_cache()

    def record(*arguments):
        calls[function, shapes(arguments)] += 1
        return function(*arguments)

    monkeypatch.setattr(module, name, record)
    return function


def listed_calls(programs: Sequence[Program]) -> Counter:
    listed: Counter = Counter()
    for program in programs:
        listed[program.call.function, shapes(program.call.arguments)] += program.call.count
    return listed


def check(functions: Sequence[Any], called: Counter, listed: Counter) -> None:
    """Calls and compiled programs are those of the plan, and no others."""
    assert called == listed
    for function in functions:
        programs = [shape for other, shape in listed if other is function]
        assert function._cache_size() == len(programs)


def test_sampling(experiment, planned, monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter = Counter()
    functions = [
        recorded(monkeypatch, module, name, called)
        for module, name in ((sampler, "prefill"), (decode, "decode_chunk"), (decode, "grow"))
    ]
    # No token ends a completion, so all have the length of the plan's.
    never = experiment.sampler.parameters.stop_ids - 10**6
    endless = experiment.sampler.parameters.replace(stop_ids=never)
    with experiment.sampling_weights() as weights:
        variables = [weights.of(None)] * 2
    for branching in ((2, 3), (2, 1)):  # of the trees, of the evaluation
        expand(
            dataclasses.replace(experiment.sampler, parameters=endless),
            experiment.pipeline.prompts,
            variables,
            questions(experiment.pipeline.tokenizer),
            branching,
            jax.random.key(0),
        )
    batches = {"trees": 2, "evaluation/generator": 2 * 2 * 2, "evaluation/verifier": 3 * 2 * 2}
    of_one_batch = []
    for program in planned[1]:
        if program.stage in ("trees", "evaluation"):
            times = batches.get(program.stage) or batches[f"{program.stage}/{program.role}"]
            count, rest = divmod(program.call.count, times)
            assert rest == 0
            call = dataclasses.replace(program.call, count=count)
            of_one_batch.append(dataclasses.replace(program, call=call))
    check(functions, called, listed_calls(of_one_batch))


def test_on_policy_pairs_need_every_tree_twice(planned) -> None:
    load, listed = planned
    on_policy = dataclasses.replace(load.config.training, on_policy_pairs=True)
    config = dataclasses.replace(load.config, training=on_policy)
    twice = programs(
        dataclasses.replace(load, config=config), meshes(config, load.shape, load.dtype)
    )
    for one, other in zip(listed, twice, strict=True):
        factor = 2 if one.stage == "trees" else 1
        assert other.call.count == factor * one.call.count, one.name


def test_training(experiment, planned, monkeypatch: pytest.MonkeyPatch) -> None:
    load, listed = planned
    called: Counter = Counter()
    functions = [
        recorded(monkeypatch, loop, name, called)
        for name in ("train_step", "completion_logps", "with_reference_point", "batch_gradient")
    ]
    policy, base = experiment.policy, experiment.base
    start = policy.init(base, jax.random.key(0))
    asked = [question.text for question in questions(experiment.pipeline.tokenizer)]
    for role, prompt in zip(load.roles, experiment.pipeline.prompts, strict=True):
        for objective in (planned.fitted(0.0) for planned in objectives(CONFIG, role.name)):
            rows = {
                "sft": role.rows,
                "dpo": role.pairs,
                "kto": role.rows + role.incorrect,
            }[objective.name]
            completions = ([5] * 80,) * (2 if objective.name == "dpo" else 1)
            examples = [
                Example(prompt.ids(asked[row % 2], [[5] * 80] * prompt.depth), completions)
                for row in range(rows)
            ]
            examples = objective.arrange(examples, experiment.policy.model.config.max_positions, 0)
            reference = None
            if objective.needs_reference:
                reference = reference_logps(
                    policy, base, start, examples, objective.options.batch_size
                )
            anchors = None
            if objective.anchor is not None:
                ids = prompt.ids(asked[0], [[5] * 80] * prompt.depth)
                others = prompt.ids(asked[1], [[5] * 80] * prompt.depth)
                anchors = [Example(ids, ([5] * 80,)), Example(others, ([5] * 80,))]
            train_all(
                policy, objective, base, start, examples, reference=reference, anchors=anchors
            )
    check(functions, called, listed_calls([p for p in listed if p.stage in ("sft", "dpo", "kto")]))


def test_arguments_have_shardings(planned) -> None:
    for program in planned[1]:
        for leaf in jax.tree.leaves(program.call.arguments):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                assert leaf.sharding is not None, program.name


def test_tokens_add_up(planned) -> None:
    load, listed = planned
    decoded = [p for p in listed if p.name.startswith("trees/verifier/decode")]
    # Batches of whole chunks may take a few steps more than there are tokens.
    sampled = sum(p.call.tokens * p.call.count for p in decoded)
    assert 4 * 6 * load.completion_tokens <= sampled < 4 * 6 * (load.completion_tokens + 24)
    assert np.all([p.call.count > 0 for p in listed])


def test_training_keeps_its_weights_while_sampling_has_a_copy(experiment, planned) -> None:
    load = planned[0]
    whole = sum(x.nbytes for x in jax.tree.leaves(experiment.base))
    for dtype, resident in ((jnp.float32, whole), (jnp.bfloat16, 0)):  # merged; with the adapter
        load = dataclasses.replace(load, dtype=jnp.dtype(dtype))
        listed = programs(load, meshes(CONFIG, load.shape, load.dtype))
        for program in listed:
            if program.call.name.startswith("decode-"):
                assert device_bytes(program.call.resident) == resident
