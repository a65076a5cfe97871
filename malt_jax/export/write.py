"""Exports a run: a directory with each role's weights, pipeline.json and a model card."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import PRESETS, StoredCheckpoint, write_checkpoint
from malt_jax.checkpoints.fingerprint import weights_sha256
from malt_jax.checkpoints.gguf_writer import require_gguf, write_gguf, write_lora_gguf
from malt_jax.checkpoints.peft import low_rank, merged, save_adapter
from malt_jax.config import to_yaml
from malt_jax.errors import UserError
from malt_jax.export.card import model_card
from malt_jax.export.pipeline import (
    PIPELINE_FILE,
    VERSION,
    Base,
    ExportedRole,
    PipelineFile,
    PromptIds,
    Sampling,
    Score,
    StoredFile,
    to_json,
)
from malt_jax.export.trained import TrainedRoles
from malt_jax.files import new_directory, parse_json_object
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import Role, load_roles
from malt_jax.runs.directory import RESULTS_FILE, RunDirectory, versions

logger = logging.getLogger(__name__)

RUN_FILE = "run.yaml"
"""The run's configuration."""
CARD = "README.md"
MERGED = "merged"
BASE = "base"
GGUF = "gguf"
"""Directories of merged checkpoints, of the base model and of GGUF files."""

_MAX_SHARD_BYTES = 1_000_000_000

Tensors = Iterator[tuple[str, np.ndarray]]
"""Under Hugging Face's names."""


@dataclass(frozen=True)
class Options:
    """The parts of an export.

    merged:  also a checkpoint a role with its adapter merged.
    base:    also the base model as a checkpoint.
    gguf:    also GGUF files: the base model and an adapter a role; with `merged` a model a role.
    dtype:   of checkpoints; "auto": the dtype that the run computes in on this machine.
    hub_id:  the base model's name on the Hugging Face hub.
    replace: an earlier export at the same place.
    """

    merged: bool = False
    base: bool = False
    gguf: bool = False
    dtype: str = "auto"
    hub_id: str | None = None
    replace: bool = False


def export(run: RunDirectory, out: Path, options: Options) -> PipelineFile:
    """Writes the export of a run to the directory `out`, which appears whole or not at all.

    Holds in memory one role's adapter and one shard of a checkpoint; after full fine-tuning also
    one array of the parameter tree.

    Raises UserError when the run has no trained roles, when `out` exists and may not be replaced,
    for a base model or prompts that cannot be read, and for a model or a tokenizer that GGUF files
    cannot hold.
    """
    out = out.expanduser().resolve()
    _require_free(out, options.replace)
    if run.config.model.name in PRESETS:
        raise UserError(
            f"{run.config.model.name}: the run's base model has RANDOM weights of a published"
            " shape, which exist nowhere else; there is nothing to export"
        )
    source = _Source(run, options)
    trained = [role for role, stage in source.trained.stages.items() if stage is not None]
    roles = load_roles(run.config.pipeline.roles, tasks.create(run.config.task).prompts)
    source.stored.require_fit()
    if options.gguf:
        require_gguf(source.stored.config, source.stored.tokenizer)
    with new_directory(out) as directory:
        folders = _write_weights(source, directory, trained)
        if options.gguf:
            folders |= _write_gguf(source, directory, trained)
        results = _results(run)
        pipeline = _pipeline(source, directory, roles, results)
        folders |= {RUN_FILE: "the options of the run", PIPELINE_FILE: "roles, prompts, checksums"}
        card = model_card(pipeline, run.config, results, options.hub_id, folders)
        (directory / RUN_FILE).write_text(to_yaml(run.config), encoding="utf-8")
        (directory / CARD).write_text(card, encoding="utf-8")
        # Last, so that a directory without it is not taken for an export.
        (directory / PIPELINE_FILE).write_text(to_json(pipeline), encoding="utf-8")
    return pipeline


def _require_free(out: Path, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not replace:
        raise UserError(f"{out} exists already: name another --out, or replace it with --force")
    # A directory of another kind is not ours to delete.
    if not (out / PIPELINE_FILE).is_file():
        raise UserError(f"{out} has no {PIPELINE_FILE}, so it is no export and is not replaced")


@dataclass(frozen=True)
class _Source:
    """The parts of a run that are exported."""

    run: RunDirectory
    options: Options

    @cached_property
    def stored(self) -> StoredCheckpoint:
        return StoredCheckpoint.of(self.run.config.model)

    @cached_property
    def trained(self) -> TrainedRoles:
        return TrainedRoles(self.run, self.stored.config)

    @property
    def is_lora(self) -> bool:
        return self.run.config.training.method == "lora"

    @property
    def hub_name(self) -> str:
        """The base model's name on a hub, or its name or path here."""
        return self.options.hub_id or self.run.config.model.name

    @property
    def dtype(self) -> np.dtype:
        """The dtype of checkpoints."""
        computed = self.run.config.model.resolve_dtype(jax.default_backend())
        return jnp.dtype(computed if self.options.dtype == "auto" else self.options.dtype)

    def tensors(self, role: str | None, dtype: np.dtype) -> Tensors:
        """The tensors of a role, its adapter merged; None: the base model's."""
        if role is not None and not self.is_lora:
            return self.trained.tensors(role, dtype)
        config, adapter = self.stored.config, {}
        if role is not None:
            adapter = low_rank(self.trained.adapter(role), config)
        lora = self.run.config.lora
        scale = lora.sampled_alpha / lora.rank
        return merged(self.stored.tensors(), config, adapter, scale, dtype)


def _write_weights(source: _Source, directory: Path, trained: Sequence[str]) -> dict[str, str]:
    """Writes all weights; returns what was written, by path below the directory."""
    options, written = source.options, {}
    checkpoints: dict[str, str | None] = {}
    for role in trained:
        if source.is_lora:
            written[f"{role}/"] = f"the {role}'s adapter, as peft writes it"
            _log(directory / role, source.trained.stages[role])
            config, lora = source.stored.config, source.run.config.lora
            adapter = source.trained.adapter(role)
            save_adapter(directory / role, adapter, config, lora, source.hub_name)
        else:
            checkpoints[role] = role
        if source.is_lora and options.merged:
            checkpoints[f"{MERGED}/{role}"] = role
    if options.base:
        checkpoints[BASE] = None
    for path, of_role in checkpoints.items():
        _log(directory / path, f"a checkpoint in {source.dtype.name}")
        (directory / path).mkdir(parents=True)
        write_checkpoint(
            directory / path,
            source.stored.config,
            source.stored.tokenizer,
            source.tensors(of_role, source.dtype),
            source.dtype.name,
            _MAX_SHARD_BYTES,
        )
        owner = "the base model" if of_role is None else f"the {of_role}'s model"
        written[f"{path}/"] = f"{owner} in {source.dtype.name}, as transformers writes it"
    return written


def _write_gguf(source: _Source, directory: Path, trained: Sequence[str]) -> dict[str, str]:
    """Writes GGUF files; returns what was written, by path below the directory."""
    config, tokenizer, lora = source.stored.config, source.stored.tokenizer, source.run.config.lora
    written, models = {}, dict[str, str | None]()
    if source.is_lora or source.options.base:
        models[BASE] = None
    if not source.is_lora or source.options.merged:
        models |= {role: role for role in trained}
    (directory / GGUF).mkdir()
    for name, role in models.items():
        file = directory / GGUF / f"{name}.gguf"
        _log(file, f"a model in {source.dtype.name}")
        title = f"{Path(source.hub_name).name} {role or ''}".strip()
        # The writer rounds matrices and keeps vectors as they are.
        tensors = source.tensors(role, np.dtype(np.float32))
        write_gguf(file, title, config, tokenizer, tensors, source.dtype.name)
        owner = "the base model" if role is None else f"the {role}'s model"
        written[f"{GGUF}/{file.name}"] = f"{owner} in {source.dtype.name}, for llama.cpp"
    for role in trained if source.is_lora else ():
        file = directory / GGUF / f"{role}-lora.gguf"
        _log(file, source.trained.stages[role])
        write_lora_gguf(file, role, config, low_rank(source.trained.adapter(role), config), lora)
        written[f"{GGUF}/{file.name}"] = f"the {role}'s adapter, for llama.cpp"
    return written


def _log(path: Path, content: str | None) -> None:
    logger.info("writing %s: %s", path.name, content)


def _results(run: RunDirectory) -> Mapping[str, Any] | None:
    """The content of results.json; None while the run has none."""
    file = run.path / RESULTS_FILE
    return parse_json_object(file.read_bytes(), str(file)) if file.exists() else None


def _pipeline(
    source: _Source, directory: Path, roles: Sequence[Role], results: Mapping[str, Any] | None
) -> PipelineFile:
    config, stored = source.run.config, source.stored
    tokenizer, sampling = stored.tokenizer, config.sampling
    exported = [
        ExportedRole(
            prompt.role.name,
            prompt.role.name if source.trained.stages[prompt.role.name] is not None else None,
            prompt.role.system,
            prompt.role.examples,
            prompt.role.user,
            PromptIds(prompt.root, prompt.ids_after),
        )
        for prompt in Pipeline.of(roles, tokenizer).prompts
    ]
    base = Base(
        source.hub_name, weights_sha256(stored.tensors(), stored.config), tokenizer.fingerprint
    )
    return PipelineFile(
        format="malt_jax pipeline",
        version=VERSION,
        task=config.task.name,
        seed=config.seed,
        method=config.training.method,
        base=base,
        sampling=Sampling(
            sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens
        ),
        stop_ids=tokenizer.stop_ids,
        stop_tokens=tuple(map(tokenizer.token, tokenizer.stop_ids)),
        chat_template_kwargs=(
            {"enable_thinking": tokenizer.thinking}
            if "enable_thinking" in (tokenizer.chat_template or "")
            else {}
        ),
        roles=tuple(exported),
        scores=_scores(results),
        files=_stored_files(directory, [role.directory for role in exported if role.directory]),
        versions=versions(),
    )


def _scores(results: Mapping[str, Any] | None) -> dict[str, Score]:
    systems = {} if results is None else results["systems"]
    return {
        name: Score(system["accuracy"], tuple(system["ci95"]), system["questions"])
        for name, system in systems.items()
    }


def _stored_files(directory: Path, folders: Sequence[str]) -> dict[str, StoredFile]:
    found = {}
    for folder in folders:
        for file in sorted((directory / folder).iterdir()):
            found[f"{folder}/{file.name}"] = StoredFile(file.stat().st_size, sha256(file))
    return found


def sha256(file: Path) -> str:
    """The checksum of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
