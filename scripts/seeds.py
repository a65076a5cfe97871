"""Runs the quickstart with several seeds and prints one Markdown table of all of them.

    python scripts/seeds.py runs/seeds 0 1 2 3 4 [section.field=value ...]

A seed decides the questions, all draws and the adapters' beginnings; the base model is the same.
The interval of a mean over seeds is Student's t over the seeds' own means.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

# 97.5 % quantiles of Student's t by degrees of freedom (seeds - 1).
STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    half = STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def main() -> None:
    folder, *rest = sys.argv[1:]
    seeds = [word for word in rest if "=" not in word]
    overrides = [word for word in rest if "=" in word]
    runs = []
    for seed in seeds:
        directory = Path(folder) / f"seed-{seed}"
        command = [sys.executable, "-m", "malt_jax.train", "--run-dir", str(directory)]
        if status := subprocess.run([*command, f"seed={seed}", *overrides]).returncode:
            sys.exit(status)
        runs.append(json.loads((directory / "results.json").read_text()))
    print("| system | accuracy %, mean of seeds ± 95 % | each seed | malt+mv ahead by ± 95 % |")
    print("|---|---|---|---|")
    for system in runs[0]["systems"]:
        values = [100 * run["systems"][system]["accuracy"] for run in runs]
        mean, half = interval(values)
        row = [system, f"{mean:.1f} ± {half:.1f}", " ".join(f"{value:.1f}" for value in values), ""]
        if system != "malt+mv":
            name = f"malt+mv - {system}"
            ahead, half = interval([100 * r["comparisons"][name]["difference"] for r in runs])
            row[-1] = f"{ahead:+.1f} ± {half:.1f}"
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
