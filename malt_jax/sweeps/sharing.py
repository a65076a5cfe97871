"""Work that settings of a sweep have in common: SFT stages, and samples of equal policies."""

from __future__ import annotations

import hashlib
import json
import math
import re

from malt_jax.config import Config, diff
from malt_jax.distributed.processes import broadcast, is_coordinator
from malt_jax.evaluation.store import Shared, Store
from malt_jax.evaluation.systems import BASE, DEBATER, SILENT, STAR
from malt_jax.files import names_in
from malt_jax.malt.objectives import Sft
from malt_jax.malt.round import phases, stage_names
from malt_jax.runs.copying import copy_stage
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from malt_jax.runs.metrics import Metrics, read_metrics
from malt_jax.runs.stage import MANIFEST, Manifest

UNTRAINED = frozenset((BASE, DEBATER, SILENT))
"""Policies whose completions do not depend on a setting."""

_AFTER_SFT = re.compile(
    r"(roles[.]\w+[.])?(dpo|kto)[.]|training[.]((dpo|kto)_roles|on_policy_pairs):|evaluation[.]"
)
"""Lines of `diff` with options that SFT of round 0 does not depend on."""


def share_sft(run: RunDirectory, directory: RunDirectory) -> None:
    """Copies the SFT stages of round 0 from other settings, where only options of later stages
    differ, and trees that equal SFT policies have sampled.

    directory: of the sweep, whose settings all have the same trees.
    """
    names = [name for name in _sft_stages(run.config) if name.startswith("round-0/")]
    for other in _settings(directory):
        if not all(_AFTER_SFT.match(line) for line in diff(other.config, run.config)):
            continue
        for name in names:
            if not run.is_done(name) and other.is_done(name):
                _copy_metrics(other, run, name)
                copy_stage(other, run, name)
        for phase in phases(run.config, 0)[1:]:
            if not run.is_done(phase.trees) and _samples_alike(run, other, phase.trees):
                copy_stage(other, run, phase.trees)


def shared_store(directory: RunDirectory, folder: str, run: RunDirectory) -> Shared:
    """The store, in a sweep's directory, of chains that a run shares with other settings.

    Samples of untrained roles are shared by all settings; those of SFT policies by the settings
    whose SFT weights have the same bits.
    """
    untrained = Shared(Store(directory, f"{folder}/untrained"), UNTRAINED)
    weights = broadcast(lambda: _sft_weights(run))
    store = Store(directory, f"{folder}/sft-{weights}", untrained)
    return Shared(store, UNTRAINED | {STAR})


def _samples_alike(run: RunDirectory, other: RunDirectory, trees: str) -> bool:
    """Whether another setting has sampled trees with SFT policies that have the same bits."""
    return other.is_done(trees) and broadcast(lambda: _sft_weights(run) == _sft_weights(other))


def _settings(directory: RunDirectory) -> list[RunDirectory]:
    """The runs below a sweep's directory."""
    root = directory.path
    names = broadcast(
        lambda: [name for name in names_in(root, "[!.]*") if (root / name / CONFIG_FILE).exists()]
    )
    return [RunDirectory.read(root / name) for name in names]


def _copy_metrics(other: RunDirectory, run: RunDirectory, name: str) -> None:
    with Metrics(run.path, writes=is_coordinator()) as metrics:
        metrics.restart(name)
        for record in read_metrics(other.path).get(name, []):
            values = {key: math.nan if value is None else value for key, value in record.items()}
            del values["stage"], values["step"]
            metrics.log(name, record["step"], values)


def _sft_weights(run: RunDirectory) -> str:
    """A hash of the files with the SFT weights of all rounds and roles."""
    files = {}
    for name in _sft_stages(run.config):
        manifest = run.path / name / MANIFEST
        if manifest.exists():
            recorded = Manifest.read(manifest).files.items()
            files[name] = sorted((f, e["sha256"]) for f, e in recorded if f.startswith("weights/"))
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def _sft_stages(config: Config) -> list[str]:
    return [name for name in stage_names(config) if name.endswith(f"/{Sft.name}")]
