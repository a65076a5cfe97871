"""The size of a run: lengths of prompts, rows and pairs."""

import itertools

import numpy as np
import pytest

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import CreditConfig, load_config
from malt_jax.errors import UserError
from malt_jax.malt import credit
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.planning.programs import QUESTION_TOKENS, Assumptions, Workload

TOKENIZER = StoredCheckpoint("tiny").tokenizer
ROLES = "pipeline.roles=[{name: generator, branching: 2}, {name: verifier, branching: 3}]"


def test_levels_are_as_long_as_the_prompts() -> None:
    config = load_config(None, ["sampling.max_tokens=20"])
    load = Workload.of(config, Assumptions(question_tokens=5), "cpu")
    roles = load_roles(config.pipeline.roles, tasks.create(config.task).prompts)
    pipeline = Pipeline.of(roles, TOKENIZER)
    question = TOKENIZER.decode(TOKENIZER.encode("aaaaaaaaaaaaaaaaaaaa")[:5])
    assert len(TOKENIZER.encode(question)) == 5
    completion = [TOKENIZER.encode("b")[0]] * 20
    for role, prompt in zip(load.roles, pipeline.prompts, strict=True):
        levels = prompt.segments(question, [completion] * prompt.depth)
        assert [tokens for _, tokens in role.levels] == list(map(len, levels))


def test_completions_may_be_taken_to_be_shorter_but_not_longer() -> None:
    config = load_config(None, ["sampling.max_tokens=20"])
    lengths = [
        Workload.of(config, Assumptions(5, tokens), "cpu").completion_tokens
        for tokens in (None, 8, 99)
    ]
    assert lengths == [20, 8, 20]


def test_a_published_data_set_needs_no_network() -> None:
    config = load_config(None, ["task.name=gsm8k", "task.test_questions=100"])
    load = Workload.of(config, Assumptions(), "cpu")
    assert (load.train_questions, load.test_questions) == (7473, 100)
    assert dict(load.roles[0].levels)["question"] > QUESTION_TOKENS


def test_a_task_without_questions_of_its_own_needs_a_file() -> None:
    config = load_config(None, ["task.name=jsonl"])
    with pytest.raises(UserError, match=r"task\.train=FILE"):
        Workload.of(config, Assumptions(), "cpu")


@pytest.mark.parametrize("accuracy", [0.5, 0.3])
def test_rows_and_pairs_are_those_expected_of_independent_completions(accuracy: float) -> None:
    overrides = [ROLES, "training.dpo_roles=[verifier]", "task.train_questions=100"]
    load = Workload.of(load_config(None, overrides), Assumptions(5, 4, accuracy), "cpu")
    # The last role's rewards decide its own labels: all outcomes of one prompt's three completions.
    rows = pairs = incorrect = 0.0
    config = CreditConfig(drop_duplicates=False)
    for outcome in itertools.product((0.0, 1.0), repeat=3):
        chance = np.prod([accuracy if reward else 1 - accuracy for reward in outcome])
        written = np.array(list("abc"), object).reshape(1, 1, 3)
        rewards = np.array(outcome).reshape(1, 1, 3)
        learned = credit.assign(rewards, [written[..., 0], written], [0], [config] * 2, 0)[1]
        rows += chance * len(learned.sft)
        pairs += chance * len(learned.pairs)
        incorrect += chance * len(learned.incorrect)
    assert load.roles[1].rows == pytest.approx(100 * 2 * rows, abs=1)
    assert load.roles[1].incorrect == pytest.approx(100 * 2 * incorrect, abs=1)
    assert load.roles[1].pairs == pytest.approx(100 * 2 * pairs, abs=1)


def test_caps_hold() -> None:
    caps = ["credit.max_rows_per_question=1", "credit.max_pairs_per_question=2"]
    config = load_config(None, [*caps, "task.train_questions=10"])
    load = Workload.of(config, Assumptions(5, 4), "cpu")
    assert {(role.rows, role.incorrect) for role in load.roles} == {(10, 10)}
    assert [role.pairs for role in load.roles[1:]] == [20, 20]
