"""A training stage that is interrupted ends in the bits of one that is not."""

import contextlib
import logging
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import pytest

from malt_jax.config import Config, ProcessesConfig, SftConfig
from malt_jax.distributed.processes import joined
from malt_jax.errors import Stopped, outcome
from malt_jax.malt.objectives import Sft
from malt_jax.malt.stage import Records, train_stage
from malt_jax.model.llama import Llama, Params, init_params
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.runs.metrics import Metrics
from malt_jax.training.batches import Batches
from malt_jax.training.policy import Policy
from tests.training.small import LLAMA, random_examples, same_bits

SFT = Sft(SftConfig(learning_rate=3e-2, batch_size=4, epochs=3, warmup_share=0.1))
EXAMPLES = random_examples(8, completions=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(Llama(LLAMA), "full")


@pytest.fixture(scope="module")
def base() -> Params:
    return init_params(Llama(LLAMA), jax.random.key(0))


class Cut(Exception):
    """The machine stops."""


class Noted(Metrics):
    """Metrics that are remembered; after some step comes SIGTERM, or the machine stops."""

    def __init__(self, run: RunDirectory, stop_at: int, cut_at: int) -> None:
        super().__init__(run.path)
        self.seen: list[dict[str, float]] = []
        self.stop_at, self.cut_at = stop_at, cut_at

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        super().log(stage, step, values)
        self.seen.append({"step": step, **values})
        if step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        if step == self.cut_at:
            raise Cut


def train(
    policy: Policy, base: Params, run: RunDirectory, every: int, stop_at: int, cut_at: int = 0
) -> tuple[Params, list[dict[str, float]]]:
    """Trains in a stage; SIGTERM comes after the metrics of update `stop_at` are known."""
    with Noted(run, stop_at, cut_at) as metrics:
        start = policy.init(base, jax.random.key(1))
        batches = Batches(EXAMPLES, SFT.options.batch_size, seed=0)
        records = Records(run, metrics, every)
        return train_stage("sft", SFT, policy, base, start, batches, records), metrics.seen


def test_sigterm_stops_after_an_update_and_the_rest_gives_the_same_bits(
    policy: Policy, base: Params, tmp_path: Path
) -> None:
    with joined(ProcessesConfig(), {}), open_run(tmp_path / "whole", Config()) as run:
        whole, seen = train(policy, base, run, every=100, stop_at=0)
    with (
        pytest.raises(Stopped),
        joined(ProcessesConfig(), {}),
        open_run(tmp_path / "cut", Config()) as run,
    ):
        train(policy, base, run, every=100, stop_at=2)
    with joined(ProcessesConfig(), {}), open_run(tmp_path / "cut", Config()) as run:
        unfinished = run.path / "sft"
        # The signal is seen after the update that was already on its way.
        assert [path.name for path in unfinished.glob("state-*")] == ["state-00000003"]
        rest, more = train(policy, base, run, every=100, stop_at=0)
        assert not list(run.finished("sft").glob("state-*"))
    assert [values["step"] for values in more] == [4, 5, 6]
    assert same_bits(whole, rest)
    assert more == seen[3:]


def test_a_machine_that_is_lost_costs_the_updates_since_the_last_saved_state(
    policy: Policy, base: Params, tmp_path: Path
) -> None:
    with open_run(tmp_path / "whole", Config()) as run:
        whole, _ = train(policy, base, run, every=100, stop_at=0)
    with pytest.raises(Cut), open_run(tmp_path / "cut", Config()) as run:
        train(policy, base, run, every=2, stop_at=0, cut_at=5)
    with open_run(tmp_path / "cut", Config()) as run:
        saved = [path.name for path in (run.path / "sft").glob("state-*")]
        assert saved == ["state-00000004"]
        rest, more = train(policy, base, run, every=2, stop_at=0)
    assert [values["step"] for values in more] == [5, 6]
    assert same_bits(whole, rest)


@contextlib.contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    """A limit of this process, such as the size of the files that it writes."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize("size", [0, 100, 8000])
def test_a_disk_without_room_is_one_message_and_costs_no_bits(
    size: int,
    policy: Policy,
    base: Params,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The captured stderr is a file too: where logging writes to it, it meets the same limit.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with open_run(tmp_path / "whole", Config()) as run:
        whole, _ = train(policy, base, run, every=2, stop_at=0)
    with open_run(tmp_path / "full", Config()) as run:
        with pytest.raises((OSError, ValueError)) as raised, limited(resource.RLIMIT_FSIZE, size):
            train(policy, base, run, every=2, stop_at=0)
        text, status = outcome(raised.value)
        assert "may write (ulimit -f)" in text and str(run.path) in text and status == 1
        rest, _ = train(policy, base, run, every=2, stop_at=0)
    assert same_bits(whole, rest)
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_that_is_removed_is_not_made_again(
    policy: Policy, base: Params, tmp_path: Path
) -> None:
    class Removed(Noted):
        def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
            super().log(stage, step, values)
            if step == 3:
                shutil.rmtree(tmp_path / "run")

    with open_run(tmp_path / "run", Config()) as run, Removed(run, 0, 0) as metrics:
        start = policy.init(base, jax.random.key(1))
        batches = Batches(EXAMPLES, SFT.options.batch_size, seed=0)
        with pytest.raises(FileNotFoundError) as raised:
            train_stage("sft", SFT, policy, base, start, batches, Records(run, metrics, 2))
    assert outcome(raised.value)[0].startswith(f"error: {tmp_path / 'run'}: it was removed or")
    assert not (tmp_path / "run").exists()
