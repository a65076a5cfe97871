"""Every option of a run: its type, its default and what it means.

The defaults are the settings of the paper (arXiv 2412.01928, section 4 and appendices); where the
paper leaves a choice open, the help text of the field says so. `malt_jax.config_files` reads them
from YAML files and from the command line.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

LINEAR_LAYERS = ("q", "k", "v", "o", "gate", "up", "down")


def _option(default: Any, help: str) -> Any:
    """A dataclass field with the text that `--help` shows for it."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = _option(
        "tiny",
        "tiny (embedded) | a preset such as llama3.1-8b (random weights) | a directory with a"
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


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    name: str = _option("arithmetic", "the kind of question: how answers are written and compared")
    train: str | None = _option(None, "file with the questions to learn from")
    test: str | None = _option(None, "file with the questions to evaluate on")
    train_questions: int | None = _option(None, "questions to learn from; null: all")
    test_questions: int | None = _option(None, "questions in the test split; null: all")
    options: dict[str, Any] = _option({}, "options of this task alone; see malt_jax/tasks")


@dataclasses.dataclass(frozen=True)
class RoleConfig:
    name: str = dataclasses.field(metadata={"help": "name of the role and of its adapter"})
    branching: int = _option(3, "completions sampled for every prompt of this role in the tree")
    prompt: str | None = _option(None, "YAML file with the role's prompt; null: the task's own")


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    roles: tuple[RoleConfig, ...] = _option(
        (RoleConfig("generator"), RoleConfig("verifier"), RoleConfig("refiner")),
        "the roles, in the order in which they act; the last one gives the answer",
    )


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
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
    rank: int = _option(8, "width of the adapter (left open by the paper)")
    alpha: float = _option(16.0, "the adapter is scaled by alpha / rank (left open by the paper)")
    dropout: float = _option(0.05, "on the adapter's input, in training (left open by the paper)")
    targets: tuple[str, ...] = _option(
        LINEAR_LAYERS, f"linear layers with an adapter, among {', '.join(LINEAR_LAYERS)}"
    )


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    method: Literal["lora", "full"] = _option("lora", "train adapters or all weights")
    remat: bool = _option(True, "compute activations again in the backward pass: less memory")
    dpo_roles: tuple[str, ...] = _option(
        ("verifier", "refiner"), "roles that are trained on pairs after SFT"
    )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Options of both training stages."""

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
    beta: float = _option(0.2, "strength of the pull towards the reference")
    label_smoothing: float = _option(0.0, "assumed probability that a pair is the wrong way round")
    nll_weight: float = _option(0.0, "weight of the chosen completion's negative log-likelihood")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    questions: int | None = _option(None, "test questions to evaluate on; null: all")
    votes: int = _option(3, "independent passes whose answers are put to the vote (+mv)")
    seeds: int = _option(1, "repetitions with different random numbers")
    questions_per_batch: int = _option(16, "questions answered at once (memory)")


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
    learning: LearningConfig = LearningConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
