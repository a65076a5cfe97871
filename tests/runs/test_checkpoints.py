"""Trees of arrays come back as they were, or not at all."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.runs import checkpoints
from malt_jax.runs.checkpoints import StateStore, restore_tree, save_tree
from malt_jax.runs.directory import open_run


@pytest.fixture
def tree() -> dict[str, Any]:
    adapter = {"q": {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}}
    state = optax.adamw(1e-3).init(adapter)
    return {"adapter": adapter, "optimizer": state, "step": jnp.asarray(7)}


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_the_same_values_come_back(tmp_path: Path, tree: dict[str, Any]) -> None:
    save_tree(tmp_path / "x", tree)
    for like in (tree, abstract(tree)):
        back = restore_tree(tmp_path / "x", like)
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, back, tree)
        assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, tree)


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    save_tree(tmp_path / "x", {"a": jnp.zeros(2)})
    save_tree(tmp_path / "x", {"b": jnp.ones(3)})
    back = restore_tree(tmp_path / "x", {"b": jnp.zeros(3)})
    np.testing.assert_array_equal(back["b"], np.ones(3))


def test_every_array_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_tree(tmp_path / "x", {"a": {"w": jnp.zeros((2, 3)), "old": jnp.zeros(1)}})
    like = {"a": {"w": jnp.zeros((4, 3)), "new": jnp.zeros(1)}}
    with pytest.raises(UserError) as error:
        restore_tree(tmp_path / "x", like)
    message = str(error.value)
    assert "a.w is float32[2,3], not float32[4,3]" in message
    assert "a.new is missing" in message and "a.old is not expected" in message


def test_values_that_are_not_finite_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"a": {"w": jnp.asarray([1.0, jnp.nan]), "v": jnp.asarray([jnp.inf], jnp.bfloat16)}}
    tree = bad | {"good": jnp.zeros(2), "step": jnp.asarray(3)}
    with pytest.raises(UserError, match=r"was not written: values of a\.v, a\.w are NaN or inf"):
        save_tree(tmp_path / "x", tree)
    assert not (tmp_path / "x").exists()
    with monkeypatch.context() as blind:
        blind.setattr(checkpoints, "_not_finite", lambda _: "")
        save_tree(tmp_path / "x", tree)
    with pytest.raises(UserError, match=r"/x has values that are NaN or infinite, in a\.v, a\.w:"):
        restore_tree(tmp_path / "x", tree)


def test_a_missing_checkpoint_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no checkpoint"):
        restore_tree(tmp_path / "nothing", {"a": jnp.zeros(1)})


def test_a_damaged_checkpoint_is_an_error_for_the_user(tmp_path: Path) -> None:
    tree = {"a": jnp.arange(1000.0)}
    save_tree(tmp_path / "x", tree)
    for file in (tmp_path / "x").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        restore_tree(tmp_path / "x", tree)


def test_a_checkpoint_that_cannot_be_read_back_is_refused_at_once(tmp_path: Path) -> None:
    # Orbax takes brackets for a pattern.
    with pytest.raises(UserError, match="is no checkpoint, or a damaged one"):
        save_tree(tmp_path / "lr=[1e-4]", {"a": jnp.zeros(3)})


def test_a_state_of_another_shape_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()) as run, run.stage("sft") as stage:
        states = StateStore(stage)
        states.save(1, {"weights": jnp.zeros(3)})
        again = StateStore(stage)
        assert again.latest_step == 1
        with pytest.raises(UserError, match=r"weights is float32\[3\], not float32\[4\]"):
            again.restore({"weights": jnp.zeros(4)})
        states.clear()
        assert not list(stage.path.glob("state-*"))


def test_a_state_that_was_cut_off_or_damaged_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(tmp_path, Config()) as run,
        run.stage("sft") as stage,
    ):
        StateStore(stage).save(1, {"weights": jnp.zeros(3)})
        (stage.path / "state-00000002.orbax-checkpoint-tmp-7/part").mkdir(parents=True)
        save_tree(stage.path / "state-00000002", {"weights": jnp.ones(3)})
        raise KeyboardInterrupt
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(tmp_path, Config()) as run,
        run.stage("sft") as stage,
    ):
        assert StateStore(stage).latest_step == 1
        assert [path.name for path in stage.path.glob("state-*")] == ["state-00000001"]
        raise KeyboardInterrupt
    files = (path for path in (tmp_path / "sft/state-00000001").rglob("*") if path.is_file())
    data = max(files, key=lambda path: path.stat().st_size)
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with open_run(tmp_path, Config()) as run, run.stage("sft") as stage:
        states = StateStore(stage)
        assert states.latest_step == 0 and states.restore({"weights": 5}) == {"weights": 5}
    assert f"{data} is damaged: its checksum is another" in caplog.text
    assert [path.name for path in run.finished("sft").iterdir()] == ["manifest.json"]
