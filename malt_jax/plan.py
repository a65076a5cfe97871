"""python -m malt_jax.plan: estimates what a run needs of a TPU or of this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from malt_jax.command import add_options, command
from malt_jax.config import QUICKSTART, load_config
from malt_jax.progress import Progress


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.plan") -> None:
    options = _parser(prog).parse_intermixed_args(arguments)

    # After the arguments are read, because these import JAX: --help need not wait for that.
    import jax
    from rich.console import Console

    from malt_jax.planning.estimate import Compiler, least_effort
    from malt_jax.planning.fit import fastest_that_fits
    from malt_jax.planning.plan import Plan, print_plan, target_meshes, with_names
    from malt_jax.planning.programs import Assumptions, Workload, programs
    from malt_jax.planning.targets import Target, Topology

    config = load_config(options.config, options.overrides)
    topology = None
    if options.topology is not None:
        topology = Topology.parse(options.topology, options.slices)
        if "JAX_PLATFORMS" not in os.environ:  # nothing runs, so no accelerator is looked for
            jax.config.update("jax_platforms", "cpu")
    assumed = Assumptions(options.question_tokens, options.completion_tokens, options.accuracy)
    with contextlib.nullcontext() if topology is None else least_effort():
        target = Target.of(topology)
        load = Workload.of(config, assumed, target.devices[0].platform)
        with Compiler(target) as compiler:
            if options.fit:
                load = fastest_that_fits(load, compiler)
            meshes = target_meshes(load, target)
            listed = with_names(programs(load, meshes), options.only or [""])
            with Progress(f"compiling for {target.name}", len(listed), "programs") as progress:
                found = compiler.estimates(
                    listed, lambda done, last: progress.update(done=done, last=last.name)
                )
    plan = Plan(target, load, meshes, found)
    if options.json:
        print(json.dumps(plan.to_json(options.price_per_chip_hour)))
    else:
        print_plan(plan, options.price_per_chip_hour, Console())


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compiles every program of a run for a TPU topology, which may be absent, or"
        " for the devices of this machine, and prints memory and time of each and of the run.",
    )
    parser.add_argument("--config", type=Path, default=QUICKSTART, help="YAML file with options")
    parser.add_argument(
        "--topology", help="such as v5e:4x4, in chips (default: the devices of this machine)"
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=1,
        help="number of equal slices of that topology (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument(
        "--fit", action="store_true", help="search batch sizes and meshes for the fastest that fit"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PART",
        help="only programs with this in their name, such as refiner/decode; may be repeated",
    )
    parser.add_argument(
        "--price-per-chip-hour", type=float, metavar="DOLLARS", help="adds the cost"
    )
    parser.add_argument(
        "--question-tokens",
        type=int,
        help="tokens of the longest question (default: counted, or 256 if there are none)",
    )
    parser.add_argument(
        "--completion-tokens",
        type=int,
        help="tokens of every completion (default: sampling.max_tokens, an upper bound of memory"
        " and time)",
    )
    parser.add_argument(
        "--accuracy",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of correct completions, for the number of rows and pairs (%(default)s)",
    )
    add_options(parser, "--topology v5e:4x4 model.name=llama-3.1-8b")
    return parser


if __name__ == "__main__":
    command(main)
