"""python -m malt_jax.solve: the roles answer one question, visibly, or show their prompts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from malt_jax.command import add_options, command

_USED = (
    *("model", "task.name", "task.options", "pipeline.roles", "sampling.temperature"),
    *("sampling.top_p", "sampling.top_k", "sampling.max_tokens"),
)
"""The options that matter when one question is answered; `--help` lists them."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.solve") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Answers a question with every role in turn and prints what each writes while"
        " it is written, then the answer.",
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_MODEL",
        help="a run directory or an exported pipeline (the trained roles answer), or a model as in"
        " model.name below",
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
    add_options(parser, 'runs/first "What is 12 * 7?"', _USED)
    options = parser.parse_intermixed_args(arguments)
    if re.match(r"[a-z]+([.]\w+)+=", options.question or ""):
        options.overrides.insert(0, options.question)
        options.question = None
    if options.question is None and not options.show_prompts:
        parser.error("a question is needed, or --show-prompts")

    # After the arguments are read, because these import JAX: --help need not wait for that.
    import jax

    from malt_jax.evaluation.sampling import evaluation_key
    from malt_jax.evaluation.single_question import show_prompts, solve
    from malt_jax.evaluation.source import Source
    from malt_jax.malt.experiment import prepare
    from malt_jax.malt.roles import QUESTION

    source = Source.read(options.source, options.overrides)
    if options.show_prompts:
        show_prompts(source.config, options.question or f"{{{QUESTION}}}", source.roles)
        return
    experiment = prepare(source.config, source.roles)
    trained = {} if options.untrained else source.trained(experiment.policy)
    key = jax.random.fold_in(evaluation_key(source.config.seed), options.seed)
    solve(experiment, trained, options.question, key)


if __name__ == "__main__":
    command(main)
