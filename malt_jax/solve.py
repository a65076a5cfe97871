"""python -m malt_jax.solve: the roles answer one question, visibly."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from malt_jax import evaluation, loop
from malt_jax.command import command
from malt_jax.config import describe_options, load_config
from malt_jax.experiment import Experiment, Trainables, prepare
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from malt_jax.sampling.decode import Completions, DecodeState
from malt_jax.tasks.base import Question
from malt_jax.train import QUICKSTART
from malt_jax.tree import decode_texts, expand


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m malt_jax.solve",
        description="Answers a question with every role in turn and prints what each writes while"
        " it is written, then the answer.",
        epilog=describe_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="RUN_OR_MODEL",
        help="a run directory (its trained roles answer), or a model as in model.name below",
    )
    parser.add_argument("question")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another answer")
    parser.add_argument(
        "--untrained", action="store_true", help="leave out what the roles of a run have learned"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.field=value",
        help="changes to the run's options, such as sampling.temperature=0",
    )
    options = parser.parse_args(arguments)

    run = Path(options.source)
    if (run / CONFIG_FILE).is_file():
        experiment = prepare(load_config(run / CONFIG_FILE, options.overrides))
        directory = RunDirectory.read(run)
        learned = {} if options.untrained else loop.learned(experiment, directory).final
    else:
        # Without options of its own the embedded model is asked as its quickstart asks it.
        config = QUICKSTART if options.source == "tiny" else None
        overrides = [f"model.name={options.source}", *options.overrides]
        experiment = prepare(load_config(config, overrides))
        learned = {}
    solve(experiment, learned, options.question, options.seed)


def solve(experiment: Experiment, learned: Trainables, text: str, seed: int) -> None:
    """Prints every role's completion as it grows, and the answer that the last one gives.

    Raises UserError when the question is too long for the model.
    """
    question = Question(id=0, text=text, answer="")
    experiment.check_lengths([question])
    tokenizer = experiment.checkpoint.tokenizer
    completions: tuple[Completions, ...] = ()
    for depth, name in enumerate(experiment.pipeline.names):
        print(f"\n--- {name} ---", flush=True)
        shown = ""

        def show(state: DecodeState) -> None:
            nonlocal shown
            length = int(state.lengths.reshape(-1)[0])
            written = tokenizer.decode(state.tokens.reshape(-1)[:length].tolist())
            # An unfinished character decodes to a replacement mark; it is shown when it is whole.
            written = written.removesuffix("\ufffd")
            print(written[len(shown) :], end="", flush=True)
            shown = written

        completions = expand(
            dataclasses.replace(experiment.sampler, chunk=4),
            experiment.prompts[: depth + 1],
            [experiment.variables(learned.get(name))],
            [question],
            (1,) * (depth + 1),
            evaluation.seed_key(experiment, seed),
            known=completions,
            on_chunk=show,
        )
        print()
    final = decode_texts(completions[-1], tokenizer).item()
    answer = experiment.task.extract(final)
    print(f"\nanswer: {answer if answer is not None else '(none could be read)'}")


if __name__ == "__main__":
    command(main)
