"""Copies of finished stages of other runs."""

from __future__ import annotations

import hashlib
import json

from malt_jax.distributed.processes import broadcast
from malt_jax.errors import UserError
from malt_jax.files import parse_json_object
from malt_jax.runs.directory import RunDirectory
from malt_jax.runs.stage import MANIFEST, Manifest, Stage

SOURCE = "source.json"
"""In a copied stage: the run that made it, the seconds that took, and its files."""


def copy_stage(source: RunDirectory, directory: RunDirectory, name: str) -> None:
    """Copies a finished stage, whose files are verified, and records where it is from.

    Raises UserError when the stage is not finished there, or damaged.
    """
    source.finished(name)
    with directory.stage(name) as stage:
        for old in stage.names("*"):
            stage.remove(old)
        broadcast(lambda: _copy(source, stage, name))


def stage_source(directory: RunDirectory, name: str) -> str | None:
    """The run that a stage, finished or not, is copied from; None where it is not."""
    return broadcast(lambda: _recorded(directory, name))


def _copy(source: RunDirectory, stage: Stage, name: str) -> None:
    folder = source.path / name
    manifest = Manifest.read(folder / MANIFEST)
    record = {"run": str(source.path.absolute()), "seconds": manifest.seconds}
    # First, so that an interrupted copy is continued as a copy.
    stage.write(SOURCE, json.dumps(record | {"files": manifest.files}, indent=1) + "\n")
    for file, entry in manifest.files.items():
        if file == SOURCE:
            continue
        content = (folder / file).read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise UserError(f"{folder / file} was changed while it was copied: start again")
        stage.write(file, content)


def _recorded(directory: RunDirectory, name: str) -> str | None:
    file = directory.path / name / SOURCE
    if not file.exists():
        return None
    run = parse_json_object(file.read_bytes(), str(file)).get("run")
    if not isinstance(run, str):
        raise UserError(f"{file} is damaged: it names no run; delete {file.parent}")
    return run
