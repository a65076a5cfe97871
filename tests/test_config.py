"""Options: defaults, files, overrides, and errors that say where and what."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax import tasks
from malt_jax.config import (
    MESH_AXES,
    QUICKSTART,
    Config,
    CreditConfig,
    DpoConfig,
    KtoConfig,
    LoraConfig,
    ModelConfig,
    RoleConfig,
    SftConfig,
    diff,
    leaves,
    load_config,
    options,
    to_yaml,
)
from malt_jax.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = [name for name, schema in options().items() if name and "properties" not in schema]


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


def test_a_role_inherits_what_its_sections_leave_open(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "dpo: {beta: 0.5, epochs: 3}\n"
        "roles: {verifier: {dpo: {epochs: null, learning_rate: 1e-3}}}\n",
    )
    changed = ["roles.refiner.credit.threshold=0.2", "dpo.batch_size=4", "kto.beta=0.7"]
    config = load_config(file, changed)
    everyone = DpoConfig(beta=0.5, epochs=3, batch_size=4)
    assert config.of_role("generator") == (config.credit, config.sft, everyone, KtoConfig(beta=0.7))
    assert config.of_role("verifier") == config.of_role("generator")._replace(
        dpo=dataclasses.replace(everyone, epochs=None, learning_rate=1e-3)
    )
    assert config.of_role("refiner") == config.of_role("generator")._replace(
        credit=CreditConfig(threshold=0.2)
    )
    names = [config.section_name(role, "dpo") for role in ("verifier", "refiner")]
    assert names == ["roles.verifier.dpo", "dpo"]


def test_a_run_s_file_holds_only_what_differs_for_a_role(tmp_path: Path) -> None:
    first = load_config(None, ["roles.verifier.dpo={beta: 0.3, epochs: 2}", "roles.refiner.sft={}"])
    own = {name: value for name, value in leaves(first).items() if name.startswith("roles")}
    assert own == {"roles.verifier.dpo.beta": 0.3, "roles.verifier.dpo.epochs": 2}
    file = write(tmp_path, to_yaml(first))
    assert load_config(file) == first
    # An option of all roles that is changed later still reaches the role.
    later = load_config(file, ["dpo.batch_size=2", "dpo.beta=0.3"])
    assert later.of_role("verifier").dpo == DpoConfig(beta=0.3, epochs=2, batch_size=2)
    assert diff(first, later) == [
        "dpo.batch_size: 8 -> 2",
        "dpo.beta: 0.2 -> 0.3",
        "roles.verifier.dpo.beta: 0.3 -> (absent)",
    ]
    assert load_config(None, ["roles.verifier.dpo.beta=0.2"]) == Config()


def test_a_wrong_option_that_a_role_inherits_is_reported_once() -> None:
    with pytest.raises(UserError) as error:
        load_config(None, ["dpo={beta: -1, micro_batch_size: 5}", "roles.verifier.dpo.epochs=3"])
    assert len(str(error.value).splitlines()) == 1 and "roles" not in str(error.value)
    with pytest.raises(UserError) as error:
        load_config(None, ["dpo.micro_batch_size=5", "roles.verifier.dpo.epochs=3"])
    assert len(str(error.value).splitlines()) == 1 and "roles" not in str(error.value)


def test_a_section_of_a_role_is_exchanged_where_it_is() -> None:
    config = load_config(None, ["roles.verifier.dpo.beta=0.3"])
    for role, name in (("verifier", "roles.verifier.dpo.epochs"), ("refiner", "dpo.epochs")):
        options = dataclasses.replace(config.of_role(role).dpo, epochs=7)
        changed = config.with_section(role, "dpo", options)
        assert changed.of_role(role).dpo == options
        assert diff(config, changed) == [
            f"{name}: {'(absent)' if role == 'verifier' else None} -> 7",
            *(["roles.verifier.dpo.epochs: (absent) -> None"] if role == "refiner" else []),
        ]


def test_the_result_is_frozen_all_the_way_down() -> None:
    config = load_config(None, ["lora.targets=[q, v]"])
    hash(config.pipeline), hash(config.lora)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.pipeline.roles[0].branching = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.top_pp=1", "sampling.top_pp: no such option; did you mean top_p"),
        ("samplign.top_p=1", "samplign: no such option; did you mean sampling or sampling_mesh?"),
        ("pipeline.roles.1.bran=1", "pipeline.roles.1.bran: no such option; did you mean branch"),
        ("model.zzz=1", "model.zzz: no such option; there is name, tokenizer, dtype, max_position"),
        ("sft.epochs=many", "sft.epochs: must be null or a whole number, 1 or more, got 'many'"),
        ("rounds=1.5", "rounds: must be a whole number, 1 or more, got 1.5"),
        ("rounds=true", "rounds: must be a whole number, 1 or more, got True"),
        ("rounds=null", "rounds: must be a whole number, 1 or more, got None"),
        ("rounds=3000000000", "rounds: must be less than or equal to 2147483647"),
        ("seed=4294967296", "seed: must be a whole number, 0 or more, at most 4294967295, got 42"),
        ("model.name=[a]", "model.name: must be a text, got ['a']"),
        ("model.name=true", "model.name: must be a text, got True"),
        ("lora=3", "lora: must be a section, got 3"),
        ("lora.rank.x=3", "lora.rank: must be a whole number, 1 or more, got {'x': 3}"),
        ("lora.targets=q", "lora.targets: must be a list, each q | k | v | o"),
        ("lora.targets=[1]", "lora.targets.0: must be q | k | v | o"),
        ("training.dpo_roles=[1]", "training.dpo_roles.0: must be a text, got 1"),
        ("model.dtype=half", "model.dtype: must be auto | float32 | bfloat16, got 'half'"),
        ("credit.drop_duplicates=3", "credit.drop_duplicates: must be true or false, got 3"),
        ("sft.learning_rate=.nan", "sft.learning_rate: must be a number, above 0, got nan"),
        ("sft.learning_rate=.inf", "sft.learning_rate: must be a number, above 0, got inf"),
        ("sft.learning_rate='1'", "sft.learning_rate: must be a number, above 0, got '1'"),
        ("pipeline.roles=[{branching: 2}]", "pipeline.roles.0.name: must be a text"),
        ("lora=[1]", "lora: must be a section, got [1]"),
        ("task.options=[1]", "task.options: must be a section, got [1]"),
        ("sampling.top_p=1.5", "sampling.top_p: must be a number, above 0, at most 1, got 1.5"),
        ("sampling.top_p=0", "sampling.top_p: must be a number, above 0, at most 1, got 0"),
        ("sampling.temperature=-0.1", "sampling.temperature: must be a number, 0 or more, got -0."),
        ("pipeline.roles.1.branching=0", "pipeline.roles.1.branching: must be a whole number, 1"),
        ("sft.batch_size=0", "sft.batch_size: must be a whole number, 1 or more, got 0 (in option"),
        (
            "dpo.micro_batch_size=3",
            "dpo.micro_batch_size: must divide batch_size=8, got 3",
        ),
        ("dpo.label_smoothing=0.5", "dpo.label_smoothing: must be null or a number, 0 or mo"),
        ("credit.threshold=1", "credit.threshold: must be a number, 0 or more, below 1, got 1"),
        ("sampling_mesh.data=0", "sampling_mesh.data: must be null or a whole number, 1 or more"),
        ("processes.index=-1", "processes.index: must be null or a whole number, 0 or more, got"),
        ("lora.targets=[q, z]", "lora.targets.1: must be q | k | v | o"),
        (
            "lora.targets=[q, q]",
            "lora.targets: must have at least one item and none twice, got ['q', 'q']",
        ),
        ("lora.targets=[]", "lora.targets: must have at least one item and none twice, got []"),
        ("pipeline.roles=[]", "pipeline.roles: must have at least one item"),
        ("pipeline.roles.0.name=../x", "pipeline.roles.0.name: must be a text, matching ^[a-z]"),
        ("pipeline.roles.0.name='The Role'", "must be a text, matching ^[a-z][a-z0-9_]*$, got 'Th"),
        ("pipeline.roles.2.name=verifier", "got ['generator', 'verifier', 'verifier']"),
        ("training.dpo_roles=[judge]", "training.dpo_roles: must be some of ['generator', 'verif"),
        ("training.kto_roles=[judge]", "training.kto_roles: must be some of ['generator', 'verif"),
        ("kto.undesirable_weight=0", "kto.undesirable_weight: must be a number, above 0, got 0"),
        (
            "dpo.loss=hinge",
            "dpo.loss: must be sigmoid | robust | ipo | length_normalized | dpop, go",
        ),
        ("dpo.pair_weights=gap", "dpo.pair_weights: must be equal | value_gap, got 'gap'"),
        (
            "pipeline.roles=[{name: generator}]",
            "training.dpo_roles: must be some of ['generator'], got [",
        ),
        ("pipeline.roles.7.branching=1", "pipeline.roles: must be a list, each a section, got {"),
        (
            "roles.judge.dpo.beta=1",
            "roles: must be some of ['generator', 'verifier', 'refiner'], go",
        ),
        (
            "roles.verifier.dpo.beta=0",
            "roles.verifier.dpo.beta: must be a number, above 0, got 0 (in",
        ),
        ("roles.verifier.dpo.bta=1", "roles.verifier.dpo.bta: no such option; did you mean beta?"),
        ("roles.verifier.dpu.beta=1", "roles.verifier.dpu: no such option; did you mean dpo?"),
        ("roles.verifier.lora.rank=4", "no such option; there is credit, sft, dpo, kto"),
        ("roles.verifier.dpo=3", "roles.verifier.dpo: must be null or a section, got 3"),
        ("roles.verifier=3", "roles.verifier: must be a section, got 3"),
        ("roles=[verifier]", "roles: must be a section, got ['verifier']"),
        (
            "roles={a.b c: {dpo: {beta: 0}}}",
            "roles.a.b c.dpo.beta: must be a number, above 0, got 0",
        ),
        (
            "roles.verifier.dpo.micro_batch_size=3",
            "roles.verifier.dpo.micro_batch_size: must divide batch_size=8, got 3",
        ),
        ("roles.verifier.credit.pairs=all", "roles.verifier.credit.pairs: must be labels | values"),
        ("seed", "option 'seed': write section.field=value"),
        ("a b=1", "write section.field=value"),
        ("seed=[", "option 'seed=[', line 1: this is not YAML"),
        ("model.name=!!python/name:os.system", "this is not YAML"),
    ],
)
def test_a_bad_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmodel: {name: [}\n", "my.yaml, line 2: this is not YAML"),
        ("sft:\n  learning_rat: 1\n", "sft.learning_rat: no such option; did you mean learning_ra"),
        (
            "sft: {epochs: x}\n",
            "sft.epochs: must be null or a whole number, 1 or more, got 'x' (in",
        ),
        ("seed: 1\nseed: 2\n", "duplicate key seed"),
        ("lora: [1]\n", "lora: must be a section, got [1] (in "),
        ("- seed\n", "my.yaml must hold sections"),
        ("model: !!python/object:os.system {}\n", "my.yaml, line 1: this is not YAML"),
    ],
)
def test_a_bad_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(write(tmp_path, text))


def test_each_problem_has_a_line_with_its_source(tmp_path: Path) -> None:
    file = write(tmp_path, "sft: {batch_size: 0, epochs: 0}\ndpo: {bta: 1}\n")
    with pytest.raises(UserError) as error:
        load_config(file, ["sft.epochs=x", "sft.epochs=-1"])
    _, batch_size, epochs, beta = str(error.value).splitlines()
    assert batch_size.endswith(
        f"sft.batch_size: must be a whole number, 1 or more, got 0 (in {file})"
    )
    assert epochs.endswith("got -1 (in option 'sft.epochs=-1')") and "dpo.bta: no such" in beta


@pytest.mark.parametrize("option", ["lora.rank", "lora.alpha", "seed", "model.name", "lora"])
@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "[" * 3000, "{a: " * 3000, "&a [*a]"])
def test_monstrous_values_give_one_line(option: str, value: str, tmp_path: Path) -> None:
    for file, overrides in (
        (None, [f"{option}={value}"]),
        (write(tmp_path, f"{{{option.replace('.', ': {')}: {value}"), []),
    ):
        with pytest.raises(UserError) as error:
            load_config(file, overrides)
        assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500


def test_nesting_is_limited_where_values_are_free(tmp_path: Path) -> None:
    nested = "[" * 150 + "]" * 150
    config = load_config(None, [f"task.options.x={nested}"])
    assert load_config(write(tmp_path, to_yaml(config))) == config
    with pytest.raises(UserError):
        load_config(None, [f"task.options.{'a.' * 7}a={'[' * 198}{']' * 198}"])
    with pytest.raises(UserError, match="write section"):
        load_config(None, [f"{'a.' * 3000}a=1"])


def test_bounds_hold_without_a_file() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        SftConfig(batch_size=0)
    with pytest.raises(ValueError, match="must divide"):
        dataclasses.replace(SftConfig(), micro_batch_size=3)


def test_every_option_is_read_somewhere() -> None:
    read = {
        node.attr
        for file in (CONFIGS.parent / "malt_jax").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    }
    names = {name.rpartition(".")[2] for name in NAMES} - {"0"} - {*MESH_AXES}
    assert names <= read


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
    options = "task.options={a: null, b: 'true', c: '1e-4', d: 2024-01-01, e: [1e5, .5, '~']}"
    config = load_config(None, ["sft.learning_rate=3e-7", options, "model.name='1'"])
    assert config.task.options["d"] == "2024-01-01" and config.task.options["e"] == [1e5, 0.5, "~"]
    assert load_config(write(tmp_path, to_yaml(config))) == config


def test_differences_name_the_fields() -> None:
    new = load_config(None, ["seed=3", "pipeline.roles.1.branching=2", "task.options.a=1"])
    assert diff(Config(), Config()) == []
    assert diff(Config(), new) == [
        "seed: 0 -> 3",
        "pipeline.roles.1.branching: 3 -> 2",
        "task.options.a: (absent) -> 1",
    ]


def test_options_that_change_no_result_are_no_difference() -> None:
    meshes = ["sampling_mesh.data=2", "training_mesh.tensor=2", "processes.count=2"]
    others = ["sampling.chunk=1", "training.remat=false", "training.save_every=1"]
    new = load_config(None, [*meshes, *others, "evaluation.questions_per_batch=1"])
    assert diff(Config(), new) == []
    # It names the files of the trees that an interrupted run has written.
    assert diff(Config(), load_config(None, ["sampling.questions_per_batch=1"]))


@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0, 10),
    name=st.text(st.characters(exclude_categories=["C"]), max_size=20),
    branching=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_any_configuration_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    temperature: float,
    name: str,
    branching: list[int],
) -> None:
    roles = tuple(RoleConfig(f"role_{index}", count) for index, count in enumerate(branching))
    config = dataclasses.replace(
        Config(),
        seed=seed,
        model=dataclasses.replace(Config().model, name=name),
        sampling=dataclasses.replace(Config().sampling, temperature=temperature),
        pipeline=dataclasses.replace(Config().pipeline, roles=roles),
        training=dataclasses.replace(Config().training, dpo_roles=("role_0",)),
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
    values = leaves(config)
    assert {name: values[name] for name in expected} == expected
