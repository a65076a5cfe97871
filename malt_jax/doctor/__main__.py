"""python -m malt_jax.doctor: checks this machine, what a configuration names, and a run's files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from malt_jax.command import add_options, command
from malt_jax.config import QUICKSTART


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.doctor") -> None:
    options = _parser(prog).parse_intermixed_args(arguments)
    if options.run is not None and "=" in options.run and not Path(options.run).exists():
        options.overrides.insert(0, options.run)
        options.run = None

    # After the arguments are read, because these import JAX: --help need not wait for that.
    from malt_jax.config import Config, load_config
    from malt_jax.doctor.check import Finding, check
    from malt_jax.doctor.files import run_files
    from malt_jax.doctor.inputs import Inputs
    from malt_jax.doctor.machine import machine
    from malt_jax.files import in_bucket, location
    from malt_jax.runs.directory import CONFIG_FILE

    run = None if options.run is None else location(options.run)
    here = Path(".") if run is None or in_bucket(run) or not run.is_dir() else Path(str(run))
    findings: list[Finding] = []

    def show(title: str, found: Sequence[Finding]) -> None:
        print(f"{title}\n" + "\n".join(f"  {line}" for f in found for line in str(f).splitlines()))
        findings.extend(found)

    show("this machine", machine(here))
    if run is not None:
        show(f"the files of {run}", run_files(run))
    source = options.config or (QUICKSTART if run is None else run / CONFIG_FILE)
    configs: list[Config] = []

    def load() -> str:
        configs.append(load_config(source, options.overrides))
        return "every option is valid"

    loaded = check("configuration", load)
    show(
        f"the configuration {source}", [loaded, *(f for c in configs for f in Inputs(c).findings())]
    )
    wrong = [finding.name for finding in findings if not finding.ok]
    print(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    if wrong:
        sys.exit(1)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Checks versions, devices, memory and disk of this machine, and whether the"
        " weights, the tokenizer, the prompts and the questions of a configuration load. With RUN"
        " also every file of that run against its manifest, and says what can be kept and what to"
        " delete. Changes nothing. The exit status is 1 if something is wrong.",
    )
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="a run directory, or gs://BUCKET/PATH"
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="YAML file with options (default: those of RUN, or of the embedded model)",
    )
    add_options(parser, "runs/default", shown=("model.name", "model.dtype", "task.name"))
    return parser


if __name__ == "__main__":
    command(main)
