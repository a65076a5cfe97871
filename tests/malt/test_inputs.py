"""Inputs that change while a run is interrupted are named, and accepted only on demand."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from malt_jax.config import Config, load_config
from malt_jax.errors import UserError
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.inputs import (
    INPUTS_FILE,
    require_same_inputs,
    require_trained_on,
    run_inputs,
)
from malt_jax.malt.prompts import Pipeline
from malt_jax.model.digest import weights_digest
from malt_jax.runs.directory import open_run

BEFORE = {"prompts": "SHA-256 12", "version of jax": "1.0"}
AFTER = {"prompts": "SHA-256 34", "version of jax": "1.0"}


def test_a_change_is_refused_with_its_name_and_recorded_when_it_is_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(tmp_path / "run", Config()) as run:
        assert require_same_inputs(run, BEFORE, accept=False) == []
        assert require_same_inputs(run, BEFORE, accept=False) == []
        kept = (run.path / INPUTS_FILE).read_text()
        refused = r"(?s)prompts: SHA-256 12 -> SHA-256 34\n.*--accept-changes"
        with pytest.raises(UserError, match=refused) as error:
            require_same_inputs(run, AFTER, accept=False)
        assert "version of jax" not in str(error.value)
        assert (run.path / INPUTS_FILE).read_text() == kept
        change = "prompts: SHA-256 12 -> SHA-256 34"
        assert require_same_inputs(run, AFTER, accept=True) == [change]
        assert change in caplog.text
        # The new inputs are the run's from now on.
        assert require_same_inputs(run, AFTER, accept=False) == [change]
        with pytest.raises(UserError, match="SHA-256 34 -> SHA-256 12"):
            require_same_inputs(run, BEFORE, accept=False)


def test_a_record_of_an_earlier_version_is_completed(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", Config()) as run:
        require_same_inputs(run, {"prompts": BEFORE["prompts"]}, accept=False)
        assert require_same_inputs(run, BEFORE, accept=False) == []
        assert json.loads((run.path / INPUTS_FILE).read_text())["inputs"] == BEFORE
        run.write(INPUTS_FILE, '{"inputs": 3}')
        with pytest.raises(UserError, match=r"inputs\.json is damaged: delete it"):
            require_same_inputs(run, BEFORE, accept=False)


def test_every_input_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config()
    experiment = prepare(config)
    train = select_questions(experiment.task, "train", 3, seed=0)
    test = select_questions(experiment.task, "test", 3, seed=0)
    inputs = run_inputs(experiment, train, test)
    assert inputs == run_inputs(prepare(config), train, test)

    def changed(*arguments: object) -> list[str]:
        now = run_inputs(*arguments)  # type: ignore[arg-type]
        return [name for name, value in inputs.items() if now[name] != value]

    other = dataclasses.replace(train[1], answer="other")
    assert changed(experiment, [train[0], other, train[2]], test) == ["training questions"]
    assert changed(experiment, train, test[:2]) == ["test questions"]
    first, *rest = [prompt.role for prompt in experiment.pipeline.prompts]
    first = dataclasses.replace(first, user="Another one: {question}")
    pipeline = Pipeline.of([first, *rest], experiment.pipeline.tokenizer)
    assert changed(experiment._replace(pipeline=pipeline), train, test) == ["prompts"]
    base = jax.tree.map(lambda x: x * 2, experiment.base)
    assert changed(experiment._replace(base=base), train, test) == ["weights"]
    monkeypatch.setattr("malt_jax.malt.inputs.versions", lambda: {"jax": "9"})
    now = run_inputs(experiment, train, test)
    assert now["version of jax"] == "9" != inputs["version of jax"]


def test_one_changed_weight_changes_the_digest() -> None:
    weights = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones((2, 2, 2), jnp.bfloat16)}
    digest = weights_digest(weights)
    assert digest == weights_digest(jax.tree.map(jnp.array, weights))
    swapped = weights["a"].at[1, 1].set(6.0).at[1, 2].set(5.0)
    for change in (
        {"a": swapped},
        {"a": weights["a"].reshape(4, 3)},
        {"a": weights["a"].at[2, 3].add(1e-5)},
        {"b": weights["b"].at[0, 1, 0].set(1.0078125)},
        {"b": -weights["b"]},
    ):
        assert weights_digest(weights | change) != digest


def test_roles_are_not_evaluated_on_another_base_model(tmp_path: Path) -> None:
    experiment = prepare(load_config())
    other = experiment._replace(base=jax.tree.map(lambda x: x * 2, experiment.base))
    with open_run(tmp_path / "run", Config()) as run:
        require_trained_on(run, other)  # a run of an earlier version
        inputs = run_inputs(experiment, [], [])
        require_same_inputs(run, inputs, accept=False)
        require_trained_on(run, experiment)
        with pytest.raises(UserError, match="the weights of tiny changed since its roles were"):
            require_trained_on(run, other)
        require_same_inputs(run, inputs | {"tokenizer": "SHA-256 12"}, accept=True)
        with pytest.raises(UserError, match=r"the tokenizer of tiny changed .* SHA-256 12 -> "):
            require_trained_on(run, experiment)
        require_same_inputs(run, inputs | {"dtype": "bfloat16"}, accept=True)
        require_trained_on(run, other)
