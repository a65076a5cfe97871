"""python -m malt_jax.watch: shows a run while it works, from its files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from malt_jax.command import command
from malt_jax.files import in_bucket, location


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.watch") -> None:
    options = _parser(prog).parse_args(arguments)

    # After the arguments are read, because this imports JAX: --help need not wait for that.
    from rich.console import Console
    from rich.live import Live

    from malt_jax.watch.show import is_over, show
    from malt_jax.watch.snapshot import Reader
    from malt_jax.watch.work import Observed

    reader, observed, console = Reader(options.run), Observed(), Console()
    if not console.is_terminal:
        console = Console(width=120)
    interval = options.interval or (15.0 if in_bucket(options.run) else 3.0)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            snapshot = reader.snapshot()
            stage = snapshot.current
            if stage is not None:
                rate = observed.rate(stage.name, stage.work.done, time.monotonic())
                snapshot = snapshot.with_rate(rate)
            if console.is_terminal and not options.once:
                live.update(show(snapshot), refresh=True)
            else:
                console.print(show(snapshot), soft_wrap=True)
            if options.once or is_over(snapshot):
                return
            time.sleep(interval)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Shows the stages of a run, their rates and the time left, until the run is"
        " finished or\nstopped. Reads files only, so it works next to the process that trains, and"
        " on another\nmachine that sees the directory or the bucket.",
        epilog=f"example:\n  {prog} runs/default\n  {prog} gs://BUCKET/runs/first --once",
    )
    parser.add_argument("run", type=location, help="a run directory, or gs://BUCKET/PATH")
    parser.add_argument("--once", action="store_true", help="print the state and end")
    parser.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help="between two looks (default: 3, in a bucket 15)",
    )
    return parser


if __name__ == "__main__":
    command(main)
