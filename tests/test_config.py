"""Options: defaults, files, overrides, and errors that say where and what."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax import tasks
from malt_jax.config import (
    Config,
    LoraConfig,
    ModelConfig,
    RoleConfig,
    describe_options,
    diff,
    load_config,
    to_yaml,
)
from malt_jax.errors import UserError
from malt_jax.train import QUICKSTART
from malt_jax.typed_values import leaves, plain

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = [name for name, _ in leaves(plain(Config()))]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_paper() -> None:
    config = load_config()
    assert config == Config()
    assert [(role.name, role.branching) for role in config.pipeline.roles] == [
        ("generator", 3),
        ("verifier", 3),
        ("refiner", 3),
    ]


def test_a_file_and_overrides_in_this_order(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nsft: {learning_rate: 1e-4, epochs: 2}\nlora: {targets: [q]}\n")
    config = load_config(file, ["sft.epochs=5", "pipeline.roles.0.branching=2", "lora.rank=4"])
    assert (config.seed, config.sft.learning_rate, config.sft.epochs) == (1, 1e-4, 5)
    assert config.lora == LoraConfig(rank=4, targets=("q",))
    assert config.pipeline.roles[:2] == (RoleConfig("generator", 2), RoleConfig("verifier", 3))


def test_overrides_are_yaml(tmp_path: Path) -> None:
    roles = "pipeline.roles=[{name: generator}, {name: refiner, branching: 5}]"
    options = ["training.dpo_roles=[refiner]", "task.options.style=[a, {b: 1}]", "dpo.epochs=null"]
    config = load_config(None, [roles, *options, "model.name=a=b"])
    assert config.pipeline.roles == (RoleConfig("generator"), RoleConfig("refiner", 5))
    assert config.task.options == {"style": ["a", {"b": 1}]}
    assert config.dpo.epochs is None and config.model.name == "a=b"


def test_the_result_is_frozen_all_the_way_down() -> None:
    config = load_config(None, ["lora.targets=[q, v]"])
    hash(config.pipeline), hash(config.lora)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.pipeline.roles[0].branching = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.top_pp=1", "sampling.top_pp is no option; did you mean top_p"),
        ("samplign.top_p=1", "samplign is no option; did you mean sampling or sampling_mesh?"),
        ("pipeline.roles.0.bran=1", "pipeline.roles.0.bran is no option; did you mean branching?"),
        ("model.zzz=1", "model.zzz is no option; there is name, tokenizer, dtype, max_positions"),
        ("sft.epochs=many", "sft.epochs is 'many', but must be a whole number or null"),
        ("seed=1.5", "seed is 1.5, but must be a whole number"),
        ("seed=true", "seed is True, but must be a whole number"),
        ("seed=null", "seed is None, but must be a whole number"),
        ("model.name=[a]", "model.name is ['a'], but must be a text"),
        ("lora=3", "lora is 3, but must be a section with rank, alpha, dropout, targets"),
        ("lora.rank.x=3", "lora.rank is {'x': 3}, but must be a whole number"),
        ("lora.targets=q", "lora.targets is 'q', but must be a list of texts"),
        ("lora.targets=[1]", "lora.targets.0 is 1, but must be a text"),
        ("model.dtype=half", "model.dtype is 'half', but must be auto | float32 | bfloat16"),
        ("credit.drop_duplicates=3", "credit.drop_duplicates is 3, but must be true or false"),
        ("sft.learning_rate=.nan", "sft.learning_rate is nan, but must be a number"),
        ("pipeline.roles=[{branching: 2}]", "pipeline.roles.0.name is missing"),
        ("lora=[1]", "lora is [1], but must be a section with rank"),
        ("task.options=[1]", "task.options is [1], but must be a section"),
        ("sampling.top_p=1.5", "sampling.top_p is 1.5, but must be above 0 and at most 1"),
        ("sampling.top_p=0", "sampling.top_p is 0.0, but must be above 0"),
        ("sampling.temperature=-0.1", "sampling.temperature is -0.1, but must be 0 or above"),
        ("pipeline.roles.1.branching=0", "pipeline.roles.1.branching is 0, but must be above 0"),
        ("sft.batch_size=0", "sft.batch_size is 0, but must be above 0"),
        ("dpo.micro_batch_size=3", "dpo.micro_batch_size is 3, but must be a divisor of"),
        ("dpo.label_smoothing=0.5", "dpo.label_smoothing is 0.5, but must be at least 0 and below"),
        ("credit.threshold=1", "credit.threshold is 1.0, but must be at least 0 and below 1"),
        ("lora.targets=[q, z]", "lora.targets is ['q', 'z'], but must be some of q, k, v, o"),
        ("lora.targets=[]", "lora.targets is [], but must be some of"),
        ("pipeline.roles=[]", "pipeline.roles is empty"),
        ("pipeline.roles.0.name=../x", "pipeline.roles.0.name is '../x', but must be of letters"),
        ("pipeline.roles.2.name=verifier", "pipeline.roles.2.name is 'verifier', but must be"),
        ("training.dpo_roles=[judge]", "training.dpo_roles is ['judge'], but must be some of the"),
        ("pipeline.roles.7.branching=1", "the list has the items 0 to 2, and no 7"),
        ("seed", "option 'seed': write section.field=value"),
        ("a b=1", "write section.field=value"),
        ("seed=[", "the value is not YAML"),
        ("model.name=${oc.env:HOME}", "interpolations are not supported"),
        ("model.name=!!python/name:os.system", "the value is not YAML"),
    ],
)
def test_a_bad_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmodel: {name: [}\n", "my.yaml, line 2: this is not YAML"),
        ("sft:\n  learning_rat: 1\n", "my.yaml: sft.learning_rat is no option; did you mean"),
        ("sft: {epochs: x}\n", "my.yaml: sft.epochs is 'x', but must be a whole number or null"),
        ("seed: 1\nseed: 2\n", "duplicate key"),
        ("lora: [1]\n", "my.yaml: lora is [1], but must be a section with rank"),
        ("- seed\n", "my.yaml must hold sections"),
        ("model: {name: '${oc.env:HOME}'}\n", "interpolations are not supported"),
        ("model: !!python/object:os.system {}\n", "my.yaml, line 1: this is not YAML"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: No such file"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary"):
        load_config(tmp_path / "binary")


def test_dtype_auto_depends_on_the_platform() -> None:
    resolved = [ModelConfig().resolve_dtype(platform) for platform in ("cpu", "gpu", "tpu")]
    assert resolved == ["float32", "bfloat16", "bfloat16"]
    assert ModelConfig(dtype="bfloat16").resolve_dtype("cpu") == "bfloat16"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


def test_yaml_reads_back_the_same(tmp_path: Path) -> None:
    changed = ["sft.learning_rate=3e-7", "task.options={a: null, b: 'true'}", "model.name='1'"]
    config = load_config(None, changed)
    assert load_config(write(tmp_path, to_yaml(config))) == config


def test_differences_name_the_fields() -> None:
    new = load_config(None, ["seed=3", "pipeline.roles.1.branching=2", "task.options.a=1"])
    assert diff(Config(), Config()) == []
    assert diff(Config(), new) == [
        "seed: 0 -> 3",
        "pipeline.roles.1.branching: 3 -> 2",
        "task.options.a: (absent) -> 1",
    ]


def test_help_shows_every_field_with_default_type_and_meaning() -> None:
    text = describe_options()
    for name in NAMES:
        if not name.startswith("pipeline.roles."):
            assert re.search(rf"^  {re.escape(name)}=.+\n      \S.+ \(.+\)$", text, re.M), name
    assert "sft.learning_rate=2.0e-05" in text and "(auto | float32 | bfloat16)" in text


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0, 10),
    name=st.text(st.characters(exclude_categories=["C"], exclude_characters="$"), max_size=20),
    branching=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_any_configuration_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    temperature: float,
    name: str,
    branching: list[int],
) -> None:
    roles = tuple(RoleConfig(f"role-{index}", count) for index, count in enumerate(branching))
    config = dataclasses.replace(
        Config(),
        seed=seed,
        model=dataclasses.replace(Config().model, name=name),
        sampling=dataclasses.replace(Config().sampling, temperature=temperature),
        pipeline=dataclasses.replace(Config().pipeline, roles=roles),
        training=dataclasses.replace(Config().training, dpo_roles=("role-0",)),
    )
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config


@pytest.mark.parametrize(
    "file", [QUICKSTART, *sorted(CONFIGS.glob("*.yaml"))], ids=lambda f: f.name
)
def test_every_shipped_file_loads(file: Path) -> None:
    tasks.create(load_config(file).task)


@pytest.mark.parametrize(
    ("file", "task"), [("gsm8k", "gsm8k"), ("math", "math"), ("csqa", "commonsense_qa")]
)
def test_the_paper_s_settings_are_complete(file: str, task: str) -> None:
    config = load_config(CONFIGS / f"llama31_8b_{file}.yaml")
    expected: dict[str, Any] = {
        "rounds": 1,
        "task.name": task,
        "task.train_questions": None,
        "task.test_questions": None,
        "sampling.temperature": 0.3,
        "credit.threshold": 0.5,
        "lora.rank": 8,
        "lora.alpha": 16.0,
        "lora.dropout": 0.05,
        "lora.targets": ["q", "k", "v", "o", "gate", "up", "down"],
        "training.method": "lora",
        "training.dpo_roles": ["verifier", "refiner"],
        "sft.learning_rate": 2e-5,
        "sft.batch_size": 8,
        "sft.epochs": None,
        "dpo.learning_rate": 2e-5,
        "dpo.batch_size": 8,
        "dpo.beta": 0.2,
        "evaluation.questions": None,
        "evaluation.votes": 3,
        "pipeline.roles.0.branching": 3,
        "pipeline.roles.1.branching": 3,
        "pipeline.roles.2.branching": 3,
    }
    values = dict(leaves(plain(config)))
    assert {name: values[name] for name in expected} == expected
