"""Every option of a run, described once: its field holds type, default, bounds and help.

From these fields come the checks of YAML files and of `section.field=value` arguments, the error
messages, the help, and the options that may differ when a run is resumed.

The defaults are the settings of the paper (arXiv 2412.01928, section 4 and its appendices); where
the paper leaves a choice open, the help text says so.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass
from upath import UPath

from malt_jax.errors import UserError
from malt_jax.option_problems import LARGEST, explained, schemas_by_name
from malt_jax.role_sections import SECTIONS, inherited, reduced
from malt_jax.strict_yaml import dump_yaml, parse_yaml, read_yaml

QUICKSTART = Path(__file__).parent / "assets" / "quickstart.yaml"
MESH_AXES = ("data", "fsdp", "tensor")
LinearLayer = Literal["q", "k", "v", "o", "gate", "up", "down"]
LINEAR_LAYERS: tuple[LinearLayer, ...] = typing.get_args(LinearLayer)
TrackerName = Literal["auto", "jsonl", "tensorboard", "wandb", "trackio", "mlflow"]

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Index = Annotated[int, Field(ge=0, le=LARGEST)]
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _option(default: Any, help: str, *, resumable: bool = False, **bounds: Any) -> Any:
    """A field with its help text and bounds (gt, ge, lt, le, pattern).

    resumable: the option changes no result, so it may differ when a run is resumed.
    """
    return Field(default, description=help, json_schema_extra={"resumable": resumable}, **bounds)


def _each_once(items: tuple[Any, ...]) -> tuple[Any, ...]:
    names = [item.name if isinstance(item, RoleConfig) else item for item in items]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"must have at least one item and none twice, got {names}")
    return items


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """The base model, which all roles share."""

    name: str = _option(
        "tiny",
        "tiny (embedded) | a preset such as llama-3.1-8b (random weights) | a directory with a"
        " Hugging Face checkpoint | a .gguf file",
    )
    tokenizer: str | None = _option(None, "file or directory of the tokenizer; null: the model's")
    dtype: Literal["auto", "float32", "bfloat16"] = _option(
        "auto", "type of the weights and of computation; auto: float32 on CPUs, else bfloat16"
    )
    max_positions: Count | None = _option(
        None, "tokens of prompt and completion; null: the model's"
    )
    thinking: bool = _option(
        False,
        "enable_thinking of chat templates that know it (Qwen3, SmolLM3): replies begin with"
        " reasoning in <think> tags, which counts towards sampling.max_tokens",
    )

    def resolve_dtype(self, platform: str) -> str:
        """The name of the dtype on devices of this platform: "auto" is float32 on a "cpu"."""
        automatic = "float32" if platform == "cpu" else "bfloat16"
        return automatic if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, config=_STRICT)
class TaskConfig:
    """The questions, and how their answers are compared."""

    name: str = _option("riddles", "kind of question: how answers are written and compared")
    train: str | None = _option(
        None,
        "training questions: a JSON Lines or Parquet file (or several: dir/*.jsonl), a saved data"
        " set's directory[:SPLIT], hub:OWNER/NAME[/CONFIG]:SPLIT or tfds:NAME[/CONFIG]:SPLIT;"
        " null: the task's own on the hub",
    )
    test: str | None = _option(None, "test questions, given like those of train")
    drop_duplicates: bool = _option(True, "leave out training questions that the test asks too")
    train_questions: Count | None = _option(None, "number of training questions; null: all")
    test_questions: Count | None = _option(None, "number of test questions; null: all")
    options: dict[str, Any] = _option({}, "options of this task alone; see docs/tasks.md")


@dataclass(frozen=True, config=_STRICT)
class RoleConfig:
    """One role of the pipeline."""

    name: str = _option(..., "name of the role and of its adapter", pattern="^[a-z][a-z0-9_]*$")
    branching: Count = _option(3, "completions sampled for every prompt of this role in the tree")
    prompt: str | None = _option(None, "YAML file with the role's prompt; null: the task's own")


@dataclass(frozen=True, config=_STRICT)
class PipelineConfig:
    """The roles that answer a question together."""

    roles: Annotated[tuple[RoleConfig, ...], pydantic.AfterValidator(_each_once)] = _option(
        (RoleConfig("generator"), RoleConfig("verifier"), RoleConfig("refiner")),
        "the roles, in the order in which they act; the last one gives the answer",
    )

    @property
    def names(self) -> list[str]:
        """The roles' names."""
        return [role.name for role in self.roles]


@dataclass(frozen=True, config=_STRICT)
class SamplingConfig:
    """Sampling of completions."""

    temperature: float = _option(0.3, "0: always the most probable token", ge=0)
    top_p: float = _option(1.0, "smallest set of tokens with this probability; 1: all", gt=0, le=1)
    top_k: Index = _option(0, "the k most probable tokens; 0: all")
    max_tokens: Count = _option(512, "longest completion, in tokens")
    questions_per_batch: Count = _option(16, "questions sampled together (memory, not results)")
    chunk: Count = _option(32, "tokens decoded between two checks for the end", resumable=True)


@dataclass(frozen=True, config=_STRICT)
class CreditConfig:
    """Training rows and preference pairs from graded trees."""

    threshold: float = _option(0.5, "a completion is correct if its value is above it", ge=0, lt=1)
    sft_rows: Literal["correct", "paired"] = _option(
        "correct", "rows for SFT: every correct completion, or only those that occur in a pair"
    )
    pairs: Literal["labels", "values"] = _option(
        "labels", "pairs: correct and incorrect siblings, or any siblings of different value"
    )
    min_value_gap: float = _option(
        0.0, "smallest difference of the values of a pair's completions", ge=0, le=1
    )
    max_rows_per_question: Count | None = _option(
        None, "cap on a role's SFT rows, and on KTO's correct and incorrect ones each; null: none"
    )
    max_pairs_per_question: Count | None = _option(None, "cap on a role's pairs; null: none")
    drop_duplicates: bool = _option(True, "leave equal completions of a prompt out of the rows")


@dataclass(frozen=True, config=_STRICT)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685), one a role; the paper leaves their options open."""

    rank: Count = _option(8, "rank of an adapter's matrices")
    alpha: float = _option(16.0, "the adapter is scaled by alpha / rank", gt=0)
    dropout: float = _option(0.05, "dropout on the adapter's input, in training", ge=0, lt=1)
    targets: Annotated[tuple[LinearLayer, ...], pydantic.AfterValidator(_each_once)] = _option(
        LINEAR_LAYERS, "linear layers with an adapter"
    )
    adapter_weight: float = _option(
        1.0,
        "factor of trained adapters where they are sampled from or exported, not in training",
        gt=0,
    )

    @property
    def scale(self) -> float:
        """Factor of the low-rank product in training."""
        return self.alpha / self.rank

    @property
    def sampled_alpha(self) -> float:
        """`alpha` of an adapter that is sampled from."""
        return self.alpha * self.adapter_weight


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """Options that all training stages share."""

    method: Literal["lora", "full"] = _option("lora", "train adapters or all weights")
    remat: bool = _option(True, "compute activations twice, to save memory", resumable=True)
    dpo_roles: tuple[str, ...] = _option(("verifier", "refiner"), "roles that DPO trains after SFT")
    kto_roles: tuple[str, ...] = _option((), "roles that KTO trains, after SFT and any DPO")
    on_policy_pairs: bool = _option(
        False,
        "sample trees again from the SFT policies, and take what DPO and KTO train on from these",
    )
    save_every: Count = _option(100, "updates between checkpoints of a stage", resumable=True)


@dataclass(frozen=True, config=_STRICT)
class SftConfig:
    """Supervised fine-tuning, on single completions."""

    learning_rate: float = _option(2e-5, "highest learning rate; a cosine takes it to 0", gt=0)
    batch_size: Count = _option(8, "rows or pairs in an update")
    micro_batch_size: Count | None = _option(
        None, "micro-batch of gradient accumulation, to save memory; null: the whole batch"
    )
    epochs: Count | None = _option(None, "passes over rows; null: clamp(round(10000/rows), 1, 10)")
    warmup_share: float = _option(
        0.1, "share of the updates in which the learning rate rises to its highest", ge=0, le=1
    )
    weight_decay: float = _option(0.0, "of AdamW; norms and biases are never decayed", ge=0)
    max_grad_norm: float = _option(1.0, "gradients are clipped to this global norm", gt=0)

    @pydantic.model_validator(mode="after")
    def _divides(self) -> SftConfig:
        if self.batch_size % (self.micro_batch_size or 1) != 0:
            got = f"got {self.micro_batch_size}"
            raise ValueError(f"micro_batch_size: must divide batch_size={self.batch_size}, {got}")
        return self


@dataclass(frozen=True, config=_STRICT)
class DpoConfig(SftConfig):
    """Training on preference pairs (arXiv 2305.18290): the options of sft, and DPO's own."""

    loss: Literal["sigmoid", "robust", "ipo", "length_normalized", "dpop"] = _option(
        "sigmoid", "loss of a pair (malt_jax/training/losses.py); sigmoid is the paper's"
    )
    beta: float = _option(0.2, "strength of the pull towards the reference", gt=0)
    label_smoothing: float | None = _option(
        0.0,
        "assumed probability of a swapped pair; null: the measured doubt about the role's pairs",
        ge=0,
        lt=0.5,
    )
    nll_weight: float = _option(0.0, "weight of the chosen completion's NLL in the loss", ge=0)
    sft_weight: float = _option(
        0.0,
        "weight of the loss of sft on batch_size correct completions, paired or not, that join"
        " every update; 0: none",
        ge=0,
    )
    dpop_penalty: float = _option(50.0, "dpop: penalty of a less likely chosen completion", ge=0)
    pair_weights: Literal["equal", "value_gap"] = _option(
        "equal", "weight of a pair in the loss; value_gap: difference of its values"
    )


@dataclass(frozen=True, config=_STRICT)
class KtoConfig(SftConfig):
    """Training on single correct and incorrect completions (arXiv 2402.01306): the options of sft,
    and KTO's own."""

    beta: float = _option(0.1, "strength of the pull towards the reference", gt=0)
    desirable_weight: float = _option(1.0, "weight of a correct completion in the loss", gt=0)
    undesirable_weight: float = _option(
        1.0,
        "weight of an incorrect completion; the paper advises that the weights times the numbers of"
        " correct and of incorrect completions are as 1:1 to 4:3",
        gt=0,
    )


@dataclass(frozen=True, config=_STRICT)
class EvaluationConfig:
    """Comparison of systems on the test questions."""

    questions: Count | None = _option(None, "test questions to evaluate on; null: all")
    votes: Count = _option(3, "independent passes whose answers are put to the vote (+mv)")
    seeds: Count = _option(1, "repetitions with different random numbers")
    questions_per_batch: Count = _option(16, "questions answered together (memory)", resumable=True)


@dataclass(frozen=True, config=_STRICT)
class TrackingConfig:
    """Trackers that show a run while it works (docs/following.md)."""

    trackers: tuple[TrackerName, ...] = _option(
        ("auto",),
        "the run's trackers; auto: tensorboard if it is installed; jsonl: metrics.jsonl, which"
        " every run has",
    )
    project: str = _option("malt_jax", "project of wandb and trackio, experiment of mlflow")
    name: str | None = _option(None, "the run's name in a tracker; null: its directory's name")
    trees: Index = _option(3, "sampled trees that a tracker shows as a table; 0: none")


@dataclass(frozen=True, config=_STRICT)
class MeshConfig:
    """Sizes of a mesh of devices; their product is the number of devices. null: chosen."""

    data: Count | None = _option(None, "copies of the weights, each with its part of a batch")
    fsdp: Count | None = _option(None, "parts of a batch and of each weight, all-gathered by layer")
    tensor: Count | None = _option(None, "parts of heads, feed-forward layers and the vocabulary")


@dataclass(frozen=True, config=_STRICT)
class ProcessesConfig:
    """The processes of a run, one a host. A run may be resumed with another number of them."""

    cluster: Literal["auto", "none"] = _option(
        "auto",
        "auto: a SLURM step or TPU pod gives the next three where they are null; none: alone",
    )
    coordinator: str | None = _option(None, "HOST:PORT at which process 0 waits for the others")
    count: Count | None = _option(None, "number of processes; the same in all of them")
    index: Index | None = _option(None, "number of this process, from 0")
    start_timeout: float = _option(50.0, "seconds until all processes must have started", gt=0)
    barrier_timeout: float = _option(1800.0, "seconds to wait for the slowest process", gt=0)
    heartbeat_timeout: float = _option(
        100.0, "seconds without a sign of life after which a process counts as dead", ge=5
    )


@dataclass(frozen=True, config=_STRICT)
class RoleOptions:
    """Options of one role, such as roles.verifier.dpo.beta; others are as for all roles."""

    # In files and arguments a section holds single options, here it is complete.
    credit: CreditConfig | None = _option(None, "options of credit; null: as for all roles")
    sft: SftConfig | None = _option(None, "options of sft; null: as for all roles")
    dpo: DpoConfig | None = _option(None, "options of dpo; null: as for all roles")
    kto: KtoConfig | None = _option(None, "options of kto; null: as for all roles")


class RoleSections(NamedTuple):
    """The sections of options that hold for one role."""

    credit: CreditConfig
    sft: SftConfig
    dpo: DpoConfig
    kto: KtoConfig


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One run, completely."""

    seed: int = _option(0, "every random number of the run is derived from it", ge=0, le=2**32 - 1)
    rounds: Count = _option(
        1, "repetitions of: sample trees with the final policies, assign credit, train"
    )
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    pipeline: PipelineConfig = PipelineConfig()
    sampling: SamplingConfig = SamplingConfig()
    credit: CreditConfig = CreditConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    kto: KtoConfig = KtoConfig()
    roles: dict[str, RoleOptions] = _option(
        {}, "by role, options of credit, sft, dpo and kto that differ from those of all roles"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = _option(
        TrackingConfig(), "trackers that show the run", resumable=True
    )
    sampling_mesh: MeshConfig = _option(MeshConfig(), "for sampling; null: chosen", resumable=True)
    training_mesh: MeshConfig = _option(MeshConfig(), "for training; null: chosen", resumable=True)
    processes: ProcessesConfig = _option(ProcessesConfig(), "processes of the run", resumable=True)

    @pydantic.model_validator(mode="after")
    def _trains_roles(self) -> Config:
        names = self.pipeline.names
        for option in ("dpo_roles", "kto_roles"):
            trained = getattr(self.training, option)
            if not set(trained) <= set(names):
                raise ValueError(f"training.{option}: must be some of {names}, got {[*trained]}")
        if not self.roles.keys() <= set(names):
            raise ValueError(f"roles: must be some of {names}, got {[*self.roles]}")
        return self

    def of_role(self, role: str) -> RoleSections:
        """The options of a role: its own sections, and those of all roles for the others."""
        own = self.roles.get(role, RoleOptions())
        return RoleSections(*(getattr(own, name) or getattr(self, name) for name in SECTIONS))

    def with_section(self, role: str, section: str, options: SftConfig | CreditConfig) -> Config:
        """The configuration with other options in the section that holds for a role."""
        changed: Any = {section: options}
        if self.section_name(role, section) != section:
            own = dataclasses.replace(self.roles[role], **changed)
            changed = {"roles": {**self.roles, role: own}}
        return dataclasses.replace(self, **changed)

    def section_name(self, role: str, section: str) -> str:
        """The name of the section that holds for a role: "dpo" or "roles.verifier.dpo"."""
        own = getattr(self.roles.get(role), section, None)
        return section if own is None else f"roles.{role}.{section}"

    @property
    def test_limit(self) -> int | None:
        """Number of test questions that the evaluation asks; None: all."""
        limits = (self.task.test_questions, self.evaluation.questions)
        return min((limit for limit in limits if limit is not None), default=None)


_CONFIG = pydantic.TypeAdapter(Config)


def load_config(file: Path | UPath | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file (None: the defaults), changed by `field=value` overrides.

    An override's field is a full name ("sampling.top_p", "pipeline.roles.0.branching",
    "roles.verifier.dpo.beta"), its value is YAML. Later ones win.

    Raises UserError, with one line a problem, for a file that cannot be read, an unknown option,
    a value of another type and a value outside its bounds.
    """
    values = plain(Config())
    if file is not None:
        content = read_yaml(UPath(file)) or {}
        if not isinstance(content, dict):
            raise UserError(f"{file} must hold sections (model:, task:, ...)")
        values = _merged(values, content)
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals or not re.fullmatch(r"\w+([.]\w+){0,9}", field):
            raise UserError(f"option {override!r:.100}: write section.field=value")
        value = parse_yaml(text, f"option {override!r:.100}")
        for key in reversed(field.split(".")):
            value = {key: value}
        values = _merged(values, value)
    try:
        config = _validated(values)
        # Read again without the sections of roles that repeat the options of all roles.
        return _validated(plain(config)) if config.roles else config
    except pydantic.ValidationError as error:
        problems = explained(error.errors(), options(), file, overrides)
    raise UserError("\n  ".join(problems if len(problems) == 1 else ["invalid options", *problems]))


def _validated(values: Mapping[str, Any]) -> Config:
    # As JSON, where lists may become tuples and sections dataclasses, and nothing else is cast.
    return _CONFIG.validate_json(json.dumps(inherited(values)))


def to_yaml(config: Config) -> str:
    """All options as YAML that `load_config` reads back to the same configuration."""
    return dump_yaml(plain(config))


def plain(config: Config) -> dict[str, Any]:
    """All options as JSON has them: sections are dicts, tuples are lists.

    Sections of single roles hold only the options that differ from those of all roles.
    """
    return reduced(_CONFIG.dump_python(config, mode="json"))


def leaves(config: Config) -> dict[str, Any]:
    """The value of every option by its full name."""

    def below(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = dict(enumerate(value))
        if not isinstance(value, dict):
            yield name, value
        else:
            for key, item in value.items():
                yield from below(f"{name}.{key}".lstrip("."), item)

    return dict(below("", plain(config)))


def diff(old: Config, new: Config) -> list[str]:
    """The options in which two configurations differ, with both values, one line each.

    Options that change no result (`resumable`) are left out.
    """
    free = tuple(f"{name}." for name, schema in options().items() if schema.get("resumable"))
    before, after = leaves(old), leaves(new)
    absent = "(absent)"
    return [
        f"{name}: {before.get(name, absent)} -> {after.get(name, absent)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name, absent) != after.get(name, absent) and not f"{name}.".startswith(free)
    ]


@functools.cache
def options() -> dict[str, Mapping[str, Any]]:
    """The JSON schemas of all sections, options and items by full name.

    "" is all, "0" any item of a list, and "ROLE" any role.
    """
    return schemas_by_name(_CONFIG.json_schema())


def _merged(old: Any, new: Any) -> Any:
    """`new` over `old`, section by section, and by item where the keys of `new` are indices."""
    if isinstance(old, list) and isinstance(new, dict):
        items = {str(index): item for index, item in enumerate(old)}
        return list(_merged(items, new).values()) if new.keys() <= items.keys() else new
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
