"""Checks that all processes of a run were given the same, and enough work for each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from upath import UPath

import malt_jax
from malt_jax.config import Config, leaves
from malt_jax.distributed.processes import process_count, require_equal
from malt_jax.errors import UserError
from malt_jax.runs.directory import versions
from malt_jax.tasks.base import Question


def start_facts(config: Config, run_dir: UPath | str) -> dict[str, str]:
    """Facts that must be equal in all processes: versions, a hash of this package's files, the run
    directory and every option outside `processes`."""
    options = {
        name: str(value)
        for name, value in leaves(config).items()
        if not name.startswith("processes.")
    }
    return {**versions(), "malt_jax's files": _source(), "--run-dir": str(run_dir), **options}


def require_fit(config: Config, train: Sequence[Question], test: Sequence[Question]) -> None:
    """Raises UserError, in all processes, when their questions differ, and when there are more
    processes than questions."""
    asked = {"training questions": train, "test questions": test}
    require_equal({name: questions_hash(questions) for name, questions in asked.items()})
    counts = {
        "training questions (task.train_questions)": len(train),
        "test questions (evaluation.questions)": len(test),
        "questions in sampling.questions_per_batch": config.sampling.questions_per_batch,
        "questions in evaluation.questions_per_batch": config.evaluation.questions_per_batch,
    }
    for name, count in counts.items():
        if count < process_count():
            raise UserError(
                f"{process_count()} processes are more than the {count} {name}: take more questions"
                " or fewer processes"
            )


def questions_hash(questions: Sequence[Question]) -> str:
    """A hash of ids, texts and answers, in their order."""
    content = repr([(question.id, question.text, question.answer) for question in questions])
    return f"{len(questions)} with SHA-256 {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _source() -> str:
    root, kinds = Path(malt_jax.__file__).parent, (".py", ".yaml", ".json", ".jinja")
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in kinds):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"SHA-256 {digest.hexdigest()[:16]}"
