"""python -m malt_jax.tasks: reads, checks and counts the questions of a task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from malt_jax import tasks
from malt_jax.command import command
from malt_jax.config import TaskConfig, load_config
from malt_jax.tasks.rows import RowsTask, duplicates


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.tasks") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Reads and checks the questions of a task, counts them, and compares the"
        " training with the test.",
        epilog=f"example: {prog} task.name=math task.train=math/train.jsonl",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with options")
    parser.add_argument("overrides", nargs="*", metavar="task.field=value")
    options = parser.parse_args(arguments)
    check(load_config(options.config, options.overrides).task)


def check(config: TaskConfig) -> None:
    """Prints the number of questions, and the training questions that the test asks too.

    Raises UserError for options and rows that cannot be used.
    """
    task = tasks.create(config)
    if not isinstance(task, RowsTask):
        for split in ("train", "test"):
            print(f"{task.name} {split}: {len(task.questions(split)):,} questions, generated")
        return
    train, test = task.all_questions("train"), task.all_questions("test")
    for split, questions, published in (("train", train, task.train), ("test", test, task.test)):
        expected = f" ({published.questions:,} are published)" if published else ""
        print(f"{task.name} {split}: {len(questions):,} questions{expected}")
    found = duplicates(train, test)
    print(f"training questions that the test asks too: {len(found)}")
    for ours, theirs in found.items():
        print(f"  {ours} as test question {theirs}")


if __name__ == "__main__":
    command(main)
