"""python -m malt_jax.train: runs MALT from sampling to the table of results."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from malt_jax.command import add_options, command
from malt_jax.config import QUICKSTART, load_config
from malt_jax.errors import UserError
from malt_jax.files import location, reached

logger = logging.getLogger(__name__)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Samples trees of answers, turns them into training data for each role, trains"
        " the roles and compares them with the untrained model. A run that is started again on its"
        " directory continues after the last finished stage.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="YAML file with options (default: those of the run of --trees, or else the embedded"
        " model on generated riddles)",
    )
    parser.add_argument(
        "--run-dir",
        type=location,
        default="runs/default",
        help="a directory, or gs://BUCKET/PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--trees",
        metavar="RUN",
        type=location,
        help="copy the graded trees of this run instead of sampling them; credit, training and"
        " evaluation may differ from its",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run although questions, prompts, the model, the tokenizer or versions"
        " are not those that it was begun with; the results name the changes",
    )
    add_options(parser, "--run-dir runs/first seed=1 task.train_questions=100")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.train") -> None:
    options = _parser(prog).parse_intermixed_args(arguments)

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from malt_jax.distributed.processes import is_coordinator, joined
    from malt_jax.malt.reuse import require_same_options
    from malt_jax.report.tables import markdown
    from malt_jax.run import run
    from malt_jax.runs.agreement import start_facts
    from malt_jax.runs.directory import CONFIG_FILE, RunDirectory, open_run

    file = options.config or _config_file(options.run_dir, options.trees)
    config = load_config(file, options.overrides)
    if options.trees is not None and not (options.run_dir / CONFIG_FILE).exists():
        # Before the directory is made, so that it can be used once the options are right.
        require_same_options(RunDirectory.read(options.trees), config)
    facts = {
        **start_facts(config, options.run_dir),
        "--trees": str(options.trees),
        "--accept-changes": str(options.accept_changes),
    }
    with joined(config.processes, facts):
        with open_run(options.run_dir, config) as directory:
            accept = options.accept_changes
            results = run(config, directory, options.trees, accept_changes=accept)
            directory.write("tables.md", markdown(results))
        if is_coordinator():
            _report(results, options.run_dir)


def _report(results: Mapping[str, Any], run: UPath) -> None:
    """Draws the training curves, prints the tables and writes the run's page."""
    from rich.console import Console

    from malt_jax.evaluation.results import RESULTS_FILE
    from malt_jax.report.tables import print_table
    from malt_jax.report.training import write_curves
    from malt_jax.runs.metrics import read_metrics
    from malt_jax.viewer.page import write_report

    write_curves(read_metrics(run), run / "plots")
    console = Console()
    print_table(results, console)
    where = f"the figures in {RESULTS_FILE} and tables.md, the training curves in plots/"
    console.print(f"everything is in {run}, {where}", soft_wrap=True)
    try:
        page = write_report(run)
    except UserError as error:
        # The results are there; `malt report` writes the page again.
        logger.warning("no report was written: %s", error)
    else:
        console.print(f"to look at its trees, open {page} in a browser", soft_wrap=True)


def _config_file(run: UPath, trees: UPath | None) -> UPath | Path:
    """The options to begin with: of the run that has the trees, where there is one."""
    from malt_jax.runs.directory import CONFIG_FILE, RunDirectory

    if trees is None:
        return QUICKSTART
    with reached(trees):
        if not trees.exists() and (run / CONFIG_FILE).exists():  # its trees are here already
            return run / CONFIG_FILE
    return RunDirectory.read(trees).path / CONFIG_FILE


if __name__ == "__main__":
    command(main)
