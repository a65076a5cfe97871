"""Training objectives: which nodes of a graded tree a role trains on, and the loss on them.

To add one, write a frozen dataclass like these and name it in `objectives`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.config import Config, DpoConfig, SftConfig
from malt_jax.malt.credit import Node, RoleRows
from malt_jax.training import losses
from malt_jax.training import step as training_step
from malt_jax.training.batches import Batch
from malt_jax.training.losses import TokenScores
from malt_jax.training.step import Metrics, completion_mask, sum_logps

FEW_UPDATES = 20
SMALL_MARGIN = 0.05
"""Nats of implicit reward below which DPO counts as having changed nothing."""


class TrainingRow(NamedTuple):
    """Sibling nodes, whose completions share a prompt, and their weight in the loss."""

    nodes: tuple[Node, ...]
    weight: float = 1.0


class Objective(training_step.Objective, Protocol):
    """A loss with the nodes that it needs."""

    name: ClassVar[str]
    """The stage's name in a run directory."""
    rows: ClassVar[str]
    """The name of its training rows in messages."""
    missing: ClassVar[str]
    """The message when there are no rows."""
    needs_reference: ClassVar[bool]
    """Whether the loss compares with the role's policy at the start of the stage."""

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        """The training rows of a role."""

    def warnings(self, updates: int, last: Mapping[str, float]) -> list[str]:
        """Signs that a stage has not trained as it should.

        last: the metrics, as means over the last updates.
        """


def objectives(config: Config, role: str) -> list[Objective]:
    """The training stages of a role, in order: SFT, then DPO where the configuration says so."""
    stages: list[Objective] = [Sft(config.sft)]
    if role in config.training.dpo_roles:
        stages.append(Dpo(config.dpo))
    return stages


def _few(updates: int, epochs: int | None, section: str) -> str:
    now = "chosen by the number of rows" if epochs is None else str(epochs)
    return (
        f"{updates} updates are few: take more questions, a smaller {section}.batch_size or more"
        f" {section}.epochs (now {now})"
    )


@dataclasses.dataclass(frozen=True)
class Sft:
    """Mean negative log-probability of the tokens of correct completions (section 4.3).

    Each token of the batch has the same weight, whatever the length of its completion (as in TRL).
    """

    options: SftConfig
    name: ClassVar[str] = "sft"
    rows: ClassVar[str] = "SFT rows"
    missing: ClassVar[str] = "no correct completion for the {role}"
    needs_reference: ClassVar[bool] = False
    dropout: ClassVar[bool] = True

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        return [TrainingRow((node,)) for node in rows.sft]

    def warnings(self, updates: int, last: Mapping[str, float]) -> list[str]:
        return [_few(updates, self.options.epochs, "sft")] if updates < FEW_UPDATES else []

    def count(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum(completion_mask(batch).astype(jnp.float32))

    def sums(self, scores: TokenScores, batch: Batch) -> Metrics:
        mask = completion_mask(batch)

        def total(x: Array) -> Float[Array, ""]:
            return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0))

        return {
            "loss": -total(scores.logps),
            "entropy": total(scores.entropies),
            "mean_token_accuracy": total(scores.correct),
        }


@dataclasses.dataclass(frozen=True)
class Dpo:
    """Weighted mean loss of preference pairs, from and against the role's SFT policy (section 4.3).

    Adds `nll_weight` times the negative log-probability per token of the chosen completion (arXiv
    2404.19733, eq. 1; TRL, as `rpo_alpha`, takes the mean over the tokens of the batch instead).
    Dropout does not act, as by default in TRL: policy and reference differ by training alone.
    """

    options: DpoConfig
    name: ClassVar[str] = "dpo"
    rows: ClassVar[str] = "preference pairs"
    missing: ClassVar[str] = (
        "no preference pair for the {role}: the completions of every prompt are all correct or all"
        " incorrect"
    )
    needs_reference: ClassVar[bool] = True
    dropout: ClassVar[bool] = False

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        weighted = self.options.pair_weights == "value_gap"
        return [
            TrainingRow((pair.chosen, pair.rejected), pair.gap if weighted else 1.0)
            for pair in rows.pairs
        ]

    def warnings(self, updates: int, last: Mapping[str, float]) -> list[str]:
        found = [_few(updates, self.options.epochs, "dpo")] if updates < FEW_UPDATES else []
        margin, chosen = last["rewards/margins"], last["rewards/chosen"]
        if margin < SMALL_MARGIN:
            found.append(
                f"the reward margin is {margin:.3f} at the end: DPO has hardly changed the policy;"
                " raise dpo.learning_rate or dpo.epochs"
            )
        if chosen < -SMALL_MARGIN:
            found.append(
                f"rewards/chosen is {chosen:.3f} at the end: the chosen completions became less"
                " likely (likelihood displacement); try dpo.nll_weight=1 or dpo.loss=dpop"
            )
        return found

    def count(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum(batch.weights)

    def sums(self, scores: TokenScores, batch: Batch) -> Metrics:
        if batch.reference_logps is None:
            raise ValueError("DPO needs the reference's log-probabilities of the batch")
        options, logps = self.options, sum_logps(scores, batch)
        pair_losses = losses.preference_losses(logps, batch.reference_logps, batch.lengths, options)
        nll = -logps[:, 0] / jnp.maximum(batch.lengths[:, 0], 1).astype(jnp.float32)
        rewards = losses.implicit_rewards(logps, batch.reference_logps, options.beta)
        chosen, rejected = rewards[:, 0], rewards[:, 1]

        def total(x: Float[Array, " B"]) -> Float[Array, ""]:
            return jnp.sum(batch.weights * x)

        return {
            "loss": total(pair_losses + options.nll_weight * nll),
            "nll_loss": total(nll),
            "rewards/chosen": total(chosen),
            "rewards/rejected": total(rejected),
            "rewards/margins": total(chosen - rejected),
            "rewards/accuracies": total((chosen > rejected).astype(jnp.float32)),
            "logps/chosen": total(logps[:, 0]),
            "logps/rejected": total(logps[:, 1]),
        }
