"""python -m malt_jax.evaluate: compares systems on a finished run or on a bare model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from malt_jax.command import add_options, command, count, positive
from malt_jax.config import TaskConfig, load_config
from malt_jax.files import location, write_atomically


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compares systems (single roles, pipelines, votes, the debate, pipelines with"
        " an untrained or a missing role) on the same questions, and writes results.json, tables"
        " in Markdown and LaTeX, and plots. Completions that were sampled already, by"
        " the training run too, are read, not sampled again: an interrupted evaluation continues,"
        " and one with more questions, seeds or systems adds what is missing.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run-dir",
        type=location,
        help="a finished run of malt_jax.train: a directory, or gs://BUCKET/PATH",
    )
    source.add_argument(
        "--config", type=Path, help="YAML file with options: evaluates the untrained model"
    )
    source.add_argument(
        "--adapters",
        metavar="DIR",
        help="a pipeline that `malt export` wrote: evaluates its roles as the run's",
    )
    parser.add_argument(
        "--out",
        type=location,
        help="directory or gs://BUCKET/PATH for samples and results, in its folder evaluation/"
        " (default: the run's; needed with --config, --adapters and changed options)",
    )
    parser.add_argument(
        "--systems",
        help="names with commas between, such as sa,sa+mv@9,malt+mv,debate (default: all)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        default="test",
        help="questions of this split; train, to choose settings by, goes to evaluation-train/",
    )
    parser.add_argument(
        "--limit", type=positive, help="questions to ask (default: as the options say)"
    )
    parser.add_argument(
        "--skip",
        type=count,
        default=0,
        help="questions to leave out before; with --split train those that the trees were sampled"
        " for come first",
    )
    parser.add_argument("--seeds", type=positive, help="repetitions (default: as the options say)")
    _add_paper(parser)
    add_options(parser, "--run-dir runs/first --out runs/other task.name=gsm_symbolic")
    return parser


def _add_paper(parser: argparse.ArgumentParser) -> None:
    paper = parser.add_argument_group("the paper's evaluation")
    paper.add_argument(
        "--paper",
        action="store_true",
        help="all tables and figures of the MALT paper, with its own figures where it has any, in"
        " paper.md, paper.tex and plots/",
    )
    paper.add_argument(
        "--votes",
        type=positive,
        help="most votes in the figure of accuracy by votes (default: evaluation.votes times the"
        " number of roles); the single model gets as many more as a pipeline makes more calls",
    )
    paper.add_argument(
        "--transfer",
        action="append",
        default=[],
        metavar="TASK[=FILE][,FIELD=VALUE...]",
        help="another task to answer with the same roles, its test questions and its other options"
        " (gsm_symbolic=p1.jsonl,options.variant=p1); may be given more than once",
    )


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.evaluate") -> None:
    parser = _parser(prog)
    options = parser.parse_intermixed_args(arguments)
    if options.out is None and (options.config or options.adapters or options.overrides):
        parser.error("--out is needed with --config, --adapters and changed options")
    if options.systems and options.paper:
        parser.error("--paper names its systems itself: leave --systems out")
    if not options.paper and (options.votes or options.transfer):
        parser.error("--votes and --transfer need --paper")

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from malt_jax.distributed.processes import is_coordinator, joined
    from malt_jax.evaluation.finished import Asked, claim, evaluate_run, require_finished
    from malt_jax.evaluation.paper import PaperOptions
    from malt_jax.evaluation.results import RESULTS_FILE
    from malt_jax.evaluation.store import Store
    from malt_jax.export.read import ExportedPipeline
    from malt_jax.report.tables import latex, markdown
    from malt_jax.runs.agreement import start_facts
    from malt_jax.runs.directory import CONFIG_FILE, open_run

    run, out = options.run_dir, options.out or options.run_dir
    exported = None if options.adapters is None else ExportedPipeline.read(options.adapters)
    if run is not None:
        require_finished(run)
    if exported is None:
        config = load_config(options.config or run / CONFIG_FILE, options.overrides)
    else:
        config = exported.config(options.overrides)
    systems = options.systems.split(",") if options.systems else None
    asked = Asked(options.split, options.limit, options.skip)
    transfer = tuple(map(_task, options.transfer))
    paper = PaperOptions(options.votes, transfer) if options.paper else None
    with joined(config.processes, start_facts(config, out)):
        with open_run(out, config) as directory:
            folder, seeds = asked.folder, options.seeds or config.evaluation.seeds
            if exported is not None:
                claim(directory, folder, exported)
            store = Store(directory, folder)
            content = evaluate_run(config, run or exported, store, systems, asked, seeds, paper)
            directory.write(f"{folder}/{RESULTS_FILE}", json.dumps(content, indent=2) + "\n")
            directory.write(f"{folder}/tables.md", markdown(content))
            directory.write(f"{folder}/tables.tex", latex(content))
        if is_coordinator():
            _report(content, run, out / folder)


def _report(content: Mapping[str, Any], run: UPath | None, folder: UPath) -> None:
    """Draws the plots, writes the paper's tables where they were asked for, and prints a summary.

    run: its training curves are drawn too.
    """
    from rich.console import Console

    from malt_jax.report.paper_tables import paper_latex, paper_markdown
    from malt_jax.report.plots import write_plots
    from malt_jax.report.tables import print_table
    from malt_jax.report.training import write_curves
    from malt_jax.runs.metrics import read_metrics

    plots = write_plots(content, folder / "plots")
    if run is not None:
        plots += write_curves(read_metrics(run), folder / "plots")
    names = [plot.stem for plot in plots if plot.suffix == ".png"]
    if "paper" in content:
        write_atomically(folder / "paper.md", paper_markdown(content, names))
        write_atomically(folder / "paper.tex", paper_latex(content))
    console = Console()
    print_table(content, console)
    where = f"tables, {len(names)} plots and results.json are in {folder}"
    console.print(where, soft_wrap=True)
    for thing in content.get("paper", {}).get("missing", ()):
        console.print(f"not made: {thing}", soft_wrap=True, markup=False)


def _task(text: str) -> TaskConfig:
    """The task of an argument TASK[=FILE][,FIELD=VALUE...]; FIELD is one of the section `task`."""
    described, *fields = text.split(",")
    name, _, file = described.partition("=")
    overrides = [f"task.name={json.dumps(name)}"]
    overrides += [f"task.test={json.dumps(file)}"] if file else []
    return load_config(None, [*overrides, *(f"task.{field}" for field in fields)]).task


if __name__ == "__main__":
    command(main)
