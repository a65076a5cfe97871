"""python -m malt_jax.viewer: writes the page of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from malt_jax.command import command
from malt_jax.files import location


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.viewer") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes report/index.html of a run, finished or not: results, training curves,"
        "\nevery tree with its texts, and the test questions before and after training. A"
        "\nbrowser opens the file from the disk. Large runs get a folder data/ next to it.",
        epilog=f"example:\n  {prog} runs/default",
    )
    parser.add_argument("run", type=location, help="a run: a directory, or gs://BUCKET/PATH")
    parser.add_argument(
        "--out",
        type=location,
        help="the folder of the page, such as one on this machine for a run in a bucket (default:"
        " report/ in the run)",
    )
    options = parser.parse_args(arguments)

    # After the arguments are read, because this imports JAX: --help need not wait for that.
    from malt_jax.viewer.page import write_report

    print(f"the report is {write_report(options.run, options.out)}")


if __name__ == "__main__":
    command(main)
