"""One question, answered visibly by every role in turn, and the prompts that the roles read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxtyping import Array, Key

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import Config
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import Role, load_roles
from malt_jax.malt.tree import decode_texts, node_request
from malt_jax.model.llama import Params
from malt_jax.sampling.completions import Completions
from malt_jax.tasks.base import Question


def show_prompts(config: Config, question: str, roles: Sequence[Role] | None = None) -> None:
    """Prints every role's prompt for a question, by the model's chat template.

    roles: with their prompts; None: those that the configuration names.

    Raises UserError for a prompt file or a template that cannot be used.
    """
    tokenizer = StoredCheckpoint.of(config.model).tokenizer
    if roles is None:
        roles = load_roles(config.pipeline.roles, tasks.create(config.task).prompts)
    for prompt in Pipeline.of(roles, tokenizer).prompts:
        fixed = len(prompt.ids("", [[]] * prompt.depth))
        print(f"--- {prompt.role.name} ({fixed} tokens with empty slots) ---")
        print(prompt.text(question, [f"{{{name}}}" for name in prompt.ancestors]))


def solve(
    experiment: Experiment, trained: Mapping[str, Params], text: str, key: Key[Array, ""]
) -> None:
    """Prints every role's completion as it grows, and the answer of the last role.

    Raises UserError when the question is too long for the model.
    """
    pipeline, question = experiment.pipeline, Question(id=0, text=text, answer="")
    sampler = dataclasses.replace(experiment.sampler, chunk=4, batch=1)
    limits = int(sampler.parameters.max_tokens), sampler.model.config.max_positions
    pipeline.check_lengths([text], *limits)
    completions: list[Completions] = []
    with experiment.sampling_weights() as weights:
        for prompt in pipeline.prompts:
            print(f"\n--- {prompt.role.name} ---", flush=True)
            branching = (1,) * (prompt.depth + 1)
            request = node_request(prompt, [question], completions, branching, key)
            variables = weights.of(trained.get(prompt.role.name))
            shown = ""
            for part in sampler.stream(variables, request):
                written = decode_texts(part, pipeline.tokenizer).item()
                # An unfinished character decodes to a replacement mark; it is shown once whole.
                written = written.removesuffix("\ufffd")
                print(written[len(shown) :], end="", flush=True)
                shown = written
            completions.append(part)
            print()
    final = decode_texts(completions[-1], pipeline.tokenizer).item()
    answer = experiment.task.extract(final)
    print(f"\nanswer: {answer if answer is not None else '(unparseable)'}")
