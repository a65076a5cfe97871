"""The whole loop through its command: stages, results, resuming, and refusing."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest

import malt_jax
from malt_jax import evaluate, solve, train
from malt_jax.config import load_config
from malt_jax.errors import Stopped, UserError
from malt_jax.evaluation.systems import run_names
from malt_jax.evaluation.systems import system as named_system
from malt_jax.malt import round as malt_round
from malt_jax.malt.experiment import prepare
from malt_jax.malt.stage import train_stage
from malt_jax.malt.tree import expand
from malt_jax.runs.checkpoints import restore_tree
from tests.training.small import same_bits

ROLES = ("generator", "verifier", "refiner")
SMALL = [
    "task.train_questions=6",
    "task.test_questions=5",
    "sampling.questions_per_batch=4",
    "evaluation.questions_per_batch=4",
    "sampling.max_tokens=48",
    "sampling.chunk=48",  # one program for every depth
    "sft.batch_size=16",
    "dpo.batch_size=16",
    "dpo.learning_rate=0.01",
    "dpo.nll_weight=0.0",
    "sft.epochs=1",
    "dpo.epochs=1",
]


def start(directory: Path, *overrides: str) -> None:
    train.main(["--run-dir", str(directory), *SMALL, *overrides])


def results(directory: Path) -> dict:
    content = json.loads((directory / "results.json").read_text())
    del content["seconds"]
    for system in content["systems"].values():
        del system["seconds"]
    return content


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "whole"
    start(directory)
    return directory


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_results_follow_the_schema(run: Path) -> None:
    content = json.loads((run / "results.json").read_text())
    schema = json.loads((Path(malt_jax.__file__).parent / "results_schema.json").read_text())
    jsonschema.validate(content, schema)
    assert set(content["systems"]) == set(run_names(ROLES, 3))
    for name, measured in content["systems"].items():
        assert measured["questions"] == 5
        assert measured["calls"] == named_system(name, ROLES, 3).calls
    single, voted = content["systems"]["ma"], content["systems"]["ma+mv"]
    assert voted["tokens"] == pytest.approx(3 * single["tokens"])
    counts = content["rounds"][0]["verifier"]
    assert counts["rows"] > 0
    assert sum(counts["pair_lengths"].values()) == counts["pairs"]
    styles = [count for of_chosen in counts["pair_styles"].values() for count in of_chosen.values()]
    assert sum(styles) == counts["pairs"]


def test_the_report_of_a_run_is_next_to_its_results(run: Path) -> None:
    text = (run / "report/index.html").read_text(encoding="utf-8")
    assert "round-0/verifier/dpo" in text and "has not finished" not in text


def test_the_run_directory_holds_every_node_and_what_was_learned(run: Path) -> None:
    trees = [pq.read_table(file) for file in sorted((run / "round-0/trees").glob("*.parquet"))]
    assert [table.num_rows for table in trees] == [4 * 39, 2 * 39]
    rows = (run / "round-0/rows/refiner/sft.jsonl").read_text().splitlines()
    node = json.loads(rows[0])
    table = trees[0].to_pylist() + trees[1].to_pylist()
    stored = [n for n in table if n["question"] == node["question"] and n["path"] == node["path"]]
    assert stored[0]["role"] == "refiner" and stored[0]["value"] == 1.0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = next(s for s in steps if s["stage"] == "round-0/refiner/dpo")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
    last = [s["loss"] for s in steps if s["stage"] == "round-0/refiner/sft"][-10:]
    training = json.loads((run / "results.json").read_text())["training"]
    assert training["round-0/refiner/sft"]["loss"] == pytest.approx(sum(last) / len(last))
    assert "| refiner/dpo |" in (run / "tables.md").read_text()
    assert {"training-sft.png", "training-dpo.svg"} <= {f.name for f in (run / "plots").iterdir()}


@pytest.mark.parametrize(
    "lost",
    [
        ["evaluation"],
        ["round-0/refiner/dpo", "evaluation"],
        ["round-0/verifier", "round-0/refiner", "evaluation", "round-0/rows"],
    ],
)
def test_an_interrupted_run_ends_in_the_same_results(run: Path, copy: Path, lost: list) -> None:
    for stage in [*lost, "results.json"]:
        path = copy / stage
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept = {f: f.stat().st_mtime_ns for f in (copy / "round-0/trees").iterdir()}
    start(copy)
    assert results(copy) == results(run)
    assert kept == {f: f.stat().st_mtime_ns for f in (copy / "round-0/trees").iterdir()}


def test_a_run_that_dies_between_batches_keeps_what_it_has(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "dies"
    sampled = []

    def dying(*arguments: object) -> object:
        if sampled:
            raise KeyboardInterrupt
        sampled.append(expand(*arguments))
        return sampled[0]

    monkeypatch.setattr(malt_round, "expand", dying)
    with pytest.raises(KeyboardInterrupt):
        start(directory)
    assert not (directory / "round-0/trees/manifest.json").exists()
    monkeypatch.setattr(malt_round, "expand", expand)
    start(directory)
    assert results(directory) == results(run)


def test_sigterm_ends_training_when_its_batch_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = [signal.SIGTERM]

    def preempted(*arguments: object) -> object:
        while signals:
            signal.raise_signal(signals.pop())
        return expand(*arguments)

    monkeypatch.setattr(malt_round, "expand", preempted)
    with pytest.raises(Stopped):
        start(tmp_path)
    kept = [path.name for path in (tmp_path / "round-0/trees").glob("*.parquet")]
    assert kept == ["batch-00000.parquet"]


def test_trees_of_another_run_come_with_its_options(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_trees(*_: object) -> None:
        raise AssertionError("trees are sampled")

    monkeypatch.setattr(malt_round, "expand", no_trees)
    source, new = Path(shutil.copytree(run, tmp_path / "source")), tmp_path / "new"
    shutil.rmtree(source / "evaluation")
    arguments = ["--run-dir", str(new), "--trees", str(source), "training.dpo_roles=[refiner]"]
    train.main(arguments)
    content, earlier = results(new), results(run)
    assert content.pop("trees_from") == str(source)
    assert content["config"] != earlier["config"]
    assert content["config"]["task"] == earlier["config"]["task"]
    assert content["systems"]["star-ma"] == earlier["systems"]["star-ma"]
    with pytest.raises(UserError, match=r"sampling\.top_p: 1\.0 -> 0\.5"):
        train.main(["--run-dir", str(tmp_path / "other"), *arguments[2:], "sampling.top_p=0.5"])
    assert not (tmp_path / "other").exists()
    shutil.rmtree(source)
    shutil.rmtree(new / "round-0/refiner/dpo")
    train.main(arguments)
    assert results(new)["systems"] == content["systems"]
    with pytest.raises(UserError, match="is no run directory"):
        train.main(["--run-dir", str(tmp_path / "other"), "--trees", str(source)])


def test_another_configuration_is_refused_and_named(copy: Path) -> None:
    before = (copy / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"sampling\.temperature: 1\.0 -> 0\.9"):
        start(copy, "sampling.temperature=0.9")
    assert (copy / "results.json").read_bytes() == before


def test_a_damaged_stage_is_named(copy: Path) -> None:
    file = next((copy / "round-0/trees").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match=file.name):
        start(copy)


def test_trees_without_a_pair_keep_the_sft_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # With one branch there are no siblings, so no pairs.
    ones = [f"pipeline.roles.{role}.branching=1" for role in range(3)]
    start(tmp_path / "run", *ones, "task.train_questions=4", "task.test_questions=4")
    content = results(tmp_path / "run")
    assert content["rounds"][0]["refiner"]["pairs"] == 0
    assert "no preference pair for the refiner" in caplog.text
    assert content["systems"]["malt"] == content["systems"]["star-ma"]


def test_full_fine_tuning_runs_through_the_same_loop(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    start(directory, "training.method=full", "sft.learning_rate=1e-4", "dpo.learning_rate=1e-4")
    assert set(results(directory)["systems"]) == set(run_names(ROLES, 3))


def test_changed_inputs_are_refused_or_noted(copy: Path) -> None:
    inputs = json.loads((copy / "inputs.json").read_text())
    inputs["inputs"]["version of jax"] = "0.1"
    (copy / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(UserError, match=r"version of jax: 0\.1 -> .*\n.*--accept-changes"):
        start(copy)
    start(copy, "--accept-changes")
    (change,) = results(copy)["accepted_changes"]
    assert change.startswith("version of jax: 0.1 -> ")


def test_two_rounds_build_on_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    starts: dict[str, Any] = {}
    sampled: list[Any] = []

    def note_start(name: str, *arguments: Any) -> Any:
        starts[name] = arguments[3]
        return train_stage(name, *arguments)

    def note_variables(sampler: Any, prompts: Any, variables: Any, *rest: Any) -> Any:
        sampled.append(variables)
        return expand(sampler, prompts, variables, *rest)

    monkeypatch.setattr(malt_round, "train_stage", note_start)
    monkeypatch.setattr(malt_round, "expand", note_variables)
    start(directory, "rounds=2", "task.test_questions=4", "task.train_questions=4")

    experiment = prepare(load_config(directory / "config.yaml"))

    def left_by(stage: str) -> Any:
        return restore_tree(directory / stage / "weights", experiment.policy.like())

    # The verifier has DPO: SFT goes on from SFT, and DPO from SFT of its own round.
    sft, dpo = left_by("round-0/verifier/sft"), left_by("round-0/verifier/dpo")
    assert not same_bits(sft, dpo)
    assert same_bits(starts["round-0/verifier/dpo"], sft)
    assert same_bits(starts["round-1/verifier/sft"], sft)
    assert same_bits(starts["round-1/verifier/dpo"], left_by("round-1/verifier/sft"))
    # The first trees are the base model's, the second ones those of the final policies.
    with experiment.sampling_weights() as weights:
        assert len(sampled) == 2
        assert same_bits(sampled[0][1], weights.of(None))
        assert same_bits(sampled[1][1], weights.of(dpo))
    content = results(directory)
    assert len(content["rounds"]) == 2
    stages = [f"round-{number}/verifier/sft" for number in (0, 1)]
    assert content["policies"]["star"]["verifier"] == stages
    assert content["policies"]["malt"]["verifier"] == [*stages, "round-1/verifier/dpo"]
    assert content["policies"]["malt"]["generator"] == content["policies"]["star"]["generator"]
    schema = json.loads((Path(malt_jax.__file__).parent / "results_schema.json").read_text())
    jsonschema.validate(json.loads((directory / "results.json").read_text()), schema)


def test_solve_prints_every_role_and_the_answer(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "(x+7)*4=76"
    solve.main([str(run), question, "sampling.temperature=0"])
    trained = capsys.readouterr().out
    positions = [trained.index(f"--- {role} ---") for role in ("generator", "verifier", "refiner")]
    assert positions == sorted(positions)
    assert trained.count("Final Answer: ") >= 2 and "\nanswer: " in trained
    solve.main(["tiny", question, "sampling.temperature=0"])
    assert "answer: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["malt_jax.train", "sampling.temperatur=1"], "did you mean temperature?"),
        (["malt_jax.train", "model.name=no-such-model"], "no-such-model"),
        (["malt_jax.train", "task.name=gsm8k", "task.train=missing.jsonl"], "missing.jsonl"),
        (["malt_jax.solve", "no-such-run", "1+1?"], "no-such-run"),
    ],
)
def test_errors_are_one_message_without_a_traceback(
    command: list[str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(malt_jax.__file__).parent.parent), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_compares_all_systems_of_a_run(run: Path, tmp_path: Path) -> None:
    """With the training's own samples, adding what is missing, and the same when asked again."""
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    samples = {f: f.read_bytes() for f in sorted((copy / "evaluation").rglob("*.parquet"))}
    evaluate.main(["--run-dir", str(copy)])
    folder = copy / "evaluation"
    content = json.loads((folder / "results.json").read_text())
    schema = json.loads((Path(malt_jax.__file__).parent / "results_schema.json").read_text())
    jsonschema.validate(content, schema)
    earlier = json.loads((run / "results.json").read_text())
    assert len(content["systems"]) == 18
    for name, system in earlier["systems"].items():
        assert content["systems"][name]["accuracy"] == system["accuracy"]
    assert content["values"] == earlier["values"] and content["rounds"] == earlier["rounds"]
    assert samples == {f: f.read_bytes() for f in samples}
    for name in content["systems"]:
        assert f"| {name} |" in (folder / "tables.md").read_text()
    assert {file.suffix for file in (folder / "plots").iterdir()} == {".png", ".svg"}
    assert (folder / "plots/training-dpo.png").exists()
    assert content["training"] == earlier["training"]

    evaluate.main(
        ["--run-dir", str(copy), "--systems", "sa,sa+mv@2", "--limit", "2", "--seeds", "2"]
    )
    content = json.loads((folder / "results.json").read_text())
    assert list(content["systems"]) == ["sa", "sa+mv@2"]
    assert all(s["questions"] == s["seeds"] == 2 for s in content["systems"].values())

    before = set(folder.rglob("*.parquet"))
    evaluate.main(["--run-dir", str(copy), "--paper", "--votes", "3", "--transfer", "addition"])
    content = json.loads((folder / "results.json").read_text())
    jsonschema.validate(content, schema)
    assert {f.relative_to(folder).parts[0] for f in set(folder.rglob("*.parquet")) - before} == {
        "transfer"
    }
    assert content["paper"]["missing"] == [] and len(content["systems"]) == 18
    (transfer,) = content["paper"]["transfer"]
    assert transfer["task"] == "addition" and "malt+mv" in transfer["systems"]
    document = (folder / "paper.md").read_text()
    for plot in re.findall(r"\(plots/(.*)\)", document):
        assert (folder / "plots" / plot).exists()
    assert "![self-correction]" in document and "Transfer to addition" in document
    assert "Transfer to addition" in (folder / "paper.tex").read_text()

    samples = {f: f.read_bytes() for f in (copy / "evaluation").rglob("*.*")}
    evaluate.main(["--run-dir", str(copy), "--systems", "sa", "--split", "train"])
    content = json.loads((copy / "evaluation-train/results.json").read_text())
    assert content["systems"]["sa"]["questions"] == content["config"]["task"]["train_questions"]
    assert samples == {f: f.read_bytes() for f in samples}


def test_evaluate_refuses_what_it_cannot_use(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finish it first"):
        evaluate.main(["--run-dir", str(tmp_path)])
    with pytest.raises(UserError, match="no system 'sv'"):
        evaluate.main(["--run-dir", str(run), "--systems", "sv"])
    with pytest.raises(SystemExit):
        evaluate.main(["--run-dir", str(run), "sampling.temperature=0"])
    with pytest.raises(SystemExit):
        evaluate.main(["--run-dir", str(run), "--limit", "0"])
    with pytest.raises(SystemExit):
        evaluate.main(["--run-dir", str(run), "--transfer", "addition"])
    with pytest.raises(SystemExit):
        evaluate.main(["--run-dir", str(run), "--paper", "--systems", "sa"])
    with pytest.raises(UserError, match=r"task[.]tests: no such option; did you mean test"):
        evaluate.main(["--run-dir", str(run), "--paper", "--transfer", "gsm8k,tests=a.jsonl"])
