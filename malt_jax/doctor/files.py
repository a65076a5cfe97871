"""Checks of a run's files against their manifests, and what can be kept of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from upath import UPath

from malt_jax.config import load_config
from malt_jax.doctor.check import Finding, amount, check
from malt_jax.errors import UserError
from malt_jax.files import files_below, in_bucket, parse_json_object, reached
from malt_jax.malt.round import stage_names
from malt_jax.runs.directory import CONFIG_FILE, RESULTS_FILE
from malt_jax.runs.lock import holder
from malt_jax.runs.metrics import METRICS_FILE, damaged_lines
from malt_jax.runs.stage import MANIFEST, UNFINISHED, Manifest

_SHOWN = 10
"""Damaged files that are listed."""


def run_files(path: UPath) -> list[Finding]:
    """The findings about the files of a run, one a stage. Nothing is changed."""
    whole = check("run", lambda: _run(path))
    if not whole.ok:
        return [whole]
    findings = [whole, check(CONFIG_FILE, lambda: _config(path))]
    files = files_below(path)
    for folder in _folders(path, files):
        findings.append(check(folder, functools.partial(_stage, path, folder, files)))
    if METRICS_FILE in files:
        findings.append(check(METRICS_FILE, lambda: _metrics(path)))
    if RESULTS_FILE in files:
        findings.append(check(RESULTS_FILE, lambda: _results(path)))
    return findings


def _run(path: UPath) -> str:
    with reached(path):
        if not path.exists():
            raise UserError(f"{path} is not there")
        if not (path / CONFIG_FILE).exists():
            raise UserError(f"{path} is no run: it has no {CONFIG_FILE}")
        name, holds = holder(path)
        if holds:
            return f"{path} is open in {name}: what it writes now may look unfinished"
        return f"{path}, which no process has open"


def _config(path: UPath) -> str:
    load_config(path / CONFIG_FILE)
    return "every option is valid"


def _folders(path: UPath, files: Sequence[str]) -> list[str]:
    """The directories that have a manifest, in the order of the run's stages, others after them."""
    names = {
        folder
        for folder, _, name in (file.rpartition("/") for file in files)
        if folder and name in (MANIFEST, UNFINISHED)
    }
    try:
        order = stage_names(load_config(path / CONFIG_FILE))
    except UserError:
        order = []
    ranks = {name: rank for rank, name in enumerate(order)}
    return sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name))


def _stage(path: UPath, folder: str, files: Sequence[str]) -> str:
    """Verifies one directory.

    Raises UserError, which says what to do, for damage.
    """
    directory = path / folder
    finished = f"{folder}/{MANIFEST}" in files
    file = directory / (MANIFEST if finished else UNFINISHED)
    try:
        manifest = Manifest.read(file)
    except (OSError, UserError, ValueError) as error:
        remedy = _delete(directory) if finished else "leave it: the stage is made again"
        raise UserError(f"its list of files is damaged: {error}\n{remedy}") from None
    problems = {
        name: problem for name in manifest.files if (problem := manifest.problem(directory, name))
    }
    size = sum(entry["bytes"] for entry in manifest.files.values())
    number = len(manifest.files)
    count = f"{number} file{'s' * (number != 1)}, {amount(size)}"
    if problems:
        listed = [f"{name}: {problem}" for name, problem in list(problems.items())[:_SHOWN]]
        more = [f"... and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        kept = len(manifest.files) - len(problems)
        title = f"{len(problems)} of {len(manifest.files)} files are damaged"
        raise UserError("\n".join([title, *listed, *more, _remedy(directory, finished, kept)]))
    if finished:
        return f"complete and undamaged ({count}): keep it"
    if folder.startswith("round-"):
        return f"unfinished, what is recorded is undamaged ({count}): keep it, the run continues it"
    return f"undamaged ({count}): keep it"


def _remedy(directory: UPath, finished: bool, kept: int) -> str:
    """What to do about damaged files."""
    if not finished:
        return f"leave it: these files are made again, the other {kept} are kept"
    if directory.name.endswith("trees") and kept and not in_bucket(directory):
        # The stage is then unfinished: batches that are recorded and undamaged are read.
        return (
            f"keep the other {kept} files: mv '{directory / MANIFEST}' '{directory / UNFINISHED}'\n"
            "and start the run again, which samples the damaged batches again"
        )
    return _delete(directory)


def _delete(directory: UPath) -> str:
    return f"delete {directory} and start the run again, which makes it again"


def _metrics(path: UPath) -> str:
    damaged, lines = damaged_lines(path)
    # The last line of a run at work, or of one that was killed, may be cut off.
    if damaged > 1:
        raise UserError(
            f"{damaged} of {lines} lines are damaged: leave them, they are skipped; curves and"
            " results.json lack these updates"
        )
    return f"{lines} lines" + ", of which the damaged one is skipped" * damaged


def _results(path: UPath) -> str:
    file = path / RESULTS_FILE
    try:
        systems = parse_json_object(file.read_bytes(), str(file)).get("systems")
        if not isinstance(systems, dict):
            raise UserError(f"{file}: it has no systems")
    except (OSError, UserError) as error:
        raise UserError(
            f"{error}\ndelete {file} and start the run again, which writes it again"
        ) from None
    return f"{len(systems)} systems"
