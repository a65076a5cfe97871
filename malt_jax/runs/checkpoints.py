"""Trees of arrays in a run (adapters, optimiser states), through Orbax."""

from __future__ import annotations

import logging
import os
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from upath import UPath

from malt_jax.errors import UserError
from malt_jax.files import in_bucket, location

Tree = TypeVar("Tree")

# Orbax tells about every save and restore.
logging.getLogger("absl").setLevel(logging.WARNING)


def save_tree(path: str | os.PathLike[str] | UPath, tree: Any) -> None:
    """Writes a tree of arrays to the directory `path`, which is replaced if it is there.

    Until `is_saved`, it is not whole. Meant for a place inside an unfinished
    stage (`malt_jax.runs.directory`), whose manifest then carries the checksums.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(_for_orbax(location(path)), tree, force=True)


def is_saved(path: UPath) -> bool:
    """Whether `save_tree` wrote a directory to its end."""
    return path.is_dir() and ocp.utils.is_checkpoint_finalized(_for_orbax(path))


def restore_tree(path: str | os.PathLike[str] | UPath, like: Tree) -> Tree:
    """Reads what `save_tree` wrote.

    `like` is a tree of arrays or `jax.ShapeDtypeStruct`s: structure, shapes, dtypes and, where it
    has them, shardings of the result.

    Raises UserError when the checkpoint is missing or damaged, and when its arrays are not those
    of `like`, naming each that differs.
    """
    path = _for_orbax(location(path))
    wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(path).item_metadata
            if stored is None:
                raise ValueError("it has no metadata")
            saved = _shapes(stored.tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no checkpoint, or a damaged one: {_line(error)}") from None
        _require_equal(path, saved, _shapes(wanted))
        try:
            return checkpointer.restore(path, wanted)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"the checkpoint {path} is damaged: {_line(error)}") from None


def _for_orbax(path: UPath) -> str:
    return str(path if in_bucket(path) else path.absolute())


def _shapes(tree: Any) -> dict[str, str]:
    """What each leaf is, by its path: ("a.w", "float32[2,3]")."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _shape(leaf)
        for path, leaf in leaves
    }


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _require_equal(path: str, saved: dict[str, str], wanted: dict[str, str]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in saved]
    problems += [f"{name} is not expected" for name in saved if name not in wanted]
    problems += [
        f"{name} is {saved[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in saved and saved[name] != shape
    ]
    if problems:
        shown = problems[:10] + [f"... {len(problems) - 10} more"] * (len(problems) > 10)
        raise UserError(
            f"the checkpoint {path} does not fit this model or configuration:\n  "
            + "\n  ".join(shown)
        )


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__
