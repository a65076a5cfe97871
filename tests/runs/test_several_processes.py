"""A run directory of several processes: the first one writes, all see the same."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from malt_jax.config import Config, ProcessesConfig, load_config
from malt_jax.distributed.channel import Member, meet
from malt_jax.distributed.processes import Processes
from malt_jax.errors import ProcessLost, UserError
from malt_jax.runs import directory
from malt_jax.runs.agreement import require_fit, start_facts
from malt_jax.runs.directory import MANIFEST, RunDirectory, open_run
from malt_jax.runs.metrics import METRICS_FILE, Metrics
from malt_jax.tasks.base import Question
from tests.distributed.several import free_port

CONFIG = Config()


def in_each(count: int, act: Callable[[Processes], Any]) -> list[Any]:
    """What `act` returns or raises in each of so many processes, played by threads."""
    address = f"127.0.0.1:{free_port()}"

    def run(index: int) -> Any:
        member = Member(index, count, {})
        channel = meet(address, member, start_timeout=10, barrier_timeout=10).channel
        channel.start(lambda: None)
        try:
            return act(Processes(index, count, channel))
        except (UserError, ProcessLost) as error:
            return error
        finally:
            channel.leave()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_a_stage_is_written_by_the_first_and_seen_by_all(tmp_path: Path) -> None:
    def begin(these: Processes) -> None:
        with open_run(tmp_path, CONFIG, these) as run, run.stage("trees") as stage:
            stage.write("a", f"by process {these.index}")
            assert stage.has("a") and not stage.has("b")
            raise UserError("cut")

    def go_on(these: Processes) -> tuple[bool, str, list[str]]:
        with open_run(tmp_path, CONFIG, these) as run:
            before = run.is_done("trees")
            with run.stage("trees") as stage:
                assert stage.has("a")
                stage.write("b", f"by process {these.index}")
                names = stage.names("[a-z]*")
            assert run.is_done("trees")
            run.write("results.json", f"by process {these.index}")
            return before, (run.finished("trees") / "b").read_text(), names

    assert [str(error) for error in in_each(3, begin)] == ["cut"] * 3
    assert in_each(3, go_on) == [(False, "by process 0", ["a", "b"])] * 3
    assert (tmp_path / "trees" / "a").read_text() == "by process 0"
    assert (tmp_path / "trees" / MANIFEST).is_file()
    assert (tmp_path / "results.json").read_text() == "by process 0"
    assert not list(tmp_path.glob(".seen*"))


def test_what_the_first_one_finds_wrong_is_raised_in_all(tmp_path: Path) -> None:
    other = load_config(None, ["seed=1"])
    with open_run(tmp_path, other):
        pass

    def act(these: Processes) -> None:
        with open_run(tmp_path, CONFIG, these):
            pass

    for error in in_each(2, act):
        assert isinstance(error, UserError) and "seed: 1 -> 0" in str(error)


def test_a_directory_that_is_not_shared_is_refused_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_PATIENCE", 0.3)

    def act(these: Processes) -> None:
        # Two machines with a directory of the same name each.
        with open_run(tmp_path / str(min(these.index, 1)), CONFIG, these):
            pass

    for error in in_each(3, act):
        assert isinstance(error, UserError) and "all hosts share" in str(error)
        assert "process 1 on" in str(error) and "process 2 on" in str(error)


def test_a_run_may_go_on_in_another_place(tmp_path: Path) -> None:
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


def test_more_processes_than_questions_and_different_questions_are_refused() -> None:
    questions = [Question(id=index, text=str(index), answer="0") for index in range(3)]
    few = Processes(0, 4)
    with pytest.raises(UserError, match=r"4 processes .* 3 questions to learn from"):
        require_fit(few, CONFIG, questions, questions * 2)
    batch = load_config(None, ["sampling.questions_per_batch=1"])
    with pytest.raises(UserError, match=r"2 processes .* 1 questions in sampling\.questions_per"):
        require_fit(Processes(0, 2), batch, questions, questions)

    def act(these: Processes) -> None:
        require_fit(these, CONFIG, questions, questions[these.index :])

    for error in in_each(2, act):
        assert isinstance(error, UserError)
        assert "test questions: 3 with" in str(error) and "2 with" in str(error)


def test_one_process_logs_metrics(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics, Metrics(tmp_path, writes=False) as others:
        for each in (metrics, others):
            each.restart("sft")
            each.log("sft", 1, {"loss": 1.0})
    assert (tmp_path / METRICS_FILE).read_text().count("\n") == 1
