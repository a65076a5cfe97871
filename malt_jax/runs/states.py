"""Saved states of an unfinished training stage, from which it goes on after an interruption."""

from __future__ import annotations

import re
from typing import TypeVar

import jax

from malt_jax.runs.checkpoints import is_saved, restore_tree, save_tree
from malt_jax.runs.directory import Stage

State = TypeVar("State")


class StateStore:
    """Directories `state-STEP` in an unfinished stage, of which the newest whole one counts.

    What is restored is what was saved, bit for bit, so that an interruption changes nothing.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        steps = [
            int(found[1])
            for name in stage.names("state-*", is_saved)
            if (found := re.fullmatch(r"state-(\d{8})", name))
        ]
        self.latest_step = max(steps, default=0)
        """Updates after which the latest state was saved; 0 where there is none."""

    def restore(self, like: State) -> State:
        """The latest saved state, with the structure and shardings of `like`; `like` itself where
        there is none.

        Raises UserError when what was saved is damaged or of another shape.
        """
        if self.latest_step == 0:
            return like
        name = _name(self.latest_step)
        self._stage.has(name)
        saved = restore_tree(self._stage.path / name, _named(like))
        return jax.tree.unflatten(jax.tree.structure(like), [saved[n] for n in _named(like)])

    def save(self, step: int, state: State) -> None:
        """Saves the state after so many updates, and removes those before it."""
        save_tree(self._stage.path / _name(step), _named(state))
        for name in self._stage.names("state-*"):
            if name != _name(step):
                self._stage.remove(name)
        self.latest_step = step

    def clear(self) -> None:
        """Removes all saved states: the stage is at its end."""
        for name in self._stage.names("state-*"):
            self._stage.remove(name)
        self.latest_step = 0


def _name(step: int) -> str:
    return f"state-{step:08}"


def _named(state: object) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
