"""python -m malt_jax.solve: the roles answer one question, visibly, or show their prompts."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
from jaxtyping import Array, Key

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.command import add_options, command
from malt_jax.config import QUICKSTART, Config, load_config
from malt_jax.evaluation.sampling import evaluation_key
from malt_jax.files import location, reached
from malt_jax.malt.experiment import Experiment, prepare
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import QUESTION, load_roles
from malt_jax.malt.round import restore_trained
from malt_jax.malt.tree import decode_texts, node_request
from malt_jax.model.llama import Params
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from malt_jax.sampling.completions import Completions
from malt_jax.tasks.base import Question

_USED = (
    *("model", "task.name", "task.options", "pipeline.roles", "sampling.temperature"),
    *("sampling.top_p", "sampling.top_k", "sampling.max_tokens"),
)
"""The options that matter when one question is answered; `--help` lists them."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m malt_jax.solve",
        description="Answers a question with every role in turn and prints what each writes while"
        " it is written, then the answer.",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_MODEL",
        help="a run directory (its trained roles answer), or a model as in model.name below",
    )
    parser.add_argument("question", nargs="?", help="what to answer")
    parser.add_argument(
        "--show-prompts",
        action="store_true",
        help="print the prompt of every role as the model reads it, and answer nothing; the"
        " completions of other roles are shown as {name}, and so is a question that is left out",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another answer")
    parser.add_argument(
        "--untrained", action="store_true", help="answer with the untrained model of a run"
    )
    add_options(parser, 'python -m malt_jax.solve runs/first "What is 12 * 7?"', _USED)
    options = parser.parse_intermixed_args(arguments)
    if re.match(r"[a-z]+([.]\w+)+=", options.question or ""):
        options.overrides.insert(0, options.question)
        options.question = None
    if options.question is None and not options.show_prompts:
        parser.error("a question is needed, or --show-prompts")

    run = location(options.source)
    with reached(run):
        is_run = (run / CONFIG_FILE).exists()
    if is_run:
        config = load_config(run / CONFIG_FILE, options.overrides)
    else:
        # Without options of its own the embedded model is asked as its quickstart asks it.
        overrides = [f"model.name={options.source}", *options.overrides]
        config = load_config(QUICKSTART if options.source == "tiny" else None, overrides)
    if options.show_prompts:
        show_prompts(config, options.question or f"{{{QUESTION}}}")
        return
    experiment = prepare(config)
    trained: dict[str, Params] = {}
    if is_run and not options.untrained:
        like = experiment.policy.like()
        trained = restore_trained(RunDirectory.read(run), config, like).final
    key = jax.random.fold_in(evaluation_key(config.seed), options.seed)
    solve(experiment, trained, options.question, key)


def show_prompts(config: Config, question: str) -> None:
    """Prints every role's prompt for a question, by the model's chat template.

    Raises UserError for a prompt file or a template that cannot be used.
    """
    tokenizer = StoredCheckpoint(config.model.name, config.model.tokenizer).tokenizer
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


if __name__ == "__main__":
    command(main)
