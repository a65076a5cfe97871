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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m malt_jax.plan",
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
        "--correct",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of correct completions: decides the number of rows and pairs (%(default)s)",
    )
    add_options(parser, "python -m malt_jax.plan --topology v5e:4x4 model.name=llama-3.1-8b")
    options = parser.parse_intermixed_args(arguments)

    # After the arguments are read, because these import JAX: --help need not wait for that.
    import jax
    from rich.console import Console

    from malt_jax.planning.estimate import compiled, for_the_compiler_alone, remembering
    from malt_jax.planning.fit import fastest_that_fits
    from malt_jax.planning.plan import Subject, place_of, plan
    from malt_jax.planning.table import print_plan
    from malt_jax.planning.topologies import parse_topology
    from malt_jax.planning.workload import Assumptions

    config = load_config(options.config, options.overrides)

    topology = None
    if options.topology is not None:
        topology = parse_topology(options.topology, options.slices)
        if "JAX_PLATFORMS" not in os.environ:  # nothing runs, so no accelerator is looked for
            jax.config.update("jax_platforms", "cpu")
    assumed = Assumptions(options.question_tokens, options.completion_tokens, options.correct)
    with contextlib.nullcontext() if topology is None else for_the_compiler_alone():
        place = place_of(topology)
        subject = Subject.of(config, assumed, place)
        compile = remembering(compiled)
        if options.fit:
            subject = fastest_that_fits(subject, place, compile)
        with Compilation(place.name) as compilation:
            found = plan(subject, place, compile, options.only or [""], compilation.show)
    if options.json:
        print(json.dumps(found.to_json(options.price_per_chip_hour)))
    else:
        print_plan(found, options.price_per_chip_hour, Console())


class Compilation(contextlib.ExitStack):
    """Progress on standard error."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._title = f"compiling for {place}"
        self._progress: Progress | None = None

    def show(self, done: int, total: int, last: str) -> None:
        if self._progress is None:
            self._progress = self.enter_context(Progress(self._title, total, "programs"))
        self._progress.update(done=done, last=last)


if __name__ == "__main__":
    command(main)
