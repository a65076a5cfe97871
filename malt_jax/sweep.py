"""python -m malt_jax.sweep: compares settings of training on the trees of one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from malt_jax.command import add_options, command, positive
from malt_jax.files import location

QUESTIONS = 300
SYSTEMS = "malt+mv,star-ma+mv,ma+mv"
_VARIED = (
    *("credit.pairs", "credit.min_value_gap", "lora.rank", "training.dpo_roles"),
    *("sft.learning_rate", "sft.epochs", "dpo.learning_rate", "dpo.epochs", "dpo.beta", "dpo.loss"),
)
"""Options that `--help` lists."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.sweep") -> None:
    options = _parser(prog).parse_intermixed_args(arguments)

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from rich.console import Console

    from malt_jax.distributed.processes import is_coordinator, joined
    from malt_jax.report.sweep import sweep_markdown, sweep_table
    from malt_jax.report.table import terminal_table
    from malt_jax.runs.agreement import start_facts
    from malt_jax.runs.directory import CONFIG_FILE, RunDirectory, open_run
    from malt_jax.sweeps.settings import settings
    from malt_jax.sweeps.sweep import SWEEP_FILE, Judging, require_trees_of, sweep

    trees = RunDirectory.read(options.trees)
    found = settings(trees.path / CONFIG_FILE, options.overrides, options.settings)
    judging = Judging(options.systems.split(","), options.questions, options.seeds)
    facts = {"--trees": str(options.trees), "settings": str([s.name for s in found])}
    processes = found[0].config.processes
    with joined(processes, {**start_facts(trees.config, options.out), **facts}):
        # Before the directory is made: a sweep of settings that need other trees leaves nothing.
        require_trees_of(trees, found)
        with open_run(options.out, trees.config) as directory:
            content = sweep(trees, directory, found, judging)
            directory.write("sweep.md", sweep_markdown(content))
        if is_coordinator():
            console = Console()
            console.print(terminal_table(sweep_table(content)))
            best = options.out / content["best"]
            console.print(
                f"all settings are in {options.out}, the figures in {SWEEP_FILE} and sweep.md\n"
                "evaluate the best one on the test, once: malt train --config"
                f" {best / CONFIG_FILE} --run-dir {best}",
                soft_wrap=True,
                markup=False,
            )


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Trains with several settings on the trees of one run and compares them on"
        " questions of the training split that no tree was sampled for. The test split is not"
        " asked. Commas separate the values of an option, and every combination is a run of its"
        " own below --out. A sweep that is started again continues; more settings may be added.",
    )
    parser.add_argument(
        "--trees", metavar="RUN", type=location, required=True, help="a run that has its trees"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=location, required=True, help="the sweep's own directory"
    )
    parser.add_argument(
        "--settings",
        metavar="FILE",
        type=location,
        help="YAML list of settings, such as [{dpo.beta: 0.1, sft.epochs: 2}, ...]; each one is"
        " combined with the values of the arguments",
    )
    parser.add_argument(
        "--systems",
        default=SYSTEMS,
        help="systems to compare, as evaluate names them; the first one decides which setting is"
        " best (%(default)s)",
    )
    parser.add_argument(
        "--questions",
        type=positive,
        default=QUESTIONS,
        help="training questions to ask, after those of the trees (%(default)s)",
    )
    parser.add_argument("--seeds", type=positive, default=1, help="repetitions (%(default)s)")
    example = "--trees runs/first --out runs/sweep dpo.learning_rate=1e-4,5e-4 dpo.epochs=1,2"
    add_options(parser, example, _VARIED)
    return parser


if __name__ == "__main__":
    command(main)
