"""The state of a training stage in the middle of it, from which the stage goes on later."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import jax

from malt_jax.distributed import preemption
from malt_jax.distributed.processes import Processes
from malt_jax.errors import Stopped
from malt_jax.runs.checkpoints import is_saved, restore_tree, save_tree
from malt_jax.runs.directory import Stage

State = TypeVar("State")


class TrainingState:
    """Directories `state-STEP` in an unfinished stage, of which the newest whole one counts.

    What is restored is what was saved, bit for bit, so that an interruption changes nothing.
    """

    def __init__(
        self,
        stage: Stage,
        processes: Processes,
        save_every: int,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self._stage = stage
        self._before_save = before_save
        self._processes = processes
        self._save_every = save_every
        steps = [
            int(found[1])
            for name in stage.names("state-*", is_saved)
            if (found := re.fullmatch(r"state-(\d{8})", name))
        ]
        self.step = max(steps, default=0)
        """Updates that were made before the interruption."""

    def restore(self, state: State) -> State:
        """The saved state, or `state` if there is none. Arrays are laid out as those of `state`.

        Raises UserError when what was saved is damaged or of another shape.
        """
        if self.step == 0:
            return state
        self._stage.has(self._name(self.step))
        saved = restore_tree(self._stage.path / self._name(self.step), _named(state))
        return jax.tree.unflatten(jax.tree.structure(state), [saved[n] for n in _named(state)])

    def is_due(self, step: int) -> bool:
        """Whether the state after so many updates is to be saved: the same in all processes."""
        self._stop = self._processes.any("stop", preemption.requested())
        return self._stop or step % self._save_every == 0

    def save(self, step: int, state: State) -> None:
        """Saves the state after so many updates.

        Raises Stopped, once it is saved, where the run was asked to stop.
        """
        self._before_save()
        save_tree(self._stage.path / self._name(step), _named(state))
        for name in self._stage.names("state-*"):
            if name != self._name(step):
                self._stage.remove(name)
        if self._stop:
            raise Stopped

    def clear(self) -> None:
        """Removes what was saved: the stage is at its end."""
        for name in self._stage.names("state-*"):
            self._stage.remove(name)

    @staticmethod
    def _name(step: int) -> str:
        return f"state-{step:08}"


def _named(state: object) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
