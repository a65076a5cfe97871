"""A plan as a table for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from malt_jax.planning.plan import SAMPLING_STAGES, Plan, remedies
from malt_jax.progress import duration


def print_plan(plan: Plan, price: float | None, console: Console) -> None:
    """Prints what every program needs, what would make those fit that do not, and the totals."""
    place = plan.place
    console.print(_heading(plan), soft_wrap=True, highlight=False)
    limit = "?" if place.hbm_limit is None else _gib(place.hbm_limit)
    table = Table(title=f"{place.name}: one call on one device of {limit} GiB", box=box.SIMPLE)
    sizes = ("arguments", "temporaries", "GiB", "fits", "TFLOP", "GB", "net GB", "ms")
    for heading in ("program", *sizes, "bound", "calls"):
        left = heading in ("program", "bound")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for estimate in plan.estimates:
        memory, work = estimate.memory, estimate.work
        table.add_row(
            estimate.program.name,
            "" if memory is None else _gib(memory.arguments),
            "" if memory is None else _gib(memory.temporaries),
            _gib(estimate.hbm_bytes),
            "yes" if estimate.fits else "NO",
            f"{work.flops / 1e12:,.3f}",
            f"{work.bytes_accessed / 1e9:,.2f}",
            "" if estimate.network_bytes is None else f"{estimate.network_bytes / 1e9:,.2f}",
            "" if estimate.seconds is None else f"{estimate.seconds * 1e3:,.1f}",
            estimate.binds or "",
            f"{estimate.program.calls:,}",
        )
    # A number that is cut off is a wrong number, in a file and in a narrow window too.
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, needed)
    console.print(table)
    for estimate in plan.estimates:
        if not estimate.fits:
            advice = ", or ".join(remedies(plan, estimate))
            line = f"{estimate.program.name} does not fit; try {advice}"
            console.print(line, soft_wrap=True, highlight=False)
    console.print(_totals(plan, price), soft_wrap=True, highlight=False)


def _heading(plan: Plan) -> str:
    config, load = plan.config, plan.load
    longest = max(sum(role.levels) for role in load.roles) + load.completion_tokens
    return (
        f"{config.model.name}, {plan.shape.num_parameters / 1e9:.2f} billion parameters;"
        f" {load.train_questions} training questions, {load.test_questions} test questions,"
        f" {config.sampling.questions_per_batch} trees at once; completions of"
        f" {load.completion_tokens} tokens, longest sequence {longest}\n"
        f"sampling on {plan.sampling}, training on {plan.training}"
    )


def _totals(plan: Plan, price: float | None) -> str:
    totals = plan.totals(price)
    lines = [
        f"these programs: {totals['sampled_tokens'] / 1e6:,.1f} million tokens sampled,"
        f" {totals['trained_tokens'] / 1e6:,.1f} million trained on, padding included, in"
        f" {totals['steps']:,} updates"
    ]
    if totals["hours"] is None:
        return lines[0]
    parts = [
        f"{stage} {duration(3600 * hours)}"
        for stage in (*SAMPLING_STAGES[:1], "sft", "dpo", *SAMPLING_STAGES[1:])
        if (hours := plan.hours(stage))
    ]
    lines.append(
        f"at the published peaks: {totals['hours']:.1f} hours on {totals['chips']} chips,"
        f" {totals['chip_hours']:.0f} chip-hours ({', '.join(parts)})"
    )
    if price is not None:
        lines.append(f"at {price:g} dollars per chip-hour: {totals['dollars']:,.0f} dollars")
    lines.append(
        "A real run takes longer: it does not reach the peaks, what a device computes, reads and"
        " receives overlaps in part alone, and compilation, loading and grading come on top."
    )
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
