"""The models of a server: one in memory for all roles, or one a role after full fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from malt_jax.errors import UserError
from malt_jax.malt.experiment import Experiment
from malt_jax.model.llama import Params
from malt_jax.serving.batch import Weights
from malt_jax.serving.service import BASE, MALT, Speaker


def load_speakers(
    experiment: Experiment, trained: Mapping[str, Params]
) -> tuple[list[Weights], dict[str, Speaker]]:
    """The models in memory, and who speaks with which of them.

    trained: weights of the roles; those without an entry speak with the untrained model.

    With adapters there is one model with all of them. After full fine-tuning there is one for each
    trained role and the untrained one.

    Raises UserError for a role with a name that the server has given away.
    """
    prompts = experiment.pipeline.prompts
    names = [prompt.role.name for prompt in prompts]
    for name in (MALT, BASE):
        if name in names:
            raise UserError(f"pipeline.roles: a role that is served cannot be named {name!r}")
    owners = [name for name in names if name in trained]
    model = experiment.sampler.model
    of_role = {name: (0, number) for number, name in enumerate(owners)}
    with experiment.sampling_weights() as roles:
        if experiment.policy.model.lora is None:
            own = [roles.of(trained[name]) for name in owners]
            models = [Weights(model, variables) for variables in (roles.of(None), *own)]
            of_role = {name: (number, -1) for number, name in enumerate(owners, start=1)}
        elif owners:
            joined = roles.joined([trained[name] for name in owners])
            models = [Weights(*joined, len(owners))]
        else:
            model = dataclasses.replace(model, lora=None)
            models = [Weights(model, {"params": roles.of(None)["params"]})]
    speakers = {
        prompt.role.name: Speaker(*of_role.get(prompt.role.name, (0, -1)), depth, prompt)
        for depth, prompt in enumerate(prompts)
    }
    return models, {**speakers, BASE: Speaker(0, -1, 0)}
