"""A training stage that is interrupted ends in the bits of one that is not."""

import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from malt_jax.config import Config, ProcessesConfig, SftConfig
from malt_jax.distributed.processes import ALONE, together
from malt_jax.errors import Stopped, UserError
from malt_jax.model.llama import Llama, Params, init_params
from malt_jax.runs.directory import RunDirectory, open_run
from malt_jax.runs.training_state import TrainingState
from malt_jax.training.loop import StepMetrics, Trained
from malt_jax.training.policy import Policy
from malt_jax.training.sft import train_sft
from tests.training.small import LLAMA, random_examples, same_bits

SFT = SftConfig(learning_rate=3e-2, batch_size=4, epochs=3, warmup_steps=2)
EXAMPLES = random_examples(8, completions=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(Llama(LLAMA), "full")


@pytest.fixture(scope="module")
def base() -> Params:
    return init_params(Llama(LLAMA), jax.random.key(0))


class Cut(Exception):
    """The machine stops."""


def train(
    policy: Policy, base: Params, run: RunDirectory, every: int, stop_at: int, cut_at: int = 0
) -> tuple[Trained, list[StepMetrics]]:
    """Trains in a stage; SIGTERM comes after the metrics of update `stop_at` are known."""
    seen: list[StepMetrics] = []

    def on_step(values: StepMetrics) -> None:
        seen.append(values)
        if values["step"] == stop_at:
            signal.raise_signal(signal.SIGTERM)
        if values["step"] == cut_at:
            raise Cut

    with run.stage("sft") as stage:
        state = TrainingState(stage, ALONE, every)
        start = policy.init(base, jax.random.key(1))
        done = train_sft(policy, base, start, EXAMPLES, SFT, seed=0, on_step=on_step, saver=state)
        state.clear()
    return done, seen


def test_sigterm_stops_after_an_update_and_the_rest_gives_the_same_bits(
    policy: Policy, base: Params, tmp_path: Path
) -> None:
    with together(ProcessesConfig(), {}), open_run(tmp_path / "whole", Config()) as run:
        whole, seen = train(policy, base, run, every=100, stop_at=0)
    with (
        pytest.raises(Stopped),
        together(ProcessesConfig(), {}),
        open_run(tmp_path / "cut", Config()) as run,
    ):
        train(policy, base, run, every=100, stop_at=2)
    with together(ProcessesConfig(), {}), open_run(tmp_path / "cut", Config()) as run:
        unfinished = run.path / "sft"
        # The signal is seen after the update that was already on its way.
        assert [path.name for path in unfinished.glob("state-*")] == ["state-00000003"]
        rest, more = train(policy, base, run, every=100, stop_at=0)
        assert not list(run.finished("sft").iterdir())[1:]  # the manifest alone
    assert [values["step"] for values in more] == [4, 5, 6]
    assert same_bits(whole.trainable, rest.trainable)
    timeless = [{k: v for k, v in m.items() if k != "seconds_left"} for m in seen]
    assert [{k: v for k, v in m.items() if k != "seconds_left"} for m in more] == timeless[3:]


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
    assert same_bits(whole.trainable, rest.trainable)


def test_a_damaged_or_foreign_state_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()) as run, run.stage("sft") as stage:
        state = TrainingState(stage, ALONE, 1)
        assert state.is_due(1)
        state.save(1, {"weights": jnp.zeros(3)})
        again = TrainingState(stage, ALONE, 1)
        assert again.step == 1
        with pytest.raises(UserError, match=r"weights is float32\[3\], not float32\[4\]"):
            again.restore({"weights": jnp.zeros(4)})
        # One that was being written when the machine stopped is not one.
        (stage.path / "state-00000002.orbax-checkpoint-tmp-7").mkdir()
        assert TrainingState(stage, ALONE, 1).step == 1
        state.clear()
        assert not list(stage.path.glob("state-*"))
