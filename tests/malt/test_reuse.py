"""Trees of another run: the same bits as sampled ones, and refused where they would differ."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from upath import UPath

from malt_jax.config import QUICKSTART, Config, load_config
from malt_jax.errors import UserError
from malt_jax.malt import round as malt_round
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.reuse import TREES, tree_inputs
from malt_jax.model.llama import Params
from malt_jax.run import train_roles
from malt_jax.runs.copying import stage_source
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.runs.stage import Stage

SMALL = (
    *("task.train_questions=4", "sampling.questions_per_batch=2", "sampling.chunk=48"),
    *("sft.batch_size=16", "dpo.batch_size=16", "dpo.epochs=1", "dpo.nll_weight=0.0"),
)


def small(*overrides: str) -> Config:
    return load_config(QUICKSTART, [*SMALL, *overrides])


def start(path: Path, config: Config, trees: Path | None = None) -> dict[str, Params]:
    """Trains a run's roles, without an evaluation."""
    with open_run(path, config) as directory:
        experiment = prepare(config)
        asked = select_questions(experiment.task, "train", config.task.train_questions, config.seed)
        source = None if trees is None else UPath(trees)
        return train_roles(experiment, config, directory, asked, source).trained.final


def files(run: Path) -> dict[str, bytes]:
    found = {f.name: f.read_bytes() for f in (run / TREES).iterdir()}
    return {name: found[name] for name in found if name not in ("source.json", "manifest.json")}


def require_equal(left: dict[str, Params], right: dict[str, Params]) -> None:
    assert left.keys() == right.keys()
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Params]]:
    path = tmp_path_factory.mktemp("reuse") / "first"
    return path, start(path, small())


@pytest.fixture
def source(first: tuple[Path, dict[str, Params]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "source"))


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def expand(*_: object) -> None:
        raise AssertionError("trees are sampled")

    monkeypatch.setattr(malt_round, "expand", expand)


@pytest.mark.usefixtures("no_sampling")
def test_copied_trees_give_the_bits_of_sampled_ones(
    first: tuple[Path, dict[str, Params]], source: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    require_equal(start(new, small(), source), first[1])
    assert files(new) == files(first[0])
    record = json.loads((new / TREES / "source.json").read_text())
    assert record["run"] == str(source) == stage_source(RunDirectory.read(new), TREES)
    assert record["seconds"] > 0
    # The run is whole without its source, with and without --trees.
    shutil.rmtree(source)
    shutil.rmtree(new / "round-0/refiner")
    require_equal(start(new, small(), source), first[1])
    require_equal(start(new, small()), first[1])


@pytest.mark.usefixtures("no_sampling")
def test_settings_after_the_trees_may_differ(source: Path, tmp_path: Path) -> None:
    config = small(
        *("credit.threshold=0.3", "credit.pairs=values", "lora.rank=4", "training.dpo_roles=[]"),
        *("sft.epochs=2", "roles.refiner.dpo.beta=0.5"),
        *("evaluation.votes=5", "task.test_questions=9"),
    )
    start(tmp_path / "new", config, source)
    rows = [(run / "round-0/rows/counts.json").read_text() for run in (source, tmp_path / "new")]
    assert rows[0] != rows[1]


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("task.train_questions=5", "task.train_questions: 4 -> 5"),
        ("task.name=arithmetic", "task.name: riddles -> arithmetic"),
        ("pipeline.roles.1.branching=2", "pipeline.roles.1.branching: 3 -> 2"),
        ("sampling.temperature=0.5", "sampling.temperature: 1.0 -> 0.5"),
        ("model.dtype=bfloat16", "model.dtype: auto -> bfloat16"),
    ],
)
def test_other_trees_are_refused(
    option: str, difference: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        start(tmp_path / "new", small(option), source)
    assert difference in str(raised.value) and "leave --trees out" in str(raised.value)
    assert not (tmp_path / "new" / TREES).exists()


def test_a_prompt_file_that_has_changed_is_noticed(tmp_path: Path) -> None:
    prompt = Path(malt_round.__file__).parents[1] / "prompts/riddles/verifier.yaml"
    own = tmp_path / "verifier.yaml"
    own.write_text(prompt.read_text())
    config = small(f"pipeline.roles.1.prompt={own}", "training.dpo_roles=[]")
    start(tmp_path / "first", config)
    own.write_text(prompt.read_text().replace("{question}", "Q: {question}"))
    with pytest.raises(UserError, match=r"the prompts' content: SHA-256 .* -> SHA-256"):
        start(tmp_path / "new", config, tmp_path / "first")


def test_inputs_depend_on_weights_and_questions() -> None:
    experiment = prepare(small())
    asked = select_questions(experiment.task, "train", 4, 0)
    inputs = tree_inputs(experiment, asked)
    assert inputs == tree_inputs(prepare(small("lora.rank=2")), asked)
    other = experiment._replace(base=jax.tree.map(lambda x: x * 1.5, experiment.base))
    assert [k for k, v in tree_inputs(other, asked).items() if v != inputs[k]] == ["weights"]
    asked[3] = dataclasses.replace(asked[3], answer="0")
    assert [k for k, v in tree_inputs(experiment, asked).items() if v != inputs[k]] == ["questions"]


def test_damaged_trees_are_named(source: Path, tmp_path: Path) -> None:
    file = source / TREES / "batch-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"batch-00001\.parquet is damaged"):
        start(tmp_path / "new", small(), source)


@pytest.mark.usefixtures("no_sampling")
def test_an_interrupted_copy_goes_on(
    first: tuple[Path, dict[str, Params]],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    write = Stage.write

    def dying(stage: Stage, name: str, content: bytes | str) -> UPath:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return write(stage, name, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stage, "write", dying)
        start(tmp_path / "new", small(), source)
    assert written[0] == "source.json"
    require_equal(start(tmp_path / "new", small()), first[1])


def test_a_run_with_trees_of_its_own_keeps_them(source: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(source, tmp_path / "own"))
    with pytest.raises(UserError, match="has trees already, which it sampled itself"):
        start(own, small(), source)
    with pytest.raises(UserError, match="is the run itself"):
        shutil.rmtree(own / "round-0")
        start(own, small(), own)
    with pytest.raises(UserError, match="is no run directory"):
        start(tmp_path / "new", small(), tmp_path / "nothing")
