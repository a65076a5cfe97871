"""The training rows of trees: as files, as counts, and as the batches of a training stage."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from malt_jax.config import Config
from malt_jax.malt.credit import Node, RoleRows
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.objectives import Loss, Objective, TrainingRow
from malt_jax.malt.pairs import Rows, pair_figures
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.tree import Tree
from malt_jax.runs.directory import RunDirectory
from malt_jax.training.batches import Batches, Example
from malt_jax.training.loop import rows_that_fit

logger = logging.getLogger(__name__)


def row_counts(directory: RunDirectory, number: int) -> dict[str, Any]:
    """Numbers of rows and pairs, and figures about the pairs, per role of a finished round.

    All but the SFT rows are those of on-policy trees if there are any.
    """

    def read(name: str) -> dict[str, Any]:
        return json.loads((directory.finished(name) / "counts.json").read_text())

    counts, later = read(f"round-{number}/rows"), f"round-{number}/on-policy-rows"
    if directory.is_done(later):
        for role, of_role in read(later).items():
            counts[role] |= of_role | {"rows": counts[role]["rows"]}
    return counts


def write_rows(
    directory: RunDirectory, name: str, experiment: Experiment, config: Config, rows: Rows
) -> None:
    """Writes the training rows as references to nodes, and their counts, and logs these.

    Does nothing if an earlier attempt has done it.
    """
    if directory.is_done(name):
        return
    counts: dict[str, Any] = {}
    with directory.stage(name) as stage:
        for depth, role in enumerate(experiment.pipeline.names):
            sft = [_named(tree, node) for tree, of_role in rows for node in of_role[depth].sft]
            pairs = [
                {"chosen": _named(tree, chosen), "rejected": _named(tree, rejected)}
                for tree, of_role in rows
                for chosen, rejected, _ in of_role[depth].pairs
            ]
            single = [
                {**_named(tree, node), "correct": correct}
                for tree, of_role in rows
                for correct, nodes in _labelled(of_role[depth])
                for node in nodes
            ]
            files = {"sft": sft, "pairs": pairs}
            if role in config.training.kto_roles:
                files["kto"] = single
            for file, lines in files.items():
                text = "".join(json.dumps(line) + "\n" for line in lines)
                stage.write(f"{role}/{file}.jsonl", text)
            figures = pair_figures(rows, depth, experiment.task)
            correct = sum(line["correct"] for line in single)
            counts[role] = {
                "rows": len(sft),
                "correct": correct,
                "incorrect": len(single) - correct,
                "pairs": len(pairs),
                **figures.to_json(),
            }
            about = f": {figures}" if pairs else ""
            logger.info("%s: %s: %d rows, %d pairs%s", name, role, len(sft), len(pairs), about)
        stage.write("counts.json", json.dumps(counts, indent=1) + "\n")


def _labelled(rows: RoleRows) -> tuple[tuple[bool, Sequence[Node]], ...]:
    return (True, rows.correct), (False, rows.incorrect)


def _named(tree: Tree, node: Node) -> dict[str, Any]:
    """A node by its question's id and its path."""
    return {"question": tree.questions[node.question].id, "path": list(node.path)}


def selected(loss: Loss, rows: Rows, depth: int) -> list[tuple[Tree, TrainingRow]]:
    """The rows of the role at this depth that a loss trains on, each with its tree."""
    return [(tree, row) for tree, roles in rows for row in loss.select(roles[depth])]


def stage_batches(
    name: str, objective: Objective, experiment: Experiment, rows: Rows, depth: int, seed: int
) -> Batches:
    """The batches of a training stage, with those of its anchor.

    Rows that the model's positions cannot hold are left out, with a warning. Raises UserError when
    no row is left.
    """
    positions, size = experiment.policy.model.config.max_positions, objective.options.batch_size
    examples = _examples(name, objective, experiment, selected(objective, rows, depth))
    batches = Batches(objective.arrange(examples, positions, seed), size, seed)
    if objective.anchor is None:
        return batches
    anchors = selected(objective.anchor, rows, depth)
    if not anchors:
        logger.warning("%s: no correct completion joins the updates: there is none", name)
        return batches
    others = _examples(name, objective.anchor, experiment, anchors)
    return batches.with_anchors(Batches(others, size, seed + 1))


def _examples(
    name: str, loss: Loss, experiment: Experiment, rows: Sequence[tuple[Tree, TrainingRow]]
) -> list[Example]:
    """The examples of rows that the model's positions can hold."""
    examples = [_example(experiment.pipeline, tree, row) for tree, row in rows]
    kept, dropped = rows_that_fit(examples, experiment.policy.model.config.max_positions, loss.rows)
    if dropped:
        logger.warning(
            "%s: %d of %d rows are longer than the model's positions and were left out",
            name,
            dropped,
            len(examples),
        )
    return kept


def _example(pipeline: Pipeline, tree: Tree, row: TrainingRow) -> Example:
    """The common prompt of sibling nodes and their sampled ids."""
    question, path = row.nodes[0]
    prompt = pipeline.prompts[len(path) - 1]
    ids = prompt.ids(tree.questions[question].text, tree.ancestors(question, path))
    completions = tuple(tree.ids(*node) for node in row.nodes)
    return Example(ids, completions, row.weight, tree.questions[question].id)
