"""The paper's measurements of an untrained model, against its systems and counts by hand."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import pytest
from upath import UPath

from malt_jax.config import Config, TaskConfig, load_config
from malt_jax.errors import UserError
from malt_jax.evaluation.paper import (
    PaperOptions,
    evaluate_paper,
    evaluate_transfer,
    transfers,
)
from malt_jax.evaluation.sampling import DebatePrompt, Policies, Team
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import MALT, STAR
from malt_jax.malt.experiment import Experiment, prepare, select_questions
from malt_jax.runs.directory import RunDirectory

CONFIG = load_config(
    None,
    [
        "sampling.temperature=1.0",
        "sampling.max_tokens=16",
        "sampling.chunk=16",
        "evaluation.questions_per_batch=4",
        "evaluation.votes=2",
        "task.test_questions=4",
    ],
)
ROLES = ("generator", "verifier", "refiner")


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return prepare(CONFIG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


def measured(
    experiment: Experiment, folder: Path, policies: Policies | None = None, **options: Any
) -> dict[str, Any]:
    questions = select_questions(experiment.task, "test", 4, seed=0)
    store = Store(RunDirectory(UPath(folder), Config()))
    team = Team.of(experiment, CONFIG, experiment.sampling_weights(), policies or {})
    task, paper = experiment.task, PaperOptions(**options)
    return evaluate_paper(team, task, questions, "test", 1, store, paper)


@pytest.fixture(scope="module")
def content(experiment: Experiment, folder: Path) -> dict[str, Any]:
    return measured(experiment, folder, votes=3)


def test_an_untrained_model_has_what_it_can_have(content: dict[str, Any]) -> None:
    assert list(content["systems"]) == ["sa", "sa+mv", "sa+mv@6", "ma", "ma+mv", "debate"]
    missing = content["paper"]["missing"]
    assert len(missing) == 2
    assert "--run-dir" in missing[0] and "--transfer" in missing[1]
    counts = content["paper"]["questions"]
    assert counts["asked"] == 4 and counts["available"] > 4 and counts["published"] is None


def test_votes_are_those_of_the_systems(content: dict[str, Any]) -> None:
    votes, systems = content["paper"]["votes"], content["systems"]
    # Three votes of the pipeline are nine calls, and so are nine of the single model.
    assert [*votes["ma"]] == ["1", "2", "3"] and [*votes["sa"]] == [str(k) for k in range(1, 10)]
    for name, system in (("sa", "sa+mv"), ("ma", "ma+mv")):
        for field, value in votes[name]["2"].items():
            assert systems[system][field] == value
    assert votes["sa"]["6"]["accuracy"] == systems["sa+mv@6"]["accuracy"]
    assert votes["ma"]["3"]["calls"] == votes["sa"]["9"]["calls"] == 9


def test_roles_mend_and_break_what_the_turns_say(content: dict[str, Any]) -> None:
    turns, by_role = content["turns"]["ma"], content["paper"]["self_correction"]["ma"]
    assert [*by_role] == [*ROLES[1:]]
    for before, role in itertools.pairwise(ROLES):
        entry = by_role[role]
        assert entry["accuracy_before"] == pytest.approx(turns[before]["accuracy"])
        assert entry["net"] == pytest.approx(entry["wrong_to_right"] - entry["right_to_wrong"])
        after = entry["accuracy_before"] + entry["net"]
        assert after == pytest.approx(turns[role]["accuracy"])


def test_methods_are_compared_at_equal_calls(content: dict[str, Any]) -> None:
    equal, systems = content["paper"]["equal_calls"], content["systems"]
    assert set(equal) == {"ma+mv - sa+mv@6"}
    (entry,) = equal.values()
    expected = systems["ma+mv"]["accuracy"] - systems["sa+mv@6"]["accuracy"]
    assert entry["difference"] == pytest.approx(expected)


def test_samples_are_drawn_once_and_a_debate_that_does_not_fit_is_named(
    content: dict[str, Any], experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: object) -> None:
        raise UserError("the question is too long")

    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    monkeypatch.setattr(DebatePrompt, "check_lengths", too_long)
    again = measured(experiment, folder, votes=3)
    assert "debate: the question is too long" in again["paper"]["missing"]
    assert "debate" not in again["systems"]
    assert again["paper"]["votes"] == content["paper"]["votes"]
    assert files == {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}


def test_trained_roles_are_compared_with_each_other(experiment: Experiment, folder: Path) -> None:
    # New adapters change nothing, so the samples of the untrained model are those of star.
    trained = {role: experiment.policy.init(experiment.base, jax.random.key(1)) for role in ROLES}
    policies: Policies = {STAR: trained, MALT: trained}
    content = measured(experiment, folder / "trained", policies, votes=2)
    paper = content["paper"]
    assert [*paper["self_correction"]] == ["ma", "star-ma", "malt"]
    assert [*paper["votes"]] == ["sa", "ma", "star-ma", "malt"]
    assert paper["votes"]["malt"]["2"]["accuracy"] == content["systems"]["malt+mv"]["accuracy"]
    sides = {"malt+mv - sa+mv@6", "malt+mv - ma+mv", "malt+mv - star-ma+mv"}
    assert set(paper["equal_calls"]) == sides | {"malt - ma", "malt - star-ma"}
    assert len(paper["missing"]) == 1 and paper["missing"][0].startswith("transfer")


def test_an_export_has_no_weights_after_sft(experiment: Experiment, folder: Path) -> None:
    trained = {role: experiment.policy.init(experiment.base, jax.random.key(1)) for role in ROLES}
    content = measured(experiment, folder / "trained", {MALT: trained}, votes=2)
    assert not any(name.startswith("star") for name in content["systems"])
    assert [*content["paper"]["votes"]] == ["sa", "ma", "malt"]
    assert "star-sa" in content["paper"]["missing"][0]
    assert "malt-until-verifier+mv" in content["systems"]


def test_transfer_asks_another_task_and_keeps_its_samples_apart(
    experiment: Experiment, folder: Path
) -> None:
    options = PaperOptions(transfer=(TaskConfig(name="addition"),))
    (other,) = transfers(experiment, CONFIG, options, limit=2)
    store = Store(RunDirectory(UPath(folder / "transfer"), Config()))
    weights = experiment.sampling_weights()
    entry = evaluate_transfer(other, CONFIG, weights, {}, 1, store)
    assert entry["task"] == "addition" and entry["questions"]["asked"] == 2
    assert [*entry["systems"]] == ["sa", "sa+mv", "sa+mv@6", "ma", "ma+mv"]
    assert set(entry["comparisons"]) == {f"{n} - sa" for n in entry["systems"] if n != "sa"}
    (below,) = (folder / "transfer/evaluation/transfer").iterdir()
    assert below.name.startswith("addition-") and (below / "seed-0/base").is_dir()
    # Other options or another file are other questions, in another folder.
    changed = dataclasses.replace(other.config, options={"digits": 3})
    moved = other._replace(config=changed)
    evaluate_transfer(moved, CONFIG, weights, {}, 1, store)
    assert len([*(folder / "transfer/evaluation/transfer").iterdir()]) == 2


def test_transfers_are_checked_before_anything_is_sampled(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="unknown task 'sums'"):
        transfers(experiment, CONFIG, PaperOptions(transfer=(TaskConfig(name="sums"),)), None)
    missing = TaskConfig(name="gsm8k", test="no-such-file.jsonl")
    with pytest.raises(UserError, match="no-such-file"):
        transfers(experiment, CONFIG, PaperOptions(transfer=(missing,)), None)
