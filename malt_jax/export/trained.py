"""The trained weights of a run's roles on the host, one role at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from malt_jax.checkpoints.weights import leaves
from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.malt.objectives import objectives
from malt_jax.malt.round import stage_names, training_stage
from malt_jax.model.config import Llama, LlamaConfig
from malt_jax.model.llama import Params
from malt_jax.runs.checkpoints import restore_leaf, restore_tree
from malt_jax.runs.directory import RESULTS_FILE, RunDirectory
from malt_jax.training.policy import Policy


@dataclasses.dataclass(frozen=True)
class TrainedRoles:
    """The last finished training stage of every role.

    shape: of the base model.
    """

    directory: RunDirectory
    shape: LlamaConfig

    @cached_property
    def stages(self) -> dict[str, str | None]:
        """The stage, such as "round-0/verifier/dpo", by role; None: the role is untrained.

        Raises UserError when no role is trained, and when the run has not finished its training.
        """
        config, results = self.directory.config, self.directory.path / RESULTS_FILE
        names = {role: _stage_names(config, role) for role in config.pipeline.names}
        done = {
            role: [name for name in of_role if self.directory.is_done(name)]
            for role, of_role in names.items()
        }
        if not any(done.values()):
            raise UserError(f"{self.directory.path} has no trained role: {self._there_is()}")
        # A role without training rows has no stage, which only the end of the run tells.
        if done != names and not results.exists():
            missing = next(name for role in names for name in names[role] if name not in done[role])
            raise UserError(
                f"{self.directory.path} has not finished its training: {missing} is missing;"
                f" {self._there_is()}. Finish it first: malt train --run-dir"
                f" {self.directory.path} with the options that it was begun with"
            )
        return {role: of_role[-1] if of_role else None for role, of_role in done.items()}

    def adapter(self, role: str) -> Params:
        """A role's adapter, float32. Raises UserError when its checkpoint is damaged."""
        return restore_tree(self._weights(role), self._like)

    def tensors(self, role: str, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
        """After full fine-tuning: the tensors of a role's weights under Hugging Face's names.

        Holds one array of the parameter tree, which is stacked over layers.
        """
        for leaf in leaves(self.shape):
            array = np.asarray(restore_leaf(self._weights(role), self._like, leaf.path))
            for layer, name in enumerate(leaf.names):
                yield name, (array[layer] if leaf.stacked else array).astype(dtype)

    def _weights(self, role: str) -> str:
        stage = self.stages[role]
        if stage is None:
            raise ValueError(f"{role} is untrained")
        return str(self.directory.finished(stage) / "weights")

    @cached_property
    def _like(self) -> Params:
        """Shapes and types of a role's weights in the host's memory."""
        config = self.directory.config
        lora = config.lora if config.training.method == "lora" else None
        spec = Policy(Llama(self.shape, lora=lora), config.training.method).spec
        host = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        like: Params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), spec
        )
        return like

    def _there_is(self) -> str:
        found = list(filter(self.directory.is_done, stage_names(self.directory.config)))
        return f"it has {', '.join(found)}" if found else "no stage has finished"


def _stage_names(config: Config, role: str) -> list[str]:
    """The training stages of a role in the order in which they run."""
    return [
        training_stage(number, role, objective)
        for number in range(config.rounds)
        for objective in objectives(config, role)
    ]
