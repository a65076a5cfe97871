"""python -m malt_jax.evaluate: compares systems on a finished run or on a bare model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from upath import UPath

from malt_jax.command import add_options, command
from malt_jax.config import Config, load_config, plain
from malt_jax.distributed.processes import is_coordinator, joined
from malt_jax.errors import UserError
from malt_jax.evaluation.results import RESULTS_FILE, evaluate
from malt_jax.evaluation.sampling import Policies, Team
from malt_jax.evaluation.store import FOLDER, Store
from malt_jax.evaluation.systems import MALT, STAR, all_names
from malt_jax.files import location, reached
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.round import restore_trained
from malt_jax.report.plots import write_plots
from malt_jax.report.tables import latex, markdown, print_table
from malt_jax.report.training import write_curves
from malt_jax.runs.agreement import start_facts
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory, open_run, versions
from malt_jax.runs.metrics import last_values, read_metrics


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m malt_jax.evaluate",
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
    parser.add_argument(
        "--out",
        type=location,
        help="directory or gs://BUCKET/PATH for samples and results, in its folder evaluation/"
        " (default: the run's; needed with --config and with changed options)",
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
    parser.add_argument("--seeds", type=_positive, help="repetitions (default: as the options say)")
    add_options(
        parser,
        "python -m malt_jax.evaluate --run-dir runs/first --out runs/other task.name=gsm_symbolic",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.out is None and (options.config or options.overrides):
        parser.error("--out is needed with --config and with changed options")
    run, out = options.run_dir, options.out or options.run_dir
    if run is not None:
        _require_finished(run)
    file = options.config if run is None else run / CONFIG_FILE
    config = load_config(file, options.overrides)
    names = options.systems.split(",") if options.systems else None
    with joined(config.processes, start_facts(config, out)):
        with open_run(out, config) as directory:
            folder = FOLDER if options.split == "test" else f"{FOLDER}-{options.split}"
            content = _evaluate(config, run, Store(directory, folder), names, options)
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


def _evaluate(
    config: Config,
    run: UPath | None,
    store: Store,
    names: Sequence[str] | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    experiment = prepare(config)
    roles = experiment.pipeline.names
    policies: Policies = {}
    training: dict[str, Any] = {}
    if run is not None:
        earlier = RunDirectory.read(run)
        like = experiment.policy.like()
        trained = restore_trained(earlier, earlier.config, like)
        policies = {STAR: trained.sft, MALT: trained.final}
        training = _training(run, earlier.config, config)
    if names is None:
        names = all_names(roles, config.evaluation.votes, trained=run is not None)
    limits = {"train": config.task.train_questions, "test": config.test_limit}
    limit = options.limit or limits[options.split]
    questions = select_questions(experiment.task, options.split, limit, config.seed)
    seeds = options.seeds or config.evaluation.seeds
    with experiment.sampling_weights() as weights:
        team = Team.of(experiment, config, weights, policies)
        judged = evaluate(team, experiment.task, names, questions, seeds, store)
    return {
        "model": experiment.name,
        "task": experiment.task.name,
        **judged,
        **training,
        "seconds": {
            f"{store.folder}/seed-{seed}": round(store.seconds(seed), 3) for seed in range(seeds)
        },
        "config": plain(config),
        "versions": versions(),
    }


def _require_finished(run: UPath) -> None:
    with reached(run):
        if not (run / RESULTS_FILE).exists():
            raise UserError(
                f"{run} holds no finished run (no {RESULTS_FILE}); finish it first: python -m"
                f" malt_jax.train --run-dir {run} with the options that it was begun with"
            )


def _training(run: UPath, trained: Config, evaluated: Config) -> dict[str, Any]:
    """The parts of the training's results that belong to this evaluation too."""
    try:
        earlier: Mapping[str, Any] = json.loads((run / RESULTS_FILE).read_text())
        kept = {name: earlier[name] for name in ("rounds", "values") if name in earlier}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{run / RESULTS_FILE} cannot be read: {error}") from None
    if training := last_values(read_metrics(run)):
        kept["training"] = training
    if trained.task.name != evaluated.task.name:
        kept["trained_on"] = trained.task.name
    return kept


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)


if __name__ == "__main__":
    command(main)
