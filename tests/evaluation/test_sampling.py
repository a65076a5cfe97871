"""What is sampled, and that it does not depend on how it came about."""

from pathlib import Path

import jax
import numpy as np
import pytest
from upath import UPath

from malt_jax.config import QUICKSTART, Config, load_config
from malt_jax.errors import UserError
from malt_jax.evaluation.results import evaluate
from malt_jax.evaluation.sampling import Policies, Team, resolved, sample
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import MALT, STAR, system
from malt_jax.malt.experiment import Experiment, prepare, select_questions
from malt_jax.runs.directory import RunDirectory
from malt_jax.sampling.completions import Completions
from malt_jax.tasks.base import Question

ROLES = ("generator", "verifier", "refiner")


OPTIONS = (
    *("sampling.max_tokens=24", "sampling.chunk=24"),
    *("evaluation.questions_per_batch=2", "evaluation.votes=2"),
)
CONFIG = load_config(QUICKSTART, OPTIONS)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return prepare(CONFIG)


def team_of(experiment: Experiment, policies: Policies) -> Team:
    return Team.of(experiment, CONFIG, experiment.sampling_weights(), policies)


def questions_of(experiment: Experiment, limit: int) -> list[Question]:
    return select_questions(experiment.task, "test", limit, seed=0)


def store_at(path: Path) -> Store:
    return Store(RunDirectory(UPath(path), Config()))


def texts(store: Store, chain: tuple[str, ...], seed: int = 0) -> dict[tuple[int, int], list[int]]:
    by_node = store.samples(seed, chain).by_node
    return {node: by_node[node].ids.tolist() for node in sorted(by_node)}


def test_equal_weights_have_one_name() -> None:
    sft, dpo = {"generator": {}, "refiner": {}}, {"generator": {}, "refiner": {}}
    dpo["generator"] = sft["generator"]
    policies: Policies = {STAR: sft, MALT: dpo}
    assert resolved((MALT,) * 3, ROLES, policies) == ("star", "base", "malt")
    assert resolved((MALT, "silent", MALT), ROLES, policies) == ("star", "silent", "malt")
    assert resolved((STAR,) * 3, ROLES, {}) == ("base",) * 3
    assert resolved(("base", "debater", "debater", "debater"), ROLES, policies)[0] == "base"


def test_more_passes_questions_and_systems_extend_what_is_there(
    experiment: Experiment, tmp_path: Path
) -> None:
    questions = questions_of(experiment, 3)
    at_once, bit_by_bit = (
        Store(RunDirectory(UPath(tmp_path / "at-once"), Config())),
        Store(RunDirectory(UPath(tmp_path / "bits"), Config())),
    )
    names = ["sa+mv@4", "ma"]
    sample(team_of(experiment, {}), [system(n, ROLES, 2) for n in names], questions, 1, at_once)
    for limit, name in ((1, "sa+mv@3"), (3, "sa"), (3, "ma"), (3, "sa+mv@4")):
        sample(team_of(experiment, {}), [system(name, ROLES, 2)], questions[:limit], 1, bit_by_bit)
    for chain, passes in ((("base",), 4), (("base",) * 2, 2), (("base",) * 3, 2)):
        found = texts(at_once, chain)
        assert set(found) == {(q.id, n) for q in questions for n in range(passes)}
        assert texts(bit_by_bit, chain) == found
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet")}
    sample(team_of(experiment, {}), [system(n, ROLES, 2) for n in names], questions, 1, at_once)
    assert files == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.parquet")}
    assert len({tuple(ids) for ids in texts(at_once, ("base",)).values()}) > len(questions)


def test_a_debater_reads_its_own_answer_and_the_others(
    experiment: Experiment, tmp_path: Path
) -> None:
    questions = questions_of(experiment, 2)
    store = store_at(tmp_path)
    content = evaluate(
        team_of(experiment, {}), experiment.task, ["debate", "sa"], questions, 1, store
    )
    assert content["systems"]["debate"]["calls"] == 9
    first, second = texts(store, ("base",)), texts(store, ("base", "debater"))
    assert set(first) == set(second) == {(q.id, agent) for q in questions for agent in range(3)}
    tokenizer = experiment.pipeline.tokenizer
    prompt = team_of(experiment, {}).debate
    last = completions_of(first, [q.id for q in questions])
    root, asked, agents = prompt.levels([question.text for question in questions], last)
    shown = tokenizer.decode([*root[0], *asked[1], *agents[4]])
    own, others = (first[questions[1].id, agent] for agent in (1, 0)), first[questions[1].id, 2]
    for ids in (*own, others):
        assert tokenizer.decode(ids) in shown
    assert shown.index(tokenizer.decode(first[questions[1].id, 1])) > shown.index(questions[1].text)


def completions_of(ids: dict[tuple[int, int], list[int]], questions: list[int]) -> Completions:
    lengths = np.array([[len(ids[q, agent]) for agent in range(3)] for q in questions])
    tokens = np.zeros((*lengths.shape, lengths.max()), np.int32)
    for row, q in enumerate(questions):
        for agent in range(3):
            tokens[row, agent, : lengths[row, agent]] = ids[q, agent]
    return Completions(tokens, np.zeros(tokens.shape), lengths, np.zeros(lengths.shape, np.int32))


def test_a_silent_role_leaves_its_place_in_the_prompt_empty(
    experiment: Experiment, tmp_path: Path
) -> None:
    trained = {role: experiment.policy.init(experiment.base, jax.random.key(1)) for role in ROLES}
    policies: Policies = {STAR: trained, MALT: trained}
    questions, store = questions_of(experiment, 1), store_at(tmp_path)
    names = ["malt-without-verifier", "malt-untrained-generator"]
    content = evaluate(team_of(experiment, policies), experiment.task, names, questions, 1, store)
    assert {folder.name for folder in (tmp_path / "evaluation/seed-0").iterdir()} == {
        *("star", "star-silent-star", "base", "base-star", "base-star-star"),
    }
    by_node = store.samples(0, ("star", "silent", "star")).by_node
    generated = store.samples(0, ("star",)).by_node
    for node, refined in by_node.items():
        prompt = experiment.pipeline.prompts[2].ids(
            questions[0].text, [generated[node].ids.tolist(), []]
        )
        assert refined.prompt_tokens == len(prompt)
    assert content["systems"]["malt-without-verifier"]["calls"] == 2
    # An adapter that is new changes nothing, and the random numbers are the same.
    assert texts(store, ("star",)) == texts(store, ("base",))


def test_trained_systems_of_a_bare_model_are_refused(
    experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"malt\+mv.*--run-dir"):
        evaluate(
            team_of(experiment, {}),
            experiment.task,
            ["sa", "malt+mv"],
            questions_of(experiment, 1),
            1,
            store_at(tmp_path),
        )


def test_a_debate_that_could_exceed_the_model_is_refused(
    experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="Leave the debate out"):
        team_of(experiment, {}).debate.check_lengths(["How many?"], 64, 100)
