"""Copies of weights that lie otherwise, for as long as somebody uses them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax


class SharedCopy:
    """Another layout of a tree of arrays, made once for all who use it at the same time.

    Only they keep it in memory: it is gone when the last of them lets go, as at a stage's end.
    """

    def __init__(self) -> None:
        self._source: list[weakref.ref[Any]] = []
        self._copy: list[weakref.ref[Any]] = []

    def of(self, tree: Any, make: Callable[[], Any]) -> Any:
        """The copy of `tree` that is in use, or one that `make` makes."""
        leaves, structure = jax.tree.flatten(tree)
        source = [ref() for ref in self._source]
        copy = [ref() for ref in self._copy]
        is_source = list(map(id, source)) == list(map(id, leaves))
        if is_source and all(leaf is not None for leaf in copy):
            return jax.tree.unflatten(structure, copy)
        made = make()
        self._source = list(map(weakref.ref, leaves))
        self._copy = list(map(weakref.ref, jax.tree.leaves(made)))
        return made
