"""A sweep with the embedded model: what it shares, what it asks, and how it continues."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from malt_jax import sweep
from malt_jax.config import QUICKSTART, load_config
from malt_jax.errors import UserError
from malt_jax.evaluation import sampling
from malt_jax.evaluation.sampling import Team
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import BASE, MALT, STAR, system
from malt_jax.malt import round as malt_round
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.round import restore_trained
from malt_jax.run import train_roles
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.tasks.base import GeneratedTask

SMALL = (
    *("task.train_questions=4", "sampling.questions_per_batch=4", "sampling.chunk=48"),
    *("sft.batch_size=16", "dpo.batch_size=16", "dpo.epochs=1", "evaluation.votes=1"),
    *("evaluation.questions_per_batch=4",),
)
SYSTEMS = ("malt", "star-ma", "ma")
NAMES = ("dpo.learning_rate=0.001", "dpo.learning_rate=0.02")
QUESTIONS = 3


def start(trees: Path, out: Path, *more: str) -> dict:
    systems = ["--systems", ",".join(SYSTEMS), "--questions", str(QUESTIONS)]
    words = more or ("dpo.learning_rate=1e-3,2e-2",)
    sweep.main(["--trees", str(trees), "--out", str(out), *systems, *words])
    return json.loads((out / "sweep.json").read_text())


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "first"
    config = load_config(QUICKSTART, SMALL)
    with open_run(path, config) as directory:
        experiment = prepare(config)
        train_roles(experiment, config, directory, select_questions(experiment.task, "train", 4, 0))
    return path


@pytest.fixture(scope="module")
def swept(trees: Path) -> tuple[Path, dict]:
    """A sweep in which sampling of trees and the test split are out of reach."""
    out = trees.parent / "out"
    questions = GeneratedTask.questions

    def training_alone(task: GeneratedTask, split: str) -> object:
        assert split == "train", "the test split is asked"
        return questions(task, split)

    def no_trees(*_: object) -> None:
        raise AssertionError("trees are sampled")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratedTask, "questions", training_alone)
        patch.setattr(malt_round, "expand", no_trees)
        return out, start(trees, out)


def test_the_content_compares_the_settings(swept: tuple[Path, dict]) -> None:
    out, content = swept
    assert tuple(content["settings"]) == NAMES and content["left"] == 0
    assert content["questions"] == QUESTIONS and content["split"] == "train"
    for name, setting in content["settings"].items():
        assert setting["options"] == {"dpo.learning_rate": float(name.partition("=")[2])}
        assert tuple(setting["systems"]) == SYSTEMS
        best = content["settings"][content["best"]]["systems"]["malt"]["accuracy"]
        accuracy = setting["systems"]["malt"]["accuracy"]
        if name == content["best"]:
            assert setting["from_best"] is None
        else:
            assert setting["from_best"]["difference"] == pytest.approx(accuracy - best)
            assert accuracy <= best
        assert set(setting["training"]) >= {"round-0/verifier/sft", "round-0/refiner/dpo"}
    low, high = (
        content["settings"][name]["training"]["round-0/refiner/dpo"]["rewards/margins"]
        for name in NAMES
    )
    assert low != high
    text = (out / "sweep.md").read_text()
    assert "the test split was not asked" in text and text.count("0.02") >= 1


def test_the_questions_are_those_after_the_trees(trees: Path, swept: tuple[Path, dict]) -> None:
    def ids(files: list[Path]) -> set[int]:
        assert files
        return {id for f in files for id in pq.read_table(f).column("question").to_pylist()}

    of_trees = ids(list((trees / "round-0/trees").glob("*.parquet")))
    asked = ids(list(swept[0].rglob("evaluation-train/**/samples-*.parquet")))
    task = prepare(load_config(QUICKSTART, SMALL)).task
    order = [q.id for q in select_questions(task, "train", 4 + QUESTIONS, 0)]
    assert of_trees == set(order[:4]) and asked == set(order[4:])
    assert not list(swept[0].rglob("evaluation"))


def test_shared_work_is_what_a_setting_makes_itself(
    trees: Path, swept: tuple[Path, dict], tmp_path: Path
) -> None:
    """SFT stages and samples that were taken from elsewhere have the bits of own ones."""
    own = RunDirectory.read(swept[0] / NAMES[1])
    config = own.config
    assert (own.path / "round-0/verifier/sft/source.json").exists()
    assert not (own.path / "round-0/verifier/dpo/source.json").exists()
    assert {f.name for f in (own.path / "evaluation-train/seed-0").iterdir()} == {
        "star-malt",
        "star-malt-malt",
    }
    experiment = prepare(config)
    asked = select_questions(experiment.task, "train", 4, 0)
    judged = select_questions(experiment.task, "train", QUESTIONS, 0, skip=4)
    restored = restore_trained(own, config, experiment.policy.like())
    with open_run(tmp_path / "alone", config) as directory:
        trained = train_roles(experiment, config, directory, asked, own.path).trained
        jax.tree.map(np.testing.assert_array_equal, restored.sft, trained.sft)
        jax.tree.map(np.testing.assert_array_equal, restored.final, trained.final)
        store = Store(directory, "evaluation-train")
        with experiment.sampling_weights() as weights:
            policies = {STAR: trained.sft, MALT: trained.final}
            team = Team.of(experiment, config, weights, policies)
            systems = [system(name, experiment.pipeline.names, 1) for name in SYSTEMS]
            sampling.sample(team, systems, judged, 1, store)
    shared = {f.name: f for f in (swept[0] / "evaluation-train").iterdir() if f.is_dir()}
    folders = {(BASE,) * 3: shared.pop("untrained")}
    folders[STAR, STAR, STAR] = shared.popitem()[1]
    folders[STAR, MALT, MALT] = own.path / "evaluation-train"
    assert not shared
    for chain, folder in folders.items():
        (file,) = (folder / "seed-0" / "-".join(chain)).iterdir()
        table = pq.read_table(file).to_pylist()
        samples = store.samples(0, chain).by_node
        assert {(row["question"], row["pass"]): row["text"] for row in table} == {
            node: sample.text for node, sample in samples.items()
        }


def test_a_sweep_continues_and_takes_more_settings(
    trees: Path, swept: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(swept[0], tmp_path / "out"))
    # As if it had been interrupted in the second setting, while that answered.
    shutil.rmtree(out / NAMES[1] / "evaluation-train")
    (out / "sweep.json").unlink()
    draws: list[tuple[str, ...]] = []
    draw = sampling._Answers.draw

    def drawing(answers: object, wanted: sampling._Draw, variables: object) -> int:
        draws.append(wanted.chain)
        return draw(answers, wanted, variables)

    monkeypatch.setattr(sampling._Answers, "draw", drawing)
    assert start(trees, out) == swept[1]
    assert draws == [(STAR, MALT), (STAR, MALT, MALT)]
    draws.clear()
    content = start(trees, out, "dpo.learning_rate=1e-3", "training.dpo_roles=[refiner]")
    (name,) = content["settings"]
    assert draws == [(STAR, STAR, MALT)] and name.startswith("training.dpo_roles=_refiner_")


@pytest.mark.parametrize("word", ["seed=1,2", "sampling.top_p=0.5", "pipeline.roles.0.branching=2"])
def test_settings_that_need_other_trees_are_refused(trees: Path, tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match="needs other trees") as raised:
        start(trees, tmp_path / "out", word)
    assert word.partition("=")[0] in str(raised.value)
    assert not (tmp_path / "out").exists()
