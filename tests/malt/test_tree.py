"""Expanding, grading and storing trees with the embedded model."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from malt_jax.config import QUICKSTART, load_config
from malt_jax.errors import UserError
from malt_jax.malt.experiment import Experiment, prepare, select_questions
from malt_jax.malt.tree import Tree, expand, from_parquet, grade, to_parquet
from malt_jax.sampling.decode import node_keys
from malt_jax.tasks.base import Question
from tests.sampling.naive import decode_naively

BRANCHING = (2, 2, 3)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return prepare(load_config(QUICKSTART, ["sampling.temperature=1.0", "sampling.max_tokens=40"]))


def train_questions(experiment: Experiment, limit: int) -> list[Question]:
    return select_questions(experiment.task, "train", limit, seed=0)


@pytest.fixture(scope="module")
def tree(experiment: Experiment) -> Tree:
    questions, pipeline = train_questions(experiment, 3), experiment.pipeline
    sampler = dataclasses.replace(experiment.sampler, batch=4)
    with experiment.sampling_weights() as weights:
        variables = [weights.of(None)] * 3
    completions = expand(sampler, pipeline.prompts, variables, questions, BRANCHING, KEY)
    return grade(experiment.task, questions, pipeline.names, completions, pipeline.tokenizer)


def test_every_role_reads_what_its_ancestors_wrote(experiment: Experiment, tree: Tree) -> None:
    """The refinements of the last question, sampled again from flat prompts without any sharing."""
    question = tree.questions[2]
    prompt = experiment.pipeline.prompts[2]
    rows = [prompt.ids(question.text, tree.ancestors(2, path)) for path in np.ndindex(BRANCHING)]
    keys = node_keys(jax.random.fold_in(KEY, 2), np.array([question.id]), BRANCHING).reshape(-1)
    with experiment.sampling_weights() as weights:
        variables = weights.of(None)
    sampler = experiment.sampler
    naive = decode_naively(sampler.model, variables, rows, keys, sampler.parameters)
    for row, path in enumerate(np.ndindex(BRANCHING)):
        assert tree.ids(2, path) == naive.ids(row)


def test_rewards_are_those_of_the_last_answers(experiment: Experiment, tree: Tree) -> None:
    assert tree.rewards.shape == (3, *BRANCHING)
    for node in np.ndindex(tree.rewards.shape):
        right = experiment.task.extract(tree.texts[2][node]) == tree.questions[node[0]].answer
        assert tree.rewards[node] == right
    assert 0 < tree.rewards.mean() < 1


def test_a_stored_tree_comes_back(tree: Tree, tmp_path: Path) -> None:
    file = tmp_path / "tree.parquet"
    file.write_bytes(to_parquet(tree))
    back = from_parquet(file, tree.questions, tree.roles, BRANCHING)
    np.testing.assert_array_equal(back.rewards, tree.rewards)
    for ours, theirs in zip(tree.completions, back.completions, strict=True):
        for field in dataclasses.fields(ours):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name))
    for ours, theirs in zip(tree.texts, back.texts, strict=True):
        assert (ours == theirs).all()


def test_a_damaged_or_foreign_tree_is_refused(tree: Tree, tmp_path: Path) -> None:
    file = tmp_path / "tree.parquet"
    content = to_parquet(tree)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"tree\.parquet"):
        from_parquet(file, tree.questions, tree.roles, BRANCHING)
    file.write_bytes(content)
    with pytest.raises(UserError, match="generator"):
        from_parquet(file, tree.questions, tree.roles, (3, 2, 3))


def test_a_prompt_that_could_exceed_the_model_is_refused(experiment: Experiment) -> None:
    with pytest.raises(UserError, match=r"many words.*sampling\.max_tokens=40"):
        experiment.pipeline.check_lengths(["many words " * 400], 40, 1024)
