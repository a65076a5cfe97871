"""python -m malt_jax.evaluate: compares systems on a finished run or on a bare model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from malt_jax.command import add_options, command
from malt_jax.config import load_config
from malt_jax.files import location


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
        type=Path,
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
        "--limit", type=_positive, help="questions to ask (default: as the options say)"
    )
    parser.add_argument(
        "--skip",
        type=_count,
        default=0,
        help="questions to leave out before; with --split train those that the trees were sampled"
        " for come first",
    )
    parser.add_argument("--seeds", type=_positive, help="repetitions (default: as the options say)")
    add_options(
        parser,
        "--run-dir runs/first --out runs/other task.name=gsm_symbolic",
    )
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.evaluate") -> None:
    parser = _parser(prog)
    options = parser.parse_intermixed_args(arguments)
    if options.out is None and (options.config or options.adapters or options.overrides):
        parser.error("--out is needed with --config, --adapters and changed options")

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from rich.console import Console

    from malt_jax.distributed.processes import is_coordinator, joined
    from malt_jax.evaluation.finished import Asked, claim, evaluate_run, require_finished
    from malt_jax.evaluation.results import RESULTS_FILE
    from malt_jax.evaluation.store import Store
    from malt_jax.export.read import ExportedPipeline
    from malt_jax.report.plots import write_plots
    from malt_jax.report.tables import latex, markdown, print_table
    from malt_jax.report.training import write_curves
    from malt_jax.runs.agreement import start_facts
    from malt_jax.runs.directory import CONFIG_FILE, open_run
    from malt_jax.runs.metrics import read_metrics

    run, out = options.run_dir, options.out or options.run_dir
    exported = None if options.adapters is None else ExportedPipeline.read(options.adapters)
    if run is not None:
        require_finished(run)
    if exported is None:
        config = load_config(options.config or run / CONFIG_FILE, options.overrides)
    else:
        config = exported.config(options.overrides)
    names = options.systems.split(",") if options.systems else None
    asked = Asked(options.split, options.limit, options.skip)
    with joined(config.processes, start_facts(config, out)):
        with open_run(out, config) as directory:
            folder, seeds = asked.folder, options.seeds or config.evaluation.seeds
            if exported is not None:
                claim(directory, folder, exported)
            store = Store(directory, folder)
            content = evaluate_run(config, run or exported, store, names, asked, seeds)
            directory.write(f"{folder}/{RESULTS_FILE}", json.dumps(content, indent=2) + "\n")
            directory.write(f"{folder}/tables.md", markdown(content))
            directory.write(f"{folder}/tables.tex", latex(content))
        if is_coordinator():
            plots = write_plots(content, out / folder / "plots")
            if run is not None:
                plots += write_curves(read_metrics(run), out / folder / "plots")
            console = Console()
            print_table(content, console)
            where = f"{len(plots)} plots and {RESULTS_FILE} are in {out / folder}"
            console.print(f"tables, {where}", soft_wrap=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    command(main)
