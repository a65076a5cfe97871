"""Votes, turns, transitions, costs and groups, against counting by hand."""

import random
from collections import Counter

import numpy as np
import pytest
from upath import UPath

from malt_jax.config import Config, TaskConfig
from malt_jax.evaluation.results import Judge, evaluated
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import Chain, system
from malt_jax.runs.directory import RunDirectory
from malt_jax.sampling.decode import Completions, Finish
from malt_jax.tasks import create
from malt_jax.tasks.base import Question

ROLES = ("generator", "verifier", "refiner")
QUESTIONS = [
    Question(id=10 + i, text="", answer=str(i), metadata={"level": f"{i % 2}"}) for i in range(6)
]
SEEDS, PASSES = 2, 5
CHAINS: list[Chain] = [("base",), ("base", "base"), ("base", "base", "base")]


@pytest.fixture(scope="module")
def written() -> dict[tuple[int, Chain, int, int], str]:
    """What each pass wrote: mostly a number near the right one, sometimes no answer at all."""
    rng = random.Random(1)
    return {
        (seed, chain, question.id, number): rng.choice(
            [
                "I cannot say.",
                f"Final Answer: {rng.randint(0, 6)}",
                f"Final Answer: {question.answer}",
            ]
        )
        for seed in range(SEEDS)
        for chain in CHAINS
        for question in QUESTIONS
        for number in range(PASSES)
    }


@pytest.fixture(scope="module")
def judge(written: dict, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    store = Store(RunDirectory(UPath(tmp_path_factory.mktemp("samples")), Config()))
    for seed in range(SEEDS):
        for depth, chain in enumerate(CHAINS):
            nodes = [(question.id, number) for question in QUESTIONS for number in range(PASSES)]
            shape = (len(QUESTIONS), PASSES)
            lengths = np.full(shape, 10 * (depth + 1), np.int32)
            tokens = np.zeros((*shape, 30), np.int32)
            completions = Completions(
                tokens, tokens.astype(np.float32), lengths, np.full(shape, Finish.STOP)
            )
            texts = np.array([written[seed, chain, *node] for node in nodes], object)
            texts = texts.reshape(shape)
            store.add(seed, chain, nodes, completions, texts, [100 + depth] * len(nodes), 3.0)
    task = create(TaskConfig(name="arithmetic"))
    return Judge(task, ROLES, {}, QUESTIONS, SEEDS, store)


def answer_of(text: str) -> str | None:
    return text.removeprefix("Final Answer: ") if text.startswith("Final") else None


def vote(answers: list[str | None]) -> str | None:
    """The first given of the most frequent answers."""
    given = [answer for answer in answers if answer is not None]
    counts = Counter(given)
    return next((a for a in given if counts[a] == max(counts.values())), None)


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 5])
def test_votes_are_those_counted_by_hand(judge: Judge, written: dict, votes: int) -> None:
    for chain in (CHAINS[0], CHAINS[2]):
        right = judge.correct(chain, votes, voted=True)
        for seed in range(SEEDS):
            for row, question in enumerate(QUESTIONS):
                texts = [written[seed, chain, question.id, n] for n in range(votes)]
                assert right[seed, row, 0] == (vote([*map(answer_of, texts)]) == question.answer)


def test_a_verifier_that_states_no_answer_leaves_the_generators_standing(
    judge: Judge, written: dict
) -> None:
    right = judge.correct(CHAINS[1], PASSES, voted=False)
    for (seed, chain, question, number), text in written.items():
        if chain == CHAINS[1]:
            before = written[seed, CHAINS[0], question, number]
            answer = answer_of(text) or answer_of(before)
            assert right[seed, question - 10, number] == (answer == str(question - 10))
    last = judge.correct(CHAINS[2], PASSES, voted=False)
    silent = [key for key, text in written.items() if key[1] == CHAINS[2] and "cannot" in text]
    assert silent and not any(last[seed, q - 10, n] for seed, _, q, n in silent)


def test_costs_and_results(judge: Judge, written: dict) -> None:
    names = ["sa", "sa+mv@5", "ma", "ma+mv@5"]
    content = evaluated(judge, [system(name, ROLES, PASSES) for name in names])
    pipeline = content["systems"]["ma+mv@5"]
    assert pipeline["calls"] == 15 and pipeline["tokens"] == 5 * (10 + 20 + 30)
    assert pipeline["prompt_tokens"] == 5 * (100 + 101 + 102)
    assert pipeline["seconds"] == pytest.approx(15 * 3.0 / (len(QUESTIONS) * PASSES))
    assert content["systems"]["sa"]["tokens"] == 10
    single = np.array(
        [
            [
                answer_of(written[s, CHAINS[0], q.id, n]) == q.answer
                for q in QUESTIONS
                for n in range(5)
            ]
            for s in range(SEEDS)
        ]
    ).reshape(SEEDS, len(QUESTIONS), 5)
    assert content["systems"]["sa"]["accuracy"] == pytest.approx(single.mean())
    last = np.array(
        [
            [
                answer_of(written[s, CHAINS[2], q.id, n]) == q.answer
                for q in QUESTIONS
                for n in range(5)
            ]
            for s in range(SEEDS)
        ]
    ).reshape(single.shape)
    transition = content["transitions"]["ma: generator -> refiner"]
    assert transition["wrong_to_right"] == pytest.approx((~single & last).mean())
    assert transition["right_to_wrong"] == pytest.approx((single & ~last).mean())
    assert content["turns"]["ma"]["generator"]["accuracy"] == pytest.approx(single.mean())
    assert content["turns"]["ma"]["refiner"]["accuracy"] == pytest.approx(last.mean())
    assert content["groups"]["level"]["1"]["ma"]["accuracy"] == pytest.approx(last[:, 1::2].mean())
    assert content["pass_at_k"]["sa"]["5"] == pytest.approx(single.any(axis=2).mean())
    assert content["pass_at_k"]["sa"]["1"] == pytest.approx(single.mean())
    assert set(content["comparisons"]) == {f"{name} - sa" for name in names[1:]}
    compared = content["comparisons"]["ma - sa"]
    assert compared["difference"] == pytest.approx(last.mean() - single.mean())
    assert compared["mcnemar_p"] <= compared["mcnemar_p_holm"] <= 1
