"""The roles that a command is to answer with: of a run, of an exported pipeline or untrained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from upath import UPath

from malt_jax.config import QUICKSTART, Config, load_config
from malt_jax.export.read import ExportedPipeline, is_export
from malt_jax.files import location, reached
from malt_jax.malt.roles import Role
from malt_jax.malt.round import restore_trained
from malt_jax.model.llama import Params
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from malt_jax.training.policy import Policy


@dataclasses.dataclass(frozen=True)
class Source:
    """A run directory, an exported pipeline or the name of an untrained model.

    source = Source.read("runs/first", ["sampling.temperature=0"])
    experiment = prepare(source.config, source.roles)
    trained = source.trained(experiment.policy)
    """

    config: Config
    path: UPath | ExportedPipeline | None
    """None: an untrained model."""

    @classmethod
    def read(cls, name: str, overrides: Sequence[str] = ()) -> Source:
        """Reads the configuration, changed by `section.field=value` overrides.

        Raises UserError when it cannot be read or has wrong options.
        """
        path = location(name)
        with reached(path):
            if is_export(path):
                exported = ExportedPipeline.read(name)
                return cls(exported.config(overrides), exported)
            if (path / CONFIG_FILE).exists():
                return cls(load_config(path / CONFIG_FILE, overrides), path)
        # Without options of its own the embedded model is asked as its quickstart asks it.
        file = QUICKSTART if name == "tiny" else None
        return cls(load_config(file, [f"model.name={name}", *overrides]), None)

    @property
    def roles(self) -> Sequence[Role] | None:
        """The roles with their prompts; None: those that the configuration names."""
        return self.path.roles if isinstance(self.path, ExportedPipeline) else None

    def trained(self, policy: Policy) -> Mapping[str, Params]:
        """The trained weights by role; untrained roles have no entry.

        Raises UserError when they cannot be read or do not fit.
        """
        if self.path is None:
            return {}
        if isinstance(self.path, ExportedPipeline):
            return self.path.weights(self.config, policy)
        directory = RunDirectory.read(self.path)
        return restore_trained(directory, self.config, policy.like()).final
