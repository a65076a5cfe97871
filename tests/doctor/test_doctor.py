"""`malt doctor` finds every damage, says what to do, and its advice works."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from upath import UPath

import malt_jax
from malt_jax.doctor import __main__ as doctor
from malt_jax.doctor import machine
from malt_jax.doctor.check import check
from malt_jax.doctor.files import run_files
from malt_jax.runs.directory import open_run
from tests.watch.conftest import SmallRun

SMALL = ("task.train_questions=3", "task.test_questions=3")
TREES = "round-0/trees"


def status(*arguments: str) -> int:
    try:
        doctor.main(list(arguments))
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    made = SmallRun(UPath(tmp_path / "run"))
    batches = {f"batch-{n:05}__parquet": f"tree {n}" for n in range(3)}
    made.finish(TREES, **{"inputs__json": "{}"}, **batches)
    made.finish_rows(16)
    made.train("generator", 2, 2)
    made.finish("round-0/generator/sft", weights="0123")
    made.begin("round-0/verifier/sft", 5.0, "state-00000001/weights")
    made.begin("evaluation", 5.0, "seed-0/base/samples-00000.parquet")
    return made


def test_the_embedded_model_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*SMALL) == 0
    text = capsys.readouterr().out
    for line in ("ok     versions: python 3.", "computes in float32", "3 for training and 3 for"):
        assert line in text
    assert "all finite" in text and text.endswith("nothing is wrong\n")


def test_a_run_is_checked_with_its_own_configuration(
    run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(str(run.path)) == 0
    text = capsys.readouterr().out
    assert "ok     round-0/trees: complete and undamaged (4 files, 0.0 MB): keep it" in text
    assert "ok     round-0/verifier/sft: unfinished, what is recorded is undamaged" in text
    assert "10 for training and 5 for the test" in text
    # Stages come in the order of the run.
    assert text.index("round-0/trees:") < text.index("round-0/rows:") < text.index("/sft:")


DAMAGE = [
    (f"{TREES}/batch-00001.parquet", b"tree", "it has 4 bytes, not 6"),
    (f"{TREES}/batch-00001.parquet", b"tree 9", "its checksum is another"),
    (f"{TREES}/batch-00001.parquet", None, "it is missing"),
    ("round-0/generator/sft/weights", b"", "generator/sft and start the run again"),
    ("round-0/generator/sft/manifest.json", b"\xff{", "its list of files is damaged"),
    ("round-0/generator/sft/manifest.json", b'{"files": {"a": 1}}', "files is damaged"),
    ("round-0/verifier/sft/.manifest.json", b"[]", "leave it: the stage is made again"),
    ("round-0/verifier/sft/state-00000001/weights", b"", "these files are made again"),
    ("evaluation/seed-0/base/samples-00000.parquet", b"x", "the other 0 are kept"),
    ("metrics.jsonl", b"[1]\n{]\n", "2 of 2 lines are damaged"),
    ("results.json", b'{"systems": 3}', "it has no systems"),
    ("results.json", b"{" * 100_000, "start the run again, which writes it again"),
    ("config.yaml", b"seed: [", "config.yaml"),
    ("config.yaml", b"\x00", "config.yaml"),
]


@pytest.mark.parametrize(("file", "content", "message"), DAMAGE)
def test_damage_is_found_without_a_traceback(
    run: SmallRun, file: str, content: bytes | None, message: str
) -> None:
    path = Path(str(run.path / file))
    path.unlink() if content is None else path.write_bytes(content)
    wrong = [finding for finding in run_files(run.path) if not finding.ok]
    assert len(wrong) == 1 and message in wrong[0].text
    assert wrong[0].name in file


def test_the_exit_status_tells_damage(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "round-0/generator/sft/weights").unlink()
    assert status(str(run.path)) == 1
    assert capsys.readouterr().out.endswith("wrong: round-0/generator/sft\n")


def test_the_advice_for_trees_keeps_the_other_batches(run: SmallRun) -> None:
    (run.path / TREES / "batch-00001.parquet").write_text("tree X")
    (wrong,) = [finding for finding in run_files(run.path) if not finding.ok]
    assert wrong.name == TREES and "keep the other 3 files" in wrong.text
    command = next(line for line in wrong.text.splitlines() if "mv " in line)
    assert os.system(command.partition(": ")[2]) == 0
    with open_run(run.path, run.config) as again:
        with again.stage(TREES) as stage:
            has = {n: stage.has(f"batch-{n:05}.parquet") for n in range(3)}
            stage.write("batch-00001.parquet", "tree 1")
        assert has == {0: True, 1: False, 2: True}
        assert again.is_done(TREES)
    assert all(finding.ok for finding in run_files(run.path))


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(str(tmp_path / "nothing"), *SMALL) == 1
    assert "nothing is not there" in capsys.readouterr().out
    assert status(str(tmp_path), *SMALL) == 1
    assert "is no run: it has no config.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        (
            "model.name=./nowhere",
            "model, attention, meshes, weights, tokenizer, prompts, questions",
        ),
        ("task.train=gone.jsonl", "prompts, questions"),
        ("sampling.max_tokens=100000", "questions"),
        ("task.name=gsm9k", "prompts, questions"),
        ("seed=none", "configuration"),
        ("training_mesh.data=7", "meshes"),
    ],
)
def test_inputs_that_do_not_load(
    option: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*SMALL, option) == 1
    assert capsys.readouterr().out.endswith(f"wrong: {wrong}\n")


def test_damaged_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(malt_jax.__file__).parent / "assets" / "tiny", model)
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, file)
    assert status(*SMALL, f"model.name={model}") == 1
    text = capsys.readouterr().out
    assert f"{name} has NaN or infinite values" in text and text.endswith("wrong: weights\n")


def test_a_machine_whose_accelerator_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: ["it"] * ("nvidia" in pattern))
    monkeypatch.setattr(machine, "LEAST_DISK", 1e18)
    found = {finding.name: finding for finding in machine.machine(tmp_path)}
    assert not found["devices"].ok and "install the extra cuda13" in found["devices"].text
    assert not found["disk"].ok and found["memory"].ok


def test_any_error_is_a_finding() -> None:
    def fail() -> str:
        raise RuntimeError("the TPU is in use\nby another process")

    found = check("devices", fail)
    assert not found.ok and found.text == "it failed (RuntimeError: the TPU is in use)"
    assert json.dumps(str(found)).startswith('"WRONG  devices: it failed')
