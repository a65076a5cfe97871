"""Trees of arrays in a run (adapters, training states), through Orbax."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from upath import UPath

from malt_jax.distributed.processes import broadcast
from malt_jax.errors import UserError, require_no_machine_problem
from malt_jax.files import in_bucket, location
from malt_jax.runs.stage import Stage
from malt_jax.sharding.finite import not_finite

Tree = TypeVar("Tree")

_LISTED = 10
"""Arrays that a message names before it says how many more there are."""

# Orbax tells about every save and restore. Its errors are raised, so the log does not need them.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def save_tree(path: str | UPath, tree: Any) -> None:
    """Writes a tree of arrays to the directory `path`, which is replaced if it is there.

    Raises UserError, in all processes, when values are NaN or infinite, and when what was written
    is not what can be read.
    """
    address = _address(path)
    if names := _not_finite(tree):
        raise UserError(
            f"{address} was not written: values of {names} are NaN or infinite, so the training has"
            " diverged; lower its learning rate"
        )
    with _without_late_tracebacks(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(address, tree, force=True)
    # Every process needs the arrays, but the metadata are process 0's.
    broadcast(lambda: _require_equal(address, _stored_shapes(address), _shapes(tree)))


@contextlib.contextmanager
def _without_late_tracebacks() -> Iterator[None]:
    """Prints no traceback for the writes that end after the first one has failed.

    TensorStore reports them to Orbax's event loop, which is closed then. That failure is raised.
    """
    previous = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            previous(found)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = previous  # not after an error: writes may still be on their way


def restore_tree(path: str | UPath, like: Tree) -> Tree:
    """Reads the tree that `save_tree` wrote.

    like: a tree of arrays or `jax.ShapeDtypeStruct`s with the structure, shapes, dtypes and, where
        it has them, shardings of the result.

    Raises UserError when the checkpoint is missing or damaged, when its arrays are not those of
    `like`, naming each that differs, and when values are NaN or infinite.
    """
    address = _address(path)
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    _require_equal(address, _stored_shapes(address), _shapes(wanted))
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            tree: Tree = checkpointer.restore(address, wanted)
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(address, error) from None
    if names := _not_finite(tree):
        raise UserError(
            f"the checkpoint {address} has values that are NaN or infinite, in {names}: delete the"
            " directory of its stage and train again, with a lower learning rate"
        )
    return tree


def restore_leaf(path: str | UPath, like: Any, leaf: Sequence[str]) -> jax.Array:
    """Reads one array of the tree that `save_tree` wrote, and no other.

    like: as for `restore_tree`, a tree of nested dicts.
    leaf: the keys of the array.

    Raises UserError as `restore_tree` does.
    """
    address = _address(path)
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    _require_equal(address, _stored_shapes(address), _shapes(wanted))
    one = jax.tree_util.tree_map_with_path(
        lambda keys, x: x if [key.key for key in keys] == [*leaf] else ocp.PLACEHOLDER, wanted
    )
    arguments = ocp.args.PyTreeRestore(
        item=one, restore_args=ocp.checkpoint_utils.construct_restore_args(one)
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            found = checkpointer.restore(address, args=arguments)
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(address, error) from None
    for key in leaf:
        found = found[key]
    return found


class StateStore:
    """Saved states of an unfinished training stage: directories `state-STEP`.

    A restored state has the bits that were saved, so an interruption changes nothing.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.latest_step = 0
        """Updates after which the latest undamaged state was saved; 0 where there is none."""
        for name in sorted(self._names(), reverse=True):
            if stage.has(name):
                self.latest_step = int(name.removeprefix("state-"))
                break

    def restore(self, like: Tree) -> Tree:
        """The latest saved state, with the structure and shardings of `like`; `like` itself where
        there is none.

        Raises UserError when the saved state has another shape.
        """
        if self.latest_step == 0:
            return like
        saved = restore_tree(self._stage.path / _name(self.latest_step), _leaves(like))
        return jax.tree.unflatten(jax.tree.structure(like), [saved[n] for n in _leaves(like)])

    def save(self, step: int, state: Any) -> None:
        """Saves the state after so many updates, and removes those before it."""
        self._stage.require_held()
        save_tree(self._stage.path / _name(step), _leaves(state))
        self._stage.record(_name(step))
        for name in self._names() - {_name(step)}:
            self._stage.remove(name)
        self.latest_step = step

    def clear(self) -> None:
        """Removes all saved states: the stage is at its end."""
        for name in self._names():
            self._stage.remove(name)
        self.latest_step = 0

    def _names(self) -> set[str]:
        files = self._stage.names("state-*")
        return {found[0] for file in files if (found := re.match(r"state-\d{8}(?=/)", file))}


def _name(step: int) -> str:
    return f"state-{step:08}"


def _address(path: str | UPath) -> str:
    path = location(path)
    return str(path if in_bucket(path) else path.absolute())


def _stored_shapes(address: str) -> dict[str, str]:
    """Raises UserError when there is no checkpoint, or a damaged one."""
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(address).item_metadata
            if stored is None:
                raise ValueError("it has no metadata")
            return _shapes(stored.tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            require_no_machine_problem(error)
            problem = _line(error)
    raise UserError(f"{address} is no checkpoint, or a damaged one: {problem}")


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, such as "a.w"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _shapes(tree: Any) -> dict[str, str]:
    """Dtypes and shapes of the leaves, such as "float32[2,3]", by their paths."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in _leaves(tree).items()
    }


def _not_finite(tree: Any) -> str:
    """The arrays with values that are NaN or infinite, for a message; "" where there are none."""
    names = [name for name, found in _leaves(not_finite(tree)).items() if found]
    more = [f"{len(names) - _LISTED} more"] * (len(names) > _LISTED)
    return ", ".join(names[:_LISTED] + more)


def _require_equal(address: str, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in saved]
    problems += [f"{name} is not expected" for name in saved if name not in wanted]
    problems += [
        f"{name} is {saved[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in saved and saved[name] != shape
    ]
    if problems:
        more = len(problems) - _LISTED
        shown = problems[:_LISTED] + [f"... {more} more"] * (more > 0)
        raise UserError(
            f"the checkpoint {address} does not fit this model or configuration:\n  "
            + "\n  ".join(shown)
        )


def _damaged(address: str, error: Exception) -> UserError:
    """The error of a damaged checkpoint; raises one of the machine, such as too many open files."""
    require_no_machine_problem(error)
    return UserError(f"the checkpoint {address} is damaged: {_line(error)}")


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__
