"""The plan's programs are those that a run calls: same functions, same shapes, as often."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import load_config
from malt_jax.malt.experiment import meshes, prepare
from malt_jax.malt.objectives import objectives
from malt_jax.malt.tree import expand
from malt_jax.model.levels import level_spec
from malt_jax.planning.estimate import shard_bytes
from malt_jax.planning.programs import programs
from malt_jax.planning.workload import Assumptions, workload
from malt_jax.sampling import decode, sampler
from malt_jax.sampling.decode import Finish
from malt_jax.sharding.rules import zeros
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
    "training.dpo_roles=[verifier]",
]
CONFIG = load_config(None, OPTIONS)


def shapes(arguments) -> tuple:
    """Shapes and types of all arrays; where they stand follows from the function."""
    leaves = [x for x in jax.tree.leaves(arguments) if hasattr(x, "shape") and hasattr(x, "dtype")]
    return tuple((x.shape, str(x.dtype)) for x in leaves)


@pytest.fixture(scope="module")
def experiment():
    return prepare(CONFIG)


@pytest.fixture(scope="module")
def planned(experiment):
    load = workload(CONFIG, experiment.pipeline.tokenizer, Assumptions(question_tokens=7))
    shape, dtype = experiment.policy.model.config, experiment.sampler.model.dtype
    return load, programs(CONFIG, shape, dtype, meshes(CONFIG, shape, dtype), load)


def questions(tokenizer) -> list[Question]:
    """Two questions of 7 tokens that have no common beginning."""
    texts = [tokenizer.decode(tokenizer.encode(letters)[:7]) for letters in ("x" * 50, "7" * 50)]
    assert [len(tokenizer.encode(text)) for text in texts] == [7, 7]
    return [Question(number, text, "0") for number, text in enumerate(texts)]


@pytest.mark.parametrize("stage", ["trees", "evaluation"])
def test_sampling(experiment, planned, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter = Counter()

    def fake_prefill(model, variables, tokens, lengths, ancestors):
        called["prefill", shapes((variables, tokens, lengths, ancestors))] += 1
        return zeros(level_spec(model, lengths.shape, tokens.shape[-1]))

    def fake_chunk(model, variables, ancestors, state, parameters, chunk):
        # The number of stop tokens is the tokenizer's.
        parameters = parameters.replace(stop_ids=None)
        called["decode", shapes((variables, ancestors, state, parameters))] += 1
        step = jnp.minimum(state.step + chunk, state.size)
        ended = Finish.LENGTH if int(step) == 80 else Finish.RUNNING
        full = jnp.full(state.lengths.shape, step, jnp.int32)
        return state.replace(step=step, lengths=full, finish=jnp.full_like(state.finish, ended))

    def fake_grow(model, state, size):
        called["grow", shapes(state)] += 1
        return decode.initial_state(experiment.sampler.model, state.last, state.keys, size).replace(
            step=state.step, lengths=state.lengths
        )

    monkeypatch.setattr(sampler, "prefill", fake_prefill)
    monkeypatch.setattr(decode, "decode_chunk", fake_chunk)
    monkeypatch.setattr(decode, "grow", fake_grow)
    with experiment.sampling_weights() as weights:
        variables = [weights.of(None)] * 2
    expand(
        experiment.sampler,
        experiment.pipeline.prompts,
        variables,
        questions(experiment.pipeline.tokenizer),
        (2, 3) if stage == "trees" else (2, 1),
        jax.random.key(0),
    )
    wanted: Counter = Counter()
    batches = {"trees": 2, "evaluation/generator": 2 * 2 * 2, "evaluation/verifier": 3 * 2 * 2}
    for program in planned[1]:
        if program.stage == stage:
            kind = program.name.rpartition("/")[2].partition("-")[0]
            arguments = list(program.arguments)
            if kind == "decode":
                arguments[-2] = arguments[-2].replace(stop_ids=None)
            times = batches.get(stage) or batches[program.name.rpartition("/")[0]]
            assert program.calls % times == 0
            wanted[kind, shapes(arguments)] += program.calls // times
    assert called == wanted


def test_training(experiment, planned, monkeypatch: pytest.MonkeyPatch) -> None:
    load, listed = planned
    called: Counter = Counter()

    def fake_step(policy, objective, state, base, batch, total_steps, key):
        called[objective.name, shapes((state, base, batch, total_steps, key))] += 1
        return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

    def fake_logps(policy, base, trainable, batch):
        called["reference", shapes((base, trainable, batch))] += 1
        return jnp.zeros(batch.lengths.shape)

    monkeypatch.setattr(loop, "train_step", fake_step)
    monkeypatch.setattr(loop, "completion_logps", fake_logps)
    policy, base = experiment.policy, experiment.base
    start = policy.init(base, jax.random.key(0))
    asked = [question.text for question in questions(experiment.pipeline.tokenizer)]
    for depth, prompt in enumerate(experiment.pipeline.prompts):
        for objective in objectives(CONFIG, prompt.role.name):
            branches, rows = (1, load.rows) if objective.name == "sft" else (2, load.pairs)
            examples = [
                Example(prompt.ids(asked[row % 2], [[5] * 80] * depth), ([5] * 80,) * branches)
                for row in range(rows[depth])
            ]
            reference = None
            if objective.needs_reference:
                reference = reference_logps(
                    policy, base, start, examples, objective.options.batch_size
                )
            train_all(policy, objective, base, start, examples, reference=reference)
    wanted: Counter = Counter()
    for program in listed:
        if program.stage in ("sft", "dpo"):
            kind = "reference" if program.name.endswith("reference") else program.stage
            wanted[kind, shapes(program.arguments)] += program.calls
    assert called == wanted


def test_arguments_have_places(planned) -> None:
    for program in planned[1]:
        for leaf in jax.tree.leaves(program.arguments):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                assert leaf.sharding is not None, program.name


def test_tokens_add_up(planned) -> None:
    load, listed = planned
    decoded = [p for p in listed if p.name.startswith("trees/verifier/decode")]
    # Batches of whole chunks may take a few steps more than there are tokens.
    sampled = sum(p.tokens * p.calls for p in decoded)
    assert 4 * 6 * load.completion_tokens <= sampled < 4 * 6 * (load.completion_tokens + 24)
    assert np.all([p.calls > 0 for p in listed])


def test_learning_keeps_its_weights_while_sampling_has_a_copy(experiment, planned) -> None:
    config, shape = CONFIG, experiment.policy.model.config
    whole = sum(x.nbytes for x in jax.tree.leaves(experiment.base))
    for dtype, resident in ((jnp.float32, whole), (jnp.bfloat16, 0)):  # merged; with the adapter
        listed = programs(config, shape, dtype, meshes(config, shape, dtype), planned[0])
        for program in listed:
            if "/decode-" in program.name:
                assert sum(shard_bytes(x) for x in jax.tree.leaves(program.beside)) == resident
