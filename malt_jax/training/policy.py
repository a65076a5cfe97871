"""Policies: a model and the weights of it that a role owns and training changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
from malt_jax.model.lora import join_adapters, merge_adapter, scaled_adapter
from malt_jax.sharding.rules import abstract, batch_shards, device_put
from malt_jax.training.batches import Batch
from malt_jax.training.losses import TokenScores, token_scores


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model and which of its weights a role owns.

    With "lora" the trainable tree of a role is its adapter, and all roles share the base. With
    "full" it is the whole parameter tree, which starts as a copy of the base. Trainable trees are
    float32 in every compute dtype.
    """

    model: Llama
    method: Literal["lora", "full"]

    def __post_init__(self) -> None:
        if (self.method == "lora") != (self.model.lora is not None):
            raise ValueError("the model must have a LoRA configuration iff the method is 'lora'")

    def init(self, base: Params, key: Array) -> Params:
        """A role's untrained weights, which do not change the base's outputs."""
        if self.method == "lora":
            return init_adapter(self.model, key)
        return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), base)

    @property
    def spec(self) -> Params:
        """The ArraySpecs of a trainable tree."""
        specs = variable_specs(self.model)["adapter" if self.method == "lora" else "params"]
        wide: Params = jax.tree.map(lambda x: dataclasses.replace(x, dtype=jnp.float32), specs)
        return wide

    def like(self) -> Params:
        """Shapes, types and shardings of a trainable tree, to restore one into."""
        like: Params = abstract(self.model.mesh, self.spec)
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
        first_row: Int[Array, ""] | None = None,
    ) -> TokenScores:
        """Scores of every completion token, [B, n, T]; dropout acts iff a key is given.

        first_row: place of a micro-batch's first row in its batch: with the key of the batch its
            rows have the dropout masks that they have there.

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
        (_, hidden), _ = forward_levels(
            self.model, variables, rows, ancestors, dropout_key=keys[1], first_row=first_row
        )
        return token_scores(
            logits_of,
            hidden,
            batch.targets,
            vocab_size=self.model.config.vocab_size,
            shards=batch_shards(self.model.mesh),
        )


class SamplingWeights:
    """Every role's variables as the sampler takes them, on the sampler's mesh.

        with SamplingWeights(sampler.model, policy, base) as weights:
            variables = weights.of(adapter)

    The base weights are resharded for sampling at most once, and freed when the block ends.
    """

    def __init__(self, model: Llama, policy: Policy, base: Params) -> None:
        self._model, self._policy, self._base = model, policy, base
        self._resharded: Params | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resharded = None

    def of(self, trainable: Params | None) -> Params:
        """The variables of a role with these trained weights; None: the untrained base model.

        An adapter counts `lora.adapter_weight` times. So does no update of the training, which goes
        on from the adapter as it is. We take this for the undocumented "adapter weight" of arXiv
        2412.01928, for which it names the value 0.2.
        """
        model, policy = self._model, self._policy
        if trainable is not None and policy.model.lora is not None:
            trainable = scaled_adapter(trainable, policy.model.lora.adapter_weight)
        specs = variable_specs(model)
        if model.lora is not None:
            adapter = policy.init(self._base, jax.random.key(0)) if trainable is None else trainable
            adapter = device_put(model.mesh, adapter, specs["adapter"])
            return {"params": self._untrained(specs["params"]), "adapter": adapter}
        if trainable is None:
            return {"params": self._untrained(specs["params"])}
        if policy.model.lora is None:
            params = jax.tree.map(lambda x: x.astype(model.dtype), trainable)
        else:
            trainable = device_put(policy.model.mesh, trainable, policy.spec)
            params = merge_adapter(self._base, trainable, policy.model.lora)
        return {"params": device_put(model.mesh, params, specs["params"])}

    def joined(self, trainables: Sequence[Params]) -> tuple[Llama, Params]:
        """A model with several roles' adapters at once, and its variables; see `join_adapters`.

        Raises ValueError when the roles have no adapters.
        """
        lora = self._policy.model.lora
        if lora is None:
            raise ValueError("the roles have no adapters")
        weighted = [scaled_adapter(each, lora.adapter_weight) for each in trainables]
        adapter, joined = join_adapters(weighted, lora)
        model = dataclasses.replace(self._model, lora=joined)
        specs = variable_specs(model)
        adapter = device_put(model.mesh, adapter, specs["adapter"])
        return model, {"params": self._untrained(specs["params"]), "adapter": adapter}

    def _untrained(self, specs: Params) -> Params:
        if self._resharded is None:
            self._resharded = device_put(self._model.mesh, self._base, specs)
        return self._resharded
