"""Every option of a run: its type, its default, what it means, and how it is read.

The defaults are the settings of the paper (arXiv 2412.01928, section 4 and its appendices); where
the paper leaves a choice open, the help text says so.
"""

from __future__ import annotations

import dataclasses
import io
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from upath import UPath

from malt_jax.errors import UserError
from malt_jax.typed_values import ValueProblem, construct, describe_type, leaves, plain

MESH_AXES = ("data", "fsdp", "tensor")
LINEAR_LAYERS = ("q", "k", "v", "o", "gate", "up", "down")
PLACE_SECTIONS = ("sampling_mesh", "training_mesh", "processes")
"""Sections that say where a run computes, not what: it may go on in another place."""


def _option(default: Any, help: str) -> Any:
    """A dataclass field with the text that `--help` shows for it."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model, which all roles share."""

    name: str = _option(
        "tiny",
        "tiny (embedded) | a preset such as llama-3.1-8b (random weights) | a directory with a"
        " Hugging Face checkpoint | a .gguf file",
    )
    tokenizer: str | None = _option(
        None, "directory or file of the tokenizer; null: the checkpoint's own"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "type of the weights and of computation; auto: float32 on CPUs, else bfloat16"
    )
    max_positions: int | None = _option(
        None, "longest prompt and completion together, in tokens; null: the model's own limit"
    )

    def resolve_dtype(self, platform: str) -> str:
        """The name of the dtype on devices of this platform: "auto" is float32 on a "cpu"."""
        automatic = "float32" if platform == "cpu" else "bfloat16"
        return automatic if self.dtype == "auto" else self.dtype


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The questions, and how their answers are compared."""

    name: str = _option("arithmetic", "the kind of question: how answers are written and compared")
    train: str | None = _option(
        None,
        "questions to learn from: a JSON Lines or Parquet file (or several: dir/*.jsonl), a saved"
        " data set's directory[:SPLIT], hub:OWNER/NAME[/CONFIG]:SPLIT or tfds:NAME[/CONFIG]:SPLIT;"
        " null: the task's own on the hub",
    )
    test: str | None = _option(None, "questions to evaluate on, given like those of train")
    drop_duplicates: bool = _option(True, "leave out training questions that the test asks too")
    train_questions: int | None = _option(None, "questions to learn from; null: all")
    test_questions: int | None = _option(None, "questions in the test split; null: all")
    options: dict[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"help": "options of this task alone; see malt_jax/tasks"}
    )


@dataclasses.dataclass(frozen=True)
class RoleConfig:
    """One role of the pipeline."""

    name: str = dataclasses.field(metadata={"help": "name of the role and of its adapter"})
    branching: int = _option(3, "completions sampled for every prompt of this role in the tree")
    prompt: str | None = _option(None, "YAML file with the role's prompt; null: the task's own")


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """The roles that answer a question together."""

    roles: tuple[RoleConfig, ...] = _option(
        (RoleConfig("generator"), RoleConfig("verifier"), RoleConfig("refiner")),
        "the roles, in the order in which they act; the last one gives the answer",
    )


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    temperature: float = _option(0.3, "0: always the most probable token")
    top_p: float = _option(1.0, "smallest set of tokens with this probability; 1: all")
    top_k: int = _option(0, "the k most probable tokens; 0: all")
    max_tokens: int = _option(512, "longest completion, in tokens")
    questions_per_batch: int = _option(
        16, "questions whose trees are sampled at once (memory; results do not depend on it)"
    )
    chunk: int = _option(32, "tokens decoded between two looks of the host at what is finished")


@dataclasses.dataclass(frozen=True)
class CreditConfig:
    """How graded trees become rows and pairs."""

    threshold: float = _option(0.5, "a completion is correct iff its value is strictly above")
    sft_rows: Literal["correct", "paired"] = _option(
        "correct", "rows for SFT: every correct completion, or only those that occur in a pair"
    )
    max_rows_per_question: int | None = _option(None, "cap on a role's SFT rows; null: none")
    max_pairs_per_question: int | None = _option(None, "cap on a role's pairs; null: none")
    drop_duplicates: bool = _option(
        True, "leave equal completions of one prompt out of the rows (never out of the values)"
    )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685), one a role."""

    rank: int = _option(8, "width of the adapter (left open by the paper)")
    alpha: float = _option(16.0, "the adapter is scaled by alpha / rank (left open by the paper)")
    dropout: float = _option(0.05, "on the adapter's input, in training (left open by the paper)")
    targets: tuple[str, ...] = _option(
        LINEAR_LAYERS, f"linear layers with an adapter, among {', '.join(LINEAR_LAYERS)}"
    )

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What is trained."""

    method: Literal["lora", "full"] = _option("lora", "train adapters or all weights")
    remat: bool = _option(True, "compute activations again in the backward pass: less memory")
    dpo_roles: tuple[str, ...] = _option(
        ("verifier", "refiner"), "roles that are trained on pairs after SFT"
    )
    save_every: int = _option(
        100, "updates after which a training stage saves its state, to go on there if interrupted"
    )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Training on single completions."""

    learning_rate: float = _option(2e-5, "highest learning rate; a cosine takes it to 0")
    batch_size: int = _option(8, "rows or pairs in an update")
    micro_batch_size: int | None = _option(
        None, "rows at once, whose gradients are added up; null: the whole batch"
    )
    epochs: int | None = _option(
        None, "passes over the rows; null: clamp(round(10000 / rows), 1, 10)"
    )
    warmup_steps: int = _option(10, "updates until the learning rate is at its highest")
    weight_decay: float = _option(0.0, "of AdamW; norms and biases are never decayed")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this global norm")


@dataclasses.dataclass(frozen=True)
class DpoConfig(SftConfig):
    """Training on pairs: the options of sft, and DPO's own (arXiv 2305.18290)."""

    beta: float = _option(0.2, "strength of the pull towards the reference")
    label_smoothing: float = _option(0.0, "assumed probability that a pair is the wrong way round")
    nll_weight: float = _option(0.0, "weight of the chosen completion's negative log-likelihood")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How the systems are compared."""

    questions: int | None = _option(None, "test questions to evaluate on; null: all")
    votes: int = _option(3, "independent passes whose answers are put to the vote (+mv)")
    seeds: int = _option(1, "repetitions with different random numbers")
    questions_per_batch: int = _option(16, "questions answered at once (memory)")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh of devices; their product is the number of devices. null: chosen."""

    data: int | None = _option(None, "copies of the weights, each with its part of a batch")
    fsdp: int | None = _option(
        None, "parts of a batch and of each weight, which is gathered when its layer is computed"
    )
    tensor: int | None = _option(
        None, "parts of the heads, the feed-forward layers and the vocabulary; never gathered"
    )


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """The processes that make a run together, one a host. It may go on with another number."""

    cluster: Literal["auto", "none"] = _option(
        "auto",
        "auto: a SLURM step or a TPU pod gives the next three where they are null; none: a process"
        " without them is alone",
    )
    coordinator: str | None = _option(None, "HOST:PORT at which process 0 waits for the others")
    count: int | None = _option(None, "number of processes; the same in all of them")
    index: int | None = _option(None, "which one this process is, from 0")
    start_timeout: float = _option(50.0, "seconds until all processes must be there")
    barrier_timeout: float = _option(
        1800.0, "seconds that processes wait for the slowest before they name it and stop"
    )
    heartbeat_timeout: float = _option(
        100.0, "seconds without a sign of life after which a process counts as dead; 5 or more"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One run, completely."""

    seed: int = _option(0, "every random number of the run is derived from it")
    rounds: int = _option(1, "repetitions of: sample trees, assign credit, train")
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    pipeline: PipelineConfig = PipelineConfig()
    sampling: SamplingConfig = SamplingConfig()
    credit: CreditConfig = CreditConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sampling_mesh: MeshConfig = MeshConfig()
    training_mesh: MeshConfig = MeshConfig()
    processes: ProcessesConfig = ProcessesConfig()

    @property
    def test_limit(self) -> int | None:
        """Number of test questions that the evaluation asks; None: all."""
        limits = (self.task.test_questions, self.evaluation.questions)
        return min((limit for limit in limits if limit is not None), default=None)


def load_config(file: Path | UPath | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file (None: the defaults), changed by `field=value` overrides.

    An override's field is a full name ("sampling.top_p", "pipeline.roles.0.branching"), its value
    is YAML. Later ones win.

    Raises UserError for a file that cannot be read, a field that does not exist, a value of
    another type and a value out of its range.
    """
    values = plain(Config())
    config = Config()
    if file is not None:
        values = _merged(values, _read(UPath(file)))
        config = _constructed(values, str(file))
    for override in overrides:
        values = _overridden(values, override)
        config = _constructed(values, f"option {override!r}")
    problems = list(_problems(config))
    if problems:
        raise UserError("options out of their range:\n  " + "\n  ".join(problems))
    return config


def to_yaml(config: Config) -> str:
    """All options as YAML that `load_config` reads back to the same configuration."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def diff(old: Config, new: Config) -> list[str]:
    """The fields in which two configurations differ, with both values, one line each.

    Those of PLACE_SECTIONS are left out.
    """
    before, after = dict(leaves(plain(old))), dict(leaves(plain(new)))
    absent = "(absent)"
    return [
        f"{name}: {before.get(name, absent)} -> {after.get(name, absent)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, absent) != after.get(name, absent)
        and name.partition(".")[0] not in PLACE_SECTIONS
    ]


def describe_options() -> str:
    """All fields with type, default and meaning, for the end of a command's `--help`."""
    lines = ["options (field=value, or a YAML file):"]
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        section = hints[field.name]
        if not dataclasses.is_dataclass(section):
            lines += _described(field, section, "")
            continue
        lines += ["", f"{field.name}: {str(section.__doc__).splitlines()[0]}"]
        inner = typing.get_type_hints(section)
        for option in dataclasses.fields(section):
            lines += _described(option, inner[option.name], f"{field.name}.")
    return "\n".join(lines)


def _described(field: dataclasses.Field[Any], hint: Any, prefix: str) -> list[str]:
    default = field.default if field.default is not dataclasses.MISSING else {}
    shown = yaml.safe_dump(plain(default), default_flow_style=True, width=1000)
    shown = shown.removesuffix("...\n").strip()
    return [
        f"  {prefix}{field.name}={shown}",
        f"      {field.metadata['help']} ({describe_type(hint)})",
    ]


def _read(file: UPath) -> Any:
    try:
        # Unresolved: an interpolation could bring the environment into the files of a run.
        text = io.StringIO(file.read_text("utf-8"))
        values = OmegaConf.to_container(OmegaConf.load(text), resolve=False)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the configuration {file} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}, line {mark.line + 1}" if mark else str(file)
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{place}: this is not YAML: {problem}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold sections (model:, task:, ...), not a list")
    return values


def _overridden(values: Any, override: str) -> Any:
    field, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+([.]\w+)*", field):
        raise UserError(f"option {override!r}: write section.field=value")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise UserError(f"option {override!r}: the value is not YAML: {problem}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"option {override!r}: {str(error).splitlines()[0]}") from None
    try:
        return _replaced(values, field.split("."), parsed["value"])
    except IndexError as error:
        raise UserError(f"option {override!r}: {error}") from None


def _replaced(values: Any, keys: Sequence[str], new: Any) -> Any:
    """The values with `new` merged in below a path of keys and of list indices."""
    if not keys:
        return _merged(values, new)
    key, rest = keys[0], keys[1:]
    if isinstance(values, list):
        if not key.isdecimal() or int(key) >= len(values):
            raise IndexError(f"the list has the items 0 to {len(values) - 1}, and no {key}")
        index = int(key)
        return [*values[:index], _replaced(values[index], rest, new), *values[index + 1 :]]
    section = values if isinstance(values, dict) else {}
    return {**section, key: _replaced(section.get(key), rest, new)}


def _merged(old: Any, new: Any) -> Any:
    """`new` over `old`, section by section; lists are replaced as a whole."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _constructed(values: Any, source: str) -> Config:
    for name, value in leaves(values):
        if "${" in str(value):
            raise UserError(f"{source}: {name} is {value!r}; interpolations are not supported")
    try:
        return construct(Config, values)
    except ValueProblem as problem:
        raise UserError(f"{source}: {problem}") from None


def _problems(config: Config) -> Iterator[str]:
    """What is out of range or does not fit together, one line a field."""
    fields = dict(leaves(plain(config)))

    def check(good: bool, name: str, wanted: str) -> Iterator[str]:
        if not good:
            yield f"{name} is {fields.get(name, '')!r}, but must be {wanted}"

    positive = {
        *("rounds", "model.max_positions", "task.train_questions", "task.test_questions"),
        *("sampling.max_tokens", "sampling.questions_per_batch", "sampling.chunk"),
        *("credit.max_rows_per_question", "credit.max_pairs_per_question"),
        *("lora.rank", "lora.alpha", "dpo.beta"),
        *("evaluation.questions", "evaluation.votes", "evaluation.seeds"),
        "evaluation.questions_per_batch",
        *(f"{stage}_mesh.{axis}" for stage in ("sampling", "training") for axis in MESH_AXES),
        *("processes.count", "processes.start_timeout", "processes.barrier_timeout"),
        "processes.heartbeat_timeout",
        "training.save_every",
    }
    training = ("learning_rate", "batch_size", "micro_batch_size", "epochs", "max_grad_norm")
    positive |= {f"{stage}.{name}" for stage in ("sft", "dpo") for name in training}
    roles = config.pipeline.roles
    positive |= {f"pipeline.roles.{index}.branching" for index in range(len(roles))}
    for name in fields:
        value = fields[name]
        if name in positive and value is not None:
            yield from check(value > 0, name, "above 0")

    not_negative = ["sampling.temperature", "sampling.top_k", "dpo.nll_weight"]
    not_negative += [
        f"{stage}.{n}" for stage in ("sft", "dpo") for n in ("warmup_steps", "weight_decay")
    ]
    not_negative.append("processes.index")
    for name in not_negative:
        yield from check((fields[name] or 0) >= 0, name, "0 or above")
    yield from check(0 <= config.seed < 2**32, "seed", "from 0 to 2**32 - 1")
    yield from check(0 < config.sampling.top_p <= 1, "sampling.top_p", "above 0 and at most 1")
    yield from check(0 <= config.credit.threshold < 1, "credit.threshold", "at least 0 and below 1")
    yield from check(0 <= config.lora.dropout < 1, "lora.dropout", "at least 0 and below 1")
    smoothing = config.dpo.label_smoothing
    yield from check(0 <= smoothing < 0.5, "dpo.label_smoothing", "at least 0 and below 0.5")
    for stage, training_config in (("sft", config.sft), ("dpo", config.dpo)):
        micro, batch = training_config.micro_batch_size, training_config.batch_size
        divides = micro is None or micro < 1 or batch % micro == 0
        yield from check(divides, f"{stage}.micro_batch_size", f"a divisor of batch_size={batch}")

    targets = config.lora.targets
    known = set(targets) <= set(LINEAR_LAYERS) and len(set(targets)) == len(targets) > 0
    yield from check(known, "lora.targets", f"some of {', '.join(LINEAR_LAYERS)}, each once")
    names = [role.name for role in roles]
    if not names:
        yield "pipeline.roles is empty: name at least one role"
    for index, name in enumerate(names):
        safe = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None and name not in names[:index]
        wanted = "of letters, digits, _ and - (it names a directory), and not used twice"
        yield from check(safe, f"pipeline.roles.{index}.name", wanted)
    trained = set(config.training.dpo_roles) <= set(names)
    yield from check(trained, "training.dpo_roles", f"some of the roles: {', '.join(names)}")
