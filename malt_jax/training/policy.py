"""What training changes: a role's adapter over the frozen base, or all of the model's weights."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.model.levels import Level
from malt_jax.model.llama import (
    Llama,
    Params,
    forward,
    forward_levels,
    init_adapter,
    next_logits,
    variable_specs,
)
from malt_jax.sharding.rules import abstract, batch_shards
from malt_jax.training.batches import Batch
from malt_jax.training.losses import TokenScores, token_scores


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model and which of its weights a role owns.

    With "lora" a role's trainable tree is its adapter and all roles share the base; with "full" it
    is the whole parameter tree and the base is only where it starts. Trainable trees are float32,
    whatever the model computes in.
    """

    model: Llama
    method: Literal["lora", "full"]

    def __post_init__(self) -> None:
        if (self.method == "lora") != (self.model.lora is not None):
            raise ValueError("the model must have a LoRA configuration iff the method is 'lora'")

    def init(self, base: Params, key: Array) -> Params:
        """A role's untrained tree, which leaves the base's outputs as they are."""
        if self.method == "lora":
            return init_adapter(self.model, key)
        return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), base)

    @property
    def axes(self) -> Params:
        """The ArraySpecs of a trainable tree."""
        specs = variable_specs(self.model)["adapter" if self.method == "lora" else "params"]
        wide: Params = jax.tree.map(lambda x: dataclasses.replace(x, dtype=jnp.float32), specs)
        return wide

    def like(self) -> Params:
        """Shapes, types and shardings of a trainable tree, to restore one into."""
        like: Params = abstract(self.model.mesh, self.axes)
        return like

    def variables(self, base: Params, trainable: Params) -> dict[str, Params]:
        """The model's variables with a role's weights."""
        if self.method == "lora":
            return {"params": base, "adapter": trainable}
        return {"params": trainable}

    def score(
        self,
        base: Params,
        trainable: Params,
        batch: Batch,
        dropout_key: Array | None = None,
    ) -> TokenScores:
        """Scores of every completion token, [B, N, C]; dropout acts iff a key is given.

        Gradients reach the levels above through their keys and values.
        """
        variables = self.variables(base, trainable)

        def logits_of(hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
            return next_logits(self.model, variables, hidden)

        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        ancestors: list[Level] = []
        if batch.prefix.size:
            length = jnp.int32(batch.prefix.size)
            _, prefix = forward(self.model, variables, batch.prefix, length, dropout_key=keys[0])
            ancestors = [prefix]
        rows = [(batch.prompts, batch.prompt_lengths), (batch.inputs, batch.lengths)]
        (_, hidden), _ = forward_levels(self.model, variables, rows, ancestors, dropout_key=keys[1])
        return token_scores(
            logits_of,
            hidden,
            batch.targets,
            vocab_size=self.model.config.vocab_size,
            shards=batch_shards(self.model.mesh),
        )
