"""A run directory of several processes: process 0 writes, all see the same.

Run as a program, this file is one of those processes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from malt_jax.command import command
from malt_jax.config import Config, ProcessesConfig, load_config
from malt_jax.distributed.processes import joined
from malt_jax.errors import UserError
from malt_jax.runs import agreement, stage
from malt_jax.runs.agreement import require_fit, start_facts
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.runs.metrics import METRICS_FILE, Metrics
from malt_jax.runs.stage import MANIFEST
from malt_jax.tasks.base import Question
from tests.distributed.several import start, wait

CONFIG = Config()
QUESTIONS = [Question(id=index, text=str(index), answer="0") for index in range(3)]


def main() -> None:
    folder, *options = sys.argv[1:]
    stage._PATIENCE = 0.3
    with joined(load_config(None, options).processes, {}):
        for scenario in (interrupted, continued, other_configuration, not_shared, questions):
            try:
                answer: Any = scenario(Path(folder))
            except UserError as error:
                answer = str(error)
            print(json.dumps([scenario.__name__, answer]))


def interrupted(folder: Path) -> None:
    with open_run(folder / "run", CONFIG) as run, run.stage("trees") as stage:
        stage.write("a", f"by process {jax.process_index()}")
        assert stage.has("a") and not stage.has("b")
        raise UserError("cut")


def continued(folder: Path) -> tuple[bool, str, list[str]]:
    with open_run(folder / "run", CONFIG) as run:
        before = run.is_done("trees")
        with run.stage("trees") as stage:
            assert stage.has("a")
            stage.write("b", f"by process {jax.process_index()}")
            names = stage.names("[a-z]*")
        assert run.is_done("trees")
        run.write("results.json", f"by process {jax.process_index()}")
        return before, (run.finished("trees") / "b").read_text(), names


def other_configuration(folder: Path) -> None:
    with open_run(folder / "run", load_config(None, ["seed=1"])):
        pass


def not_shared(folder: Path) -> None:
    # Two machines with a directory of the same name each.
    with open_run(folder / str(min(jax.process_index(), 1)), CONFIG):
        pass


def questions(folder: Path) -> None:
    require_fit(CONFIG, QUESTIONS, QUESTIONS[jax.process_index() :])


@pytest.mark.slow
def test_process_0_writes_and_what_it_finds_is_known_to_all(tmp_path: Path) -> None:
    for ended in wait(start([__file__, str(tmp_path)], 3), 100):
        assert ended.status == 0, ended.errors
        lines = [line for line in ended.output.splitlines() if line.startswith("[" + '"')]
        said = dict(json.loads(line) for line in lines)
        assert said["interrupted"] == "cut"
        assert said["continued"] == [False, "by process 0", ["a", "b"]]
        assert "seed: 0 -> 1" in said["other_configuration"]
        assert "all hosts share" in said["not_shared"]
        assert "process 1 on" in said["not_shared"] and "process 2 on" in said["not_shared"]
        assert "test questions is 3 with" in said["questions"] and "2 with" in said["questions"]
    assert (tmp_path / "run/trees/a").read_text() == "by process 0"
    assert (tmp_path / "run/trees" / MANIFEST).is_file()
    assert (tmp_path / "run/results.json").read_text() == "by process 0"
    assert not list((tmp_path / "run").glob(".seen*"))


def test_a_run_may_go_on_with_other_processes(tmp_path: Path) -> None:
    place = ["processes.count=2", "processes.coordinator=a:1", "training_mesh.fsdp=2"]
    with open_run(tmp_path, load_config(None, [*place, "processes.index=0"])):
        pass
    with open_run(tmp_path, CONFIG):
        assert RunDirectory.read(tmp_path).config.processes == ProcessesConfig()


def test_facts_name_every_option_but_those_of_a_process(tmp_path: Path) -> None:
    facts = start_facts(load_config(None, ["processes.index=1"]), tmp_path)
    assert facts["seed"] == "0" and facts["sampling.top_p"] == "1.0"
    assert facts["--run-dir"] == str(tmp_path) and {"jax", "python", "malt_jax's files"} < {*facts}
    assert not [name for name in facts if name.startswith("processes.")]
    assert facts == start_facts(CONFIG, tmp_path)


def test_more_processes_than_questions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "process_count", lambda: 4)
    with pytest.raises(UserError, match=r"4 processes .* 3 training questions"):
        require_fit(CONFIG, QUESTIONS, QUESTIONS * 2)
    monkeypatch.setattr(agreement, "process_count", lambda: 2)
    batch = load_config(None, ["sampling.questions_per_batch=1"])
    with pytest.raises(UserError, match=r"2 processes .* 1 questions in sampling\.questions_per"):
        require_fit(batch, QUESTIONS, QUESTIONS)


def test_one_process_logs_metrics(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics, Metrics(tmp_path, writes=False) as others:
        for each in (metrics, others):
            each.restart("sft")
            each.log("sft", 1, {"loss": 1.0})
    assert (tmp_path / METRICS_FILE).read_text().count("\n") == 1


if __name__ == "__main__":
    command(main)
