"""Training objectives: which nodes of a graded tree a role trains on, and the loss on them.

To add one, write a frozen dataclass like these and name it in `objectives`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from malt_jax.config import Config, DpoConfig, KtoConfig, SftConfig
from malt_jax.malt.credit import Node, RoleRows
from malt_jax.training import losses
from malt_jax.training import step as training_step
from malt_jax.training.batches import Batch, Example
from malt_jax.training.losses import TokenScores
from malt_jax.training.step import Metrics, completion_mask, sum_logps

FEW_UPDATES = 20
SMALL_MARGIN = 0.05
"""Nats of implicit reward below which a stage counts as having changed nothing."""


class TrainingRow(NamedTuple):
    """Sibling nodes, whose completions share a prompt, and their weight in the loss (`Example`)."""

    nodes: tuple[Node, ...]
    weight: float = 1.0


class Loss(training_step.Objective, Protocol):
    """A loss with the nodes that it needs."""

    rows: ClassVar[str]
    """The name of its training rows in messages."""
    needs_reference: ClassVar[bool]
    """Whether the loss compares with the role's policy at the start of the stage."""
    completions: ClassVar[int]
    """Completions of a training row."""

    @property
    def anchor(self) -> Loss | None:
        """A loss of other rows, whose gradient is added in every update."""

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        """The training rows of a role."""


class Objective(Loss, Protocol):
    """The loss of a training stage."""

    name: ClassVar[str]
    """The stage's name in a run directory, and the name of the section with its options."""
    missing: ClassVar[str]
    """The message when there are no rows."""

    def fitted(self, pair_doubt: float) -> Objective:
        """The objective with the options that are measured.

        pair_doubt: expected share of the role's pairs that are in the wrong order.
        """

    def count_rows(self, correct: int, incorrect: int, pairs: int) -> int:
        """The number of training rows of a role with so many nodes and pairs."""

    def arrange(
        self, examples: Sequence[Example], max_positions: int, seed: int
    ) -> Sequence[Example]:
        """The examples of the selected rows, with what the loss needs of other examples.

        max_positions: of the model; no example exceeds them.
        """

    def warnings(self, updates: int, last: Mapping[str, float]) -> list[str]:
        """Signs that a stage has not trained as it should.

        last: the metrics, as means over the last updates.
        """


def objectives(config: Config, role: str) -> list[Objective]:
    """The training stages of a role, in order: SFT, then DPO and KTO where they are asked for."""
    options = config.of_role(role)
    stages: list[Objective] = [Sft(options.sft)]
    if role in config.training.dpo_roles:
        stages.append(Dpo(options.dpo))
    if role in config.training.kto_roles:
        stages.append(Kto(options.kto))
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
    needs_reference_point: ClassVar[bool] = False
    completions: ClassVar[int] = 1
    dropout: ClassVar[bool] = True
    anchor: ClassVar[None] = None

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        return [TrainingRow((node,)) for node in rows.sft]

    def fitted(self, pair_doubt: float) -> Sft:
        return self

    def count_rows(self, correct: int, incorrect: int, pairs: int) -> int:
        return correct

    def arrange(
        self, examples: Sequence[Example], max_positions: int, seed: int
    ) -> Sequence[Example]:
        return examples

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

    def means(self, sums: Metrics, count: Float[Array, ""]) -> Metrics:
        return training_step.means(sums, count)


@dataclasses.dataclass(frozen=True)
class Dpo:
    """Weighted mean loss of preference pairs, from and against the role's SFT policy (section 4.3).

    Adds `nll_weight` times the negative log-probability per token of the chosen completion (arXiv
    2404.19733, eq. 1; TRL, as `rpo_alpha`, takes the mean over the tokens of the batch instead).
    Dropout does not act, as by default in TRL: policy and reference differ by training alone.

    With `sft_weight` an update also has `batch_size` correct completions of the role, paired or
    not, so that DPO keeps what questions teach on which all siblings agree (`Anchor`).
    """

    options: DpoConfig
    name: ClassVar[str] = "dpo"
    rows: ClassVar[str] = "preference pairs"
    missing: ClassVar[str] = (
        "no preference pair for the {role}: the completions of every prompt are all correct or all"
        " incorrect"
    )
    needs_reference: ClassVar[bool] = True
    needs_reference_point: ClassVar[bool] = False
    completions: ClassVar[int] = 2
    dropout: ClassVar[bool] = False

    @property
    def anchor(self) -> Anchor | None:
        return Anchor(self.options) if self.options.sft_weight > 0 else None

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        weighted = self.options.pair_weights == "value_gap"
        return [
            TrainingRow((pair.chosen, pair.rejected), pair.gap if weighted else 1.0)
            for pair in rows.pairs
        ]

    def fitted(self, pair_doubt: float) -> Dpo:
        if self.options.label_smoothing is not None:
            return self
        return Dpo(dataclasses.replace(self.options, label_smoothing=pair_doubt))

    def count_rows(self, correct: int, incorrect: int, pairs: int) -> int:
        return pairs

    def arrange(
        self, examples: Sequence[Example], max_positions: int, seed: int
    ) -> Sequence[Example]:
        return examples

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
                " likely (likelihood displacement); try dpo.nll_weight=1, dpo.sft_weight=1 or"
                " dpo.loss=dpop"
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

    def means(self, sums: Metrics, count: Float[Array, ""]) -> Metrics:
        return training_step.means(sums, count)


@dataclasses.dataclass(frozen=True)
class Anchor:
    """SFT's loss, times `dpo.sft_weight`, in the updates of DPO; without dropout, as these."""

    options: DpoConfig
    rows: ClassVar[str] = "SFT rows"
    needs_reference: ClassVar[bool] = False
    needs_reference_point: ClassVar[bool] = False
    completions: ClassVar[int] = 1
    dropout: ClassVar[bool] = False
    anchor: ClassVar[None] = None

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        return [TrainingRow((node,)) for node in rows.correct]

    def count(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum(completion_mask(batch).astype(jnp.float32))

    def sums(self, scores: TokenScores, batch: Batch) -> Metrics:
        loss = -jnp.sum(sum_logps(scores, batch))
        return {"loss": self.options.sft_weight * loss, "sft_loss": loss}

    def means(self, sums: Metrics, count: Float[Array, ""]) -> Metrics:
        return training_step.means(sums, count)


@dataclasses.dataclass(frozen=True)
class Kto:
    """Mean loss of single correct and incorrect completions, from and against the role's policy at
    the start of the stage (arXiv 2402.01306).

    The reference point is estimated in every update from its rows' prompts, each with a completion
    of another prompt (`mismatched`, `with_reference_point`). As in TRL the mismatched completions
    are fixed for the whole stage, and dropout does not act.
    """

    options: KtoConfig
    name: ClassVar[str] = "kto"
    rows: ClassVar[str] = "correct and incorrect completions"
    missing: ClassVar[str] = "no completion for the {role}"
    needs_reference: ClassVar[bool] = True
    needs_reference_point: ClassVar[bool] = True
    completions: ClassVar[int] = 2
    dropout: ClassVar[bool] = False
    anchor: ClassVar[None] = None

    def select(self, rows: RoleRows) -> Sequence[TrainingRow]:
        good, bad = self.options.desirable_weight, self.options.undesirable_weight
        desirable = [TrainingRow((node,), good) for node in rows.correct]
        return desirable + [TrainingRow((node,), -bad) for node in rows.incorrect]

    def fitted(self, pair_doubt: float) -> Kto:
        return self

    def count_rows(self, correct: int, incorrect: int, pairs: int) -> int:
        return correct + incorrect

    def arrange(
        self, examples: Sequence[Example], max_positions: int, seed: int
    ) -> Sequence[Example]:
        return mismatched(examples, max_positions, seed)

    def warnings(self, updates: int, last: Mapping[str, float]) -> list[str]:
        found = [_few(updates, self.options.epochs, "kto")] if updates < FEW_UPDATES else []
        margin, chosen = last["rewards/margins"], last["rewards/chosen"]
        if margin < SMALL_MARGIN:
            found.append(
                f"the reward margin is {margin:.3f} at the end: KTO has hardly changed the policy;"
                " raise kto.learning_rate or kto.epochs"
            )
        if chosen < -SMALL_MARGIN:
            found.append(
                f"rewards/chosen is {chosen:.3f} at the end: the correct completions became less"
                " likely; raise kto.desirable_weight or lower kto.learning_rate"
            )
        return found

    def count(self, batch: Batch) -> Float[Array, ""]:
        return jnp.sum((batch.weights != 0).astype(jnp.float32))

    def sums(self, scores: TokenScores, batch: Batch) -> Metrics:
        point = batch.reference_point
        if batch.reference_logps is None or point is None:
            raise ValueError("KTO needs the reference's log-probabilities and a reference point")
        logps, reference = sum_logps(scores, batch)[:, 0], batch.reference_logps[:, 0]
        beta, weights = self.options.beta, batch.weights
        rewards = losses.implicit_rewards(logps, reference, beta)

        def total(rows: Array, x: Array) -> Float[Array, ""]:
            return jnp.sum(jnp.where(rows, x, 0.0))

        return {
            "loss": jnp.sum(losses.kto_losses(logps, reference, point, weights, beta)),
            "kl": total(weights != 0, point),
            "desirable": jnp.sum((weights > 0).astype(jnp.float32)),
            "rewards/chosen": total(weights > 0, rewards),
            "rewards/rejected": total(weights < 0, rewards),
            "logps/chosen": total(weights > 0, logps),
            "logps/rejected": total(weights < 0, logps),
        }

    def means(self, sums: Metrics, count: Float[Array, ""]) -> Metrics:
        """Chosen and rejected ones are means over the correct and the incorrect completions."""
        desirable = sums["desirable"]
        sizes = {"chosen": desirable, "rejected": count - desirable}
        found = {
            name: value / sizes.get(name.rpartition("/")[2], count) for name, value in sums.items()
        }
        return found | {"rewards/margins": found["rewards/chosen"] - found["rewards/rejected"]}


STAGES = (Sft.name, Dpo.name, Kto.name)
"""Names of the training stages, in the order in which a role runs them."""


def mismatched(examples: Sequence[Example], max_positions: int, seed: int) -> list[Example]:
    """The examples of one completion each, with the completion of another prompt as the second.

    It is that of the next longer completion, in a random order among equal ones, so that the two
    need little padding; of the longest one it is the shortest. It is cut off where it would exceed
    the model's positions. Where all prompts are equal it is a sibling's.
    """
    rng = np.random.default_rng(seed)
    order = sorted(rng.permutation(len(examples)), key=lambda i: len(examples[i].completions[0]))
    found = list(examples)
    for place, index in enumerate(order):
        example = examples[index]
        later = (examples[order[(place + i) % len(order)]] for i in range(1, len(order)))
        others = (other for other in later if other.prompt != example.prompt)
        other = next(others, examples[order[(place + 1) % len(order)]]).completions[0]
        fitting = other[: max_positions - len(example.prompt)]
        pair = (example.completions[0], fitting)
        found[index] = dataclasses.replace(example, completions=pair)
    return found
