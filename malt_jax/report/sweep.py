"""The table of a sweep, from its sweep.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.report.table import Table, accuracy, difference, formatted, markdown_document

_MARGIN = "rewards/margins"


def sweep_table(content: Mapping[str, Any]) -> Table:
    """One row a setting, the best first."""
    judged_by = content["judged_by"]
    settings = sorted(
        content["settings"].items(),
        key=lambda item: (item[0] != content["best"], -item[1]["systems"][judged_by]["accuracy"]),
    )
    systems = list(settings[0][1]["systems"])
    options = list(settings[0][1]["options"])
    stages = list(dict.fromkeys(_objective(s) for _, each in settings for s in each["training"]))
    headings = [
        *(_short_names(options) or ["setting"]),
        f"{judged_by} %",
        "from the best, points",
        *(f"{name} %" for name in systems if name != judged_by),
        *(f"{stage} updates" for stage in stages),
        *(f"{stage} margins" for stage in stages),
    ]
    rows = [_row(name, each, judged_by, stages) for name, each in settings]
    left = f" {content['left']} settings are not done." if content["left"] else ""
    return Table.of(
        "Settings",
        headings,
        rows,
        f"{content['questions']} questions of the training split that no tree was sampled for,"
        f" repetitions: {content['seeds']}; the test split was not asked.{left} Updates and margins"
        " in the order of the roles that have the stage.",
        "In brackets: 95 % intervals, bootstrap over the questions; differences are paired by"
        " question. The accuracy of the best of several is optimistic.",
    )


def sweep_markdown(content: Mapping[str, Any]) -> str:
    """The table as a document in GitHub's Markdown."""
    return markdown_document(f"Sweep on the trees of {content['trees']}", [sweep_table(content)])


def _row(
    name: str, setting: Mapping[str, Any], judged_by: str, stages: list[str]
) -> tuple[str, ...]:
    options, systems = setting["options"], setting["systems"]
    training: Mapping[str, Mapping[str, Any]] = setting["training"]

    def of_roles(objective: str, metric: str, form: str) -> str:
        values = [v.get(metric) for s, v in training.items() if _objective(s) == objective]
        return " ".join(formatted(value, form) for value in values if value is not None)

    return (
        *([str(value) for value in options.values()] or [name]),
        accuracy(systems[judged_by]),
        difference(setting["from_best"]),
        *(
            f"{100 * system['accuracy']:.1f}"
            for other, system in systems.items()
            if other != judged_by
        ),
        *(of_roles(stage, "updates", "d") for stage in stages),
        *(of_roles(stage, _MARGIN, ".3f") for stage in stages),
    )


def _short_names(options: Sequence[str]) -> list[str]:
    """The last part of each option's name, or the whole name where another option ends so too."""
    last = [name.rpartition(".")[2] for name in options]
    return [
        short if last.count(short) == 1 else name for name, short in zip(options, last, strict=True)
    ]


def _objective(stage: str) -> str:
    """The objective of a stage "round-0/ROLE/OBJECTIVE"."""
    return stage.rpartition("/")[2]
