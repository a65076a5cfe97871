"""Training curves: a figure for each kind of stage, a line for each role, whatever was logged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from malt_jax.report.training import figures, write_curves

ROLES = ("generator", "verifier", "refiner")


def logged(steps: int, **metrics: float | None) -> list[dict[str, Any]]:
    """Records of a stage: metric m is m times the step."""
    return [
        {"step": s} | {name.replace("_", "/", 1): m and m * s for name, m in metrics.items()}
        for s in range(1, steps + 1)
    ]


def example(rounds: int = 1) -> dict[str, list[dict[str, Any]]]:
    curves = {}
    for number in range(rounds):
        for role in ROLES:
            curves[f"round-{number}/{role}/sft"] = logged(5, loss=2.0)
        rewards = {"rewards_chosen": -0.5, "rewards_rejected": -1.5, "rewards_margins": 1.0}
        curves[f"round-{number}/refiner/dpo"] = logged(8, loss=0.25, **rewards)
    return curves


def lines(axes: Axes) -> list[tuple[str, list[float]]]:
    return [(str(line.get_linestyle()), list(line.get_ydata())) for line in axes.lines]


def by_name(curves: Any) -> dict[str, Figure]:
    return dict(figures(curves))


def test_every_metric_of_every_role_is_drawn() -> None:
    drawn = by_name(example())
    assert set(drawn) == {"training-sft", "training-dpo"}
    (loss,) = drawn["training-sft"].axes
    assert [values for _, values in lines(loss)] == [[2.0, 4.0, 6.0, 8.0, 10.0]] * 3
    assert len({line.get_color() for line in loss.lines}) == 3
    assert loss.get_legend_handles_labels()[1] == [*ROLES]
    panels = {axes.get_title(loc="left"): axes for axes in drawn["training-dpo"].axes}
    assert len(panels) == 3  # no accuracies were logged
    assert lines(panels["reward margin"]) == [("-", [float(s) for s in range(1, 9)])]
    (chosen, rejected) = lines(panels["rewards: chosen —, rejected - -"])
    assert chosen == ("-", [-0.5 * s for s in range(1, 9)])
    assert rejected == ("--", [-1.5 * s for s in range(1, 9)])


def test_rounds_have_lines_of_their_own() -> None:
    (loss,) = by_name(example(rounds=2))["training-sft"].axes
    assert loss.get_legend_handles_labels()[1][3] == "generator, round 1"
    assert len({line.get_color() for line in loss.lines}) == 6


def test_a_long_stage_has_a_running_mean() -> None:
    (loss,) = by_name({"round-0/refiner/sft": logged(40, loss=1.0)})["training-sft"].axes
    (_, single), (_, mean) = lines(loss)
    assert single == [float(s) for s in range(1, 41)]
    np.testing.assert_allclose(mean, [s - 1.5 for s in range(4, 41)])


def test_steps_without_a_number_are_left_out() -> None:
    records = logged(3, loss=1.0)
    records[1]["loss"] = None
    (loss,) = by_name({"round-0/refiner/sft": records})["training-sft"].axes
    assert [list(line.get_xdata()) for line in loss.lines] == [[1.0, 3.0]]


@pytest.mark.parametrize(
    "curves", [{}, {"warm-up": logged(3, loss=1.0)}, {"round-0/a/sft": logged(2, other=1.0)}]
)
def test_nothing_to_draw(curves: Any, tmp_path: Path) -> None:
    assert write_curves(curves, tmp_path) == []


def test_files_are_repeatable(tmp_path: Path) -> None:
    first, second = (
        {file.name: file.read_bytes() for file in write_curves(example(), tmp_path / folder)}
        for folder in ("a", "b")
    )
    assert first == second
    assert set(first) == {
        *("training-sft.png", "training-sft.svg", "training-dpo.png", "training-dpo.svg"),
    }
