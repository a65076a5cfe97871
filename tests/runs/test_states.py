"""States of training in an unfinished stage."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.runs.directory import open_run
from malt_jax.runs.states import StateStore


def test_a_damaged_or_foreign_state_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()) as run, run.stage("sft") as stage:
        states = StateStore(stage)
        states.save(1, {"weights": jnp.zeros(3)})
        again = StateStore(stage)
        assert again.latest_step == 1
        with pytest.raises(UserError, match=r"weights is float32\[3\], not float32\[4\]"):
            again.restore({"weights": jnp.zeros(4)})
        # One that was being written when the machine stopped is not one.
        (stage.path / "state-00000002.orbax-checkpoint-tmp-7").mkdir()
        assert StateStore(stage).latest_step == 1
        states.clear()
        assert not list(stage.path.glob("state-*"))
