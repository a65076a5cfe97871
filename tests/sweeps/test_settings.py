"""Settings of a sweep: grids, files of settings, names of directories."""

from pathlib import Path

import pytest
from upath import UPath

from malt_jax.config import leaves
from malt_jax.errors import UserError
from malt_jax.sweeps.settings import settings, varied


@pytest.fixture
def base(tmp_path: Path) -> UPath:
    file = tmp_path / "base.yaml"
    file.write_text("sft: {epochs: 1}\ndpo: {beta: 0.2}\n")
    return UPath(file)


def values(base: UPath, words: list[str], *names: str) -> list[tuple]:
    return [tuple(leaves(s.config)[name] for name in names) for s in settings(base, words)]


def test_every_combination_of_values(base: UPath) -> None:
    words = ["dpo.learning_rate=1e-4,5e-4", "dpo.epochs=1,null", "sft.batch_size=16"]
    assert values(base, words, "dpo.learning_rate", "dpo.epochs", "sft.batch_size") == [
        *((1e-4, 1, 16), (1e-4, None, 16)),
        *((5e-4, 1, 16), (5e-4, None, 16)),
    ]


def test_commas_in_brackets_and_quotes_separate_nothing(base: UPath) -> None:
    words = ["training.dpo_roles=[],[verifier],[verifier, refiner]"]
    found = values(base, words, "training.dpo_roles")
    assert found == [([],), (["verifier"],), (["verifier", "refiner"],)]
    assert values(base, ["dpo={beta: 0.5, epochs: 2}"], "dpo.beta", "dpo.epochs") == [(0.5, 2)]
    words = ["""model.name='a,[b',"c, d",e"""]
    assert values(base, words, "model.name") == [("a,[b",), ("c, d",), ("e",)]


def test_a_file_of_settings_is_combined_with_the_grid(base: UPath, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("- {dpo.beta: 0.1, credit.pairs: values}\n- sft: {epochs: 3}\n")
    found = settings(base, ["dpo.epochs=1,2"], UPath(file))
    assert [s.name for s in found] == [
        "credit.pairs=values,dpo.epochs=1,dpo.beta=0.1",
        "credit.pairs=values,dpo.epochs=2,dpo.beta=0.1",
        "sft.epochs=3,dpo.epochs=1",
        "sft.epochs=3,dpo.epochs=2",
    ]
    assert varied(found) == ["credit.pairs", "sft.epochs", "dpo.epochs", "dpo.beta"]


def test_names_depend_on_the_configuration_alone(base: UPath) -> None:
    found = settings(base, ["dpo.beta=0.1,1e-1,0.10,0.2"])
    assert [s.name for s in found] == ["dpo.beta=0.1", "unchanged"]
    assert settings(base, ["evaluation.questions_per_batch=3"])[0].name == "unchanged"
    lists = settings(base, ["training.dpo_roles=[verifier],[refiner]", "lora.targets=[q, k, v]"])
    assert len({s.name for s in lists}) == 2
    for setting in lists:
        assert not set("[]' *?/") & set(setting.name) and len(setting.name) <= 110


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "several values"),
        (["dpo.beta"], r"option 'dpo\.beta': write section\.field=value,value"),
        (["dpo.bet=1,2"], r"dpo\.bet: no such option; did you mean beta\?"),
        (["dpo.beta=0.1,-1"], r"dpo\.beta: must be a number, above 0, got -1"),
        (["dpo.beta=0.1,"], r"dpo\.beta: must be a number"),
    ],
)
def test_wrong_settings_are_named(base: UPath, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(base, words)


@pytest.mark.parametrize("content", ["", "[]", "dpo.beta: 0.1", "[1, 2]"])
def test_a_file_of_something_else_is_refused(base: UPath, tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.yaml").write_text(content)
    with pytest.raises(UserError, match="must hold a list of settings"):
        settings(base, [], UPath(tmp_path / "settings.yaml"))
