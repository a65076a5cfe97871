"""malt: one name for all commands. `malt train` is the same as `python -m malt_jax.train`.

To add a command, write a module with `main(arguments, prog)` and add a line to COMMANDS.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import malt_jax


class Command(NamedTuple):
    """A module with `main(arguments: Sequence[str] | None, prog: str)`, and its description."""

    module: str
    description: str


COMMANDS = {
    "train": Command("malt_jax.train", "sample trees, train every role, compare the systems"),
    "evaluate": Command("malt_jax.evaluate", "compare systems of a run or of an untrained model"),
    "sweep": Command("malt_jax.sweep", "compare training settings on the trees of one run"),
    "solve": Command("malt_jax.solve", "let the roles answer one question, or show their prompts"),
    "export": Command("malt_jax.export.__main__", "take the trained roles of a run elsewhere"),
    "serve": Command("malt_jax.serve", "answer over HTTP in the format of OpenAI's API"),
    "watch": Command("malt_jax.watch.__main__", "show how far a run is, from another terminal"),
    "doctor": Command("malt_jax.doctor.__main__", "check the machine, the inputs, a run's files"),
    "plan": Command("malt_jax.plan", "estimate the memory and time that a run needs"),
    "report": Command("malt_jax.viewer.__main__", "write a run's trees and results as a page"),
    "grade": Command("malt_jax.grading.__main__", "judge a file of answers"),
    "tasks": Command("malt_jax.tasks.__main__", "check and count the questions of a task"),
}
"""In the order in which `malt --help` lists them. A module is imported when its command runs."""


def main(arguments: Sequence[str] | None = None, prog: str = "malt") -> None:
    """Runs the command that the first argument names, with the other arguments."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(prog)
    name = parser.parse_args(words[:1]).command
    if name is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if name not in COMMANDS:
        parser.error(_unknown(name))

    # After the command is known: its modules and pydantic take longer to import than --help.
    from malt_jax.command import command

    command(lambda: _run(name, words[1:], prog))


def _run(name: str, arguments: Sequence[str], prog: str) -> None:
    module = importlib.import_module(COMMANDS[name].module)
    module.main(arguments, f"{prog} {name}")


def _parser(prog: str) -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.description}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND [arguments]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="MALT (arXiv 2412.01928): a generator, a verifier and a refiner that are"
        " trained\ntogether.",
        epilog="\n".join(["commands:", *lines, "", "example:", f"  {prog} train --help"]),
    )
    version = f"malt_jax {malt_jax.__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of those below")
    return parser


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(COMMANDS)}"
    return f"there is no command {name!r:.50}; {hint}"
