"""Values, labels, rows and pairs against a reference that walks the tree node by node."""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.config import CreditConfig
from malt_jax.malt import credit
from malt_jax.malt.credit import Node, Pair


@st.composite
def trees(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rewards of any depth and branching, and texts that often repeat a sibling's."""
    branching = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    shape = (draw(st.integers(1, 3)), *branching)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    # Whole trees right or wrong as well as mixed ones.
    rate = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    rewards = (rng.uniform(size=shape) < rate).astype(np.float64)
    words = draw(st.integers(1, 50))
    texts = [
        rng.integers(words, size=shape[: depth + 2]).astype(str).astype(object)
        for depth in range(len(branching))
    ]
    return rewards, texts


def value_of(rewards: np.ndarray, node: Node) -> Fraction:
    """Value iteration as the paper states it: a node's value is the mean of its children's."""
    place = (node.question, *node.path)
    if len(place) == rewards.ndim:
        return Fraction(int(rewards[place]))
    children = [Node(node.question, (*node.path, n)) for n in range(rewards.shape[len(place)])]
    return sum((value_of(rewards, child) for child in children), Fraction(0)) / len(children)


def reference(
    rewards: np.ndarray, texts: np.ndarray, role: int, config: CreditConfig
) -> tuple[list[Node], list[Pair], list[Node], list[Node]]:
    sft, pairs, right, wrong = [], [], [], []
    for question, *parent in np.ndindex(rewards.shape[: role + 1]):
        siblings, seen = [], set()
        for branch in range(rewards.shape[role + 1]):
            text = texts[(question, *parent, branch)]
            if text not in seen or not config.drop_duplicates:
                siblings.append(Node(question, (*parent, branch)))
            seen.add(text)
        values = {node: value_of(rewards, node) for node in siblings}
        correct = {node for node in siblings if values[node] > Fraction(config.threshold)}
        of_parent = [
            Pair(a, b, float(values[a] - values[b]))
            for a, b in itertools.product(siblings, siblings)
            if values[a] - values[b] >= Fraction(config.min_value_gap)
            and (
                values[a] > values[b]
                if config.pairs == "values"
                else a in correct and b not in correct
            )
        ]
        has_pair = any(a in correct and b not in correct for a in siblings for b in siblings)
        pairs += of_parent
        if config.sft_rows == "correct" or has_pair:
            sft += [node for node in siblings if node in correct]
        right += [node for node in siblings if node in correct]
        wrong += [node for node in siblings if node not in correct]
    return sft, pairs, right, wrong


@given(trees())
def test_values_are_means_of_means(tree: tuple[np.ndarray, list[np.ndarray]]):
    rewards, _ = tree
    values = credit.values(rewards)
    assert len(values) == rewards.ndim - 1
    for role, value in enumerate(values):
        assert value.shape == rewards.shape[: role + 2]
        for question, *path in np.ndindex(value.shape):
            expected = value_of(rewards, Node(question, tuple(path)))
            assert value[(question, *path)] == pytest.approx(float(expected), abs=1e-15)


@given(
    trees(),
    st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    st.sampled_from(["correct", "paired"]),
    st.booleans(),
    st.sampled_from(["labels", "values"]),
    st.sampled_from([0.0, 0.25, 0.5]),
)
def test_rows_and_pairs(
    tree: tuple[np.ndarray, list[np.ndarray]],
    threshold: float,
    sft_rows: str,
    drop: bool,
    kind: str,
    gap: float,
):
    rewards, texts = tree
    config = CreditConfig(
        threshold=threshold,
        sft_rows=sft_rows,
        drop_duplicates=drop,
        pairs=kind,
        min_value_gap=gap,
    )
    roles = credit.assign(rewards, texts, range(len(rewards)), [config] * len(texts), seed=0)
    for role, rows in enumerate(roles):
        sft, pairs, right, wrong = reference(rewards, texts[role], role, config)
        assert list(rows.sft) == sft
        assert (list(rows.correct), list(rows.incorrect)) == (right, wrong)
        assert [pair[:2] for pair in rows.pairs] == [pair[:2] for pair in pairs]
        np.testing.assert_allclose(
            [pair.gap for pair in rows.pairs], [pair.gap for pair in pairs], atol=1e-12
        )


@given(trees(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_caps_choose_among_the_rows_of_each_question(
    tree: tuple[np.ndarray, list[np.ndarray]], max_rows: int, max_pairs: int, seed: int
):
    rewards, texts = tree
    config = CreditConfig(max_rows_per_question=max_rows, max_pairs_per_question=max_pairs)
    full = dataclasses.replace(config, max_rows_per_question=None, max_pairs_per_question=None)
    ids = range(7, 7 + len(rewards))
    capped = credit.assign(rewards, texts, ids, [config] * len(texts), seed)
    every_row = credit.assign(rewards, texts, ids, [full] * len(texts), seed)
    for rows, all_rows in zip(capped, every_row, strict=True):
        assert list(rows.sft) == [node for node in all_rows.sft if node in set(rows.sft)]
        assert list(rows.pairs) == [pair for pair in all_rows.pairs if pair in set(rows.pairs)]
        for nodes, every in (
            (rows.correct, all_rows.correct),
            (rows.incorrect, all_rows.incorrect),
        ):
            assert list(nodes) == [node for node in every if node in set(nodes)]
            for question in range(len(rewards)):
                count = sum(node.question == question for node in nodes)
                assert count == min(max_rows, sum(n.question == question for n in every))
        assert rows.correct == rows.sft
        for question in range(len(rewards)):
            count = sum(node.question == question for node in rows.sft)
            assert count == min(max_rows, sum(n.question == question for n in all_rows.sft))
            count = sum(pair.chosen.question == question for pair in rows.pairs)
            assert count == min(
                max_pairs, sum(pair.chosen.question == question for pair in all_rows.pairs)
            )


def test_capped_rows_depend_on_the_seed_and_the_question_not_on_the_batch():
    rewards = np.random.default_rng(0).integers(0, 2, (4, 4, 4)).astype(float)
    texts = [np.arange(16).reshape(4, 4).astype(str).astype(object)]
    texts.append(np.arange(64).reshape(4, 4, 4).astype(str).astype(object))
    config = CreditConfig(max_pairs_per_question=2, max_rows_per_question=2)
    together = credit.assign(rewards, texts, [3, 1, 4, 5], [config] * 2, seed=0)
    for row, question_id in enumerate([3, 1, 4, 5]):
        alone = credit.assign(
            rewards[row : row + 1],
            [t[row : row + 1] for t in texts],
            [question_id],
            [config] * 2,
            seed=0,
        )
        for role, rows in enumerate(alone):
            kept = [pair for pair in together[role].pairs if pair.chosen.question == row]
            assert [p.chosen.path for p in rows.pairs] == [p.chosen.path for p in kept]
            assert [p.rejected.path for p in rows.pairs] == [p.rejected.path for p in kept]
    assert credit.assign(rewards, texts, [3, 1, 4, 5], [config] * 2, seed=1) != together


def test_a_value_at_the_threshold_is_incorrect():
    rewards = np.array([[[1.0, 0.0], [1.0, 1.0]]])
    generator, _ = credit.values(rewards)
    assert generator.tolist() == [[0.5, 1.0]]
    assert credit.labels(generator, 0.5).tolist() == [[False, True]]
    texts = [np.array([["a", "b"]], object), np.array([[["a", "b"], ["a", "b"]]], object)]
    roles = credit.assign(rewards, texts, [0], [CreditConfig()] * 2, seed=0)
    assert roles[0].pairs == (Pair(Node(0, (1,)), Node(0, (0,)), 0.5),)
    assert roles[1].pairs == (Pair(Node(0, (0, 0)), Node(0, (0, 1)), 1.0),)


def test_roles_have_options_of_their_own():
    rewards = np.array([[[1.0, 0.0], [1.0, 1.0]]])
    texts = [np.array([["a", "b"]], object), np.array([[["a", "b"], ["a", "b"]]], object)]
    configs = [CreditConfig(threshold=0.25), CreditConfig(max_rows_per_question=1)]
    generator, refiner = credit.assign(rewards, texts, [0], configs, seed=0)
    assert len(generator.sft) == 2 and generator.pairs == ()
    assert len(refiner.sft) == 1 and len(refiner.pairs) == 1


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_siblings_that_agree_give_no_pair(reward: float):
    rewards = np.full((2, 3, 3, 3), reward)
    texts = [np.arange(v.size).reshape(v.shape).astype(object) for v in credit.values(rewards)]
    for role, rows in enumerate(
        credit.assign(rewards, texts, [0, 1], [CreditConfig()] * 3, seed=0)
    ):
        assert rows.pairs == ()
        assert len(rows.sft) == (2 * 3 ** (role + 1) if reward else 0)


def test_duplicates_count_for_values_but_not_for_rows():
    rewards = np.array([[1.0, 1.0, 0.0, 0.0]])
    texts = [np.array([["yes", "yes", "no", "no"]], object)]
    (rows,) = credit.assign(rewards, texts, [0], [CreditConfig()], seed=0)
    assert rows.sft == (Node(0, (0,)),)
    assert rows.pairs == (Pair(Node(0, (0,)), Node(0, (2,)), 1.0),)
