"""Exported pipelines, read back to answer questions as the run did."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from upath import UPath

from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.checkpoints.fingerprint import weights_sha256
from malt_jax.checkpoints.huggingface import HuggingFaceDirectory
from malt_jax.checkpoints.peft import load_adapter
from malt_jax.checkpoints.weights import assemble
from malt_jax.config import Config, load_config
from malt_jax.errors import UserError
from malt_jax.export.pipeline import PIPELINE_FILE, PipelineFile, read_pipeline
from malt_jax.export.write import RUN_FILE, sha256
from malt_jax.files import on_disk
from malt_jax.malt.roles import Role
from malt_jax.model.llama import Params
from malt_jax.sharding.rules import device_put
from malt_jax.training.policy import Policy

_FIXED = ("pipeline", "lora", "training.method", "model.thinking")
"""Options that an export cannot change: its prompts and weights were made with them."""


def is_export(path: Path | UPath) -> bool:
    """Whether there is an exported pipeline at a path."""
    return (path / PIPELINE_FILE).is_file()


@dataclasses.dataclass(frozen=True)
class ExportedPipeline:
    """An exported pipeline.

    exported = ExportedPipeline.read(path)
    config = exported.config(overrides)
    experiment = prepare(config, exported.roles)
    trained = exported.weights(config, experiment.policy)
    """

    path: Path
    file: PipelineFile

    @classmethod
    def read(cls, address: str | Path) -> ExportedPipeline:
        """Raises UserError when there is no export, or one whose pipeline.json is malformed."""
        path = on_disk(address)
        return cls(path, read_pipeline(path / PIPELINE_FILE))

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The run's configuration with other options.

        Raises UserError for options that the export fixes, and as `load_config` does.
        """
        changed = load_config(self.path / RUN_FILE, overrides)
        for option in _FIXED:
            if _option(changed, option) != _option(self._run_config, option):
                raise UserError(
                    f"{option}: an exported pipeline has fixed prompts and weights; leave out what"
                    " changes it, or train a run with it"
                )
        return changed

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles with the prompts that were exported."""
        return self.file.malt_roles(tuple(r.branching for r in self._run_config.pipeline.roles))

    def weights(self, config: Config, policy: Policy) -> dict[str, Params]:
        """The trained weights by role, on the policy's mesh; untrained roles have no entry.

        Raises UserError when the base model or the tokenizer of `config` is not the one that was
        trained, and when a file is missing, damaged or does not fit.
        """
        self._require_base(config)
        found: dict[str, Params] = {}
        for role in self.file.roles:
            if role.directory is not None:
                self._require_whole(role.directory)
                found[role.name] = self._load(role.directory, policy)
        return found

    @cached_property
    def _run_config(self) -> Config:
        config = load_config(self.path / RUN_FILE)
        names = [role.name for role in config.pipeline.roles]
        exported = [role.name for role in self.file.roles]
        if names != exported or config.training.method != self.file.method:
            raise UserError(
                f"{self.path}: {RUN_FILE} and {PIPELINE_FILE} are of different exports: their roles"
                f" are {', '.join(names)} and {', '.join(exported)}, their methods"
                f" {config.training.method} and {self.file.method}"
            )
        return config

    def _load(self, folder: str, policy: Policy) -> Params:
        model = policy.model
        if model.lora is not None:
            adapter = load_adapter(self.path / folder, model.config, model.lora)
            return device_put(model.mesh, adapter, policy.spec)
        source = HuggingFaceDirectory(self.path / folder).tensors()
        return assemble(source, dataclasses.replace(model, dtype=jnp.float32))

    def _require_base(self, config: Config) -> None:
        base, name = self.file.base, config.model.name
        stored = StoredCheckpoint.of(config.model)
        if stored.tokenizer.fingerprint != base.tokenizer_sha256:
            raise UserError(
                f"{self.path}: the tokenizer of {config.model.tokenizer or name} is not the one"
                f" that the roles were trained with (of {base.id}); name that one with"
                " model.tokenizer=PATH"
            )
        found = weights_sha256(stored.tensors(), stored.config)
        if found != base.weights_sha256:
            raise UserError(
                f"{self.path}: the weights of {name} are not those that the roles were trained on"
                f" (of {base.id}): their SHA-256 is {found[:16]}..., {PIPELINE_FILE} has"
                f" {base.weights_sha256[:16]}...; name the right ones with model.name=PATH"
            )

    def _require_whole(self, folder: str) -> None:
        for name, entry in self.file.files.items():
            path = self.path / name
            if not name.startswith(f"{folder}/"):
                continue
            if not path.is_file():
                problem = "it is missing"
            elif path.stat().st_size != entry.bytes:
                problem = f"it has {path.stat().st_size} bytes, not {entry.bytes}"
            elif sha256(path) != entry.sha256:
                problem = f"its checksum is not that of {PIPELINE_FILE}"
            else:
                continue
            raise UserError(f"{path} is damaged: {problem}; export the run again")


def _option(config: Config, name: str) -> Any:
    value: Any = config
    for field in name.split("."):
        value = getattr(value, field)
    return value
