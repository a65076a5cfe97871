"""The plan of a run: whether its programs fit, what would make them fit, and its totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from malt_jax.errors import UserError
from malt_jax.malt import objectives
from malt_jax.malt.experiment import mesh_requests
from malt_jax.planning.estimate import Estimate
from malt_jax.planning.programs import Program, Workload
from malt_jax.planning.targets import Target
from malt_jax.progress import duration
from malt_jax.sharding.mesh import Hardware, Meshes, Sizes, build, choose

STAGES = ("trees", *objectives.STAGES, "evaluation")
SAMPLING_STAGES = ("trees", "evaluation")


def target_meshes(load: Workload, target: Target) -> Meshes:
    """The run's meshes on a target. Raises UserError for a mesh that does not fit."""
    hardware = Hardware.of(target.devices, target.hbm_limit)
    sizes = choose(*mesh_requests(load.config, load.shape, load.dtype), hardware)
    return Meshes(*(build(each, target.devices) for each in sizes))


def with_names(programs: Sequence[Program], parts: Sequence[str]) -> list[Program]:
    """The programs with one of these parts in their name. Raises UserError if there is none."""
    wanted = [program for program in programs if any(part in program.name for part in parts)]
    if not wanted:
        names = ", ".join(program.name for program in programs)
        raise UserError(f"--only {' '.join(parts)}: no program has such a name; there are {names}")
    return wanted


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a run on some devices."""

    target: Target
    load: Workload
    meshes: Meshes
    estimates: tuple[Estimate, ...]

    @property
    def fits(self) -> bool:
        return all(estimate.fits for estimate in self.estimates)

    def hours(self, stage: str | None = None) -> float | None:
        """Hours at the chip's peaks, of all programs or of those of one stage."""
        total = 0.0
        for estimate in self.estimates:
            if estimate.seconds is None:
                return None
            if stage in (None, estimate.program.stage):
                total += estimate.program.call.count * estimate.seconds
        return total / 3600

    def totals(self, price: float | None) -> dict[str, Any]:
        """Tokens, updates, hours and dollars of the run. price: dollars of one chip-hour."""
        programs = [estimate.program for estimate in self.estimates]
        tokens = {
            stage: sum(p.call.tokens * p.call.count for p in programs if p.stage == stage)
            for stage in STAGES
        }
        sampled = sum(tokens[stage] for stage in SAMPLING_STAGES)
        hours = self.hours()
        chip_hours = None if hours is None else hours * self.target.chips
        totals = {
            "sampled_tokens": sampled,
            "trained_tokens": sum(tokens.values()) - sampled,
            "tokens": sum(tokens.values()),
            "steps": sum(p.call.count for p in programs if p.updates),
            "hours": hours,
            "chips": self.target.chips,
            "chip_hours": chip_hours,
        }
        if price is not None:
            totals["dollars"] = None if chip_hours is None else chip_hours * price
        return totals

    def to_json(self, price: float | None) -> dict[str, Any]:
        """The plan as one JSON object; bytes, operations and seconds are those of one call on one
        device."""
        load = self.load
        return {
            "topology": self.target.name,
            "model": load.config.model.name,
            "parameters": load.shape.num_parameters,
            "sampling_mesh": Sizes.of(self.meshes.sampling)._asdict(),
            "training_mesh": Sizes.of(self.meshes.training)._asdict(),
            "assumed": {
                "completion_tokens": load.completion_tokens,
                "train_questions": load.train_questions,
                "test_questions": load.test_questions,
                "rows": {role.name: role.rows for role in load.roles},
                "pairs": {role.name: role.pairs for role in load.roles},
            },
            "fits": self.fits,
            "programs": [self._program(estimate) for estimate in self.estimates],
            "run": self.totals(price),
        }

    def _program(self, estimate: Estimate) -> dict[str, Any]:
        compiled = estimate.compiled
        memory = compiled and {
            "arguments": compiled.arguments,
            "temporaries": compiled.temporaries,
            "output": compiled.output,
            "resident": estimate.resident,
        }
        described = {
            "name": estimate.program.name,
            "fits": estimate.fits,
            "hbm_bytes": estimate.hbm_bytes,
            "hbm_limit_bytes": self.target.hbm_limit,
            "hbm": memory,
            **estimate.work._asdict(),
            "network_bytes": compiled and compiled.received,
            "roofline_seconds": estimate.seconds,
            "bound_by": estimate.limit,
            "calls": estimate.program.call.count,
        }
        if not estimate.fits:
            described["remedies"] = self.remedies(estimate)
        return described

    def remedies(self, estimate: Estimate) -> list[str]:
        """Options that lower a program's memory: half the batch, recomputation, a mesh that splits
        weights further."""
        config, stage, role = self.load.config, estimate.program.stage, estimate.program.role
        sizes, found = estimate.program.mesh, []
        if stage in SAMPLING_STAGES:
            section, option = "sampling_mesh", "sampling" if stage == "trees" else stage
            name, rows = "questions_per_batch", getattr(config, option).questions_per_batch
        else:
            section, option = "training_mesh", config.section_name(role, stage)
            name, options = "micro_batch_size", getattr(config.of_role(role), stage)
            rows = options.micro_batch_size or options.batch_size
        if rows % (2 * sizes.batch) == 0:
            found.append(f"{option}.{name}={rows // 2}")
        if section == "training_mesh" and not config.training.remat:
            found.append("training.remat=true")
        if sizes.tensor < sizes.devices:
            found.append(f"{section}.tensor={2 * sizes.tensor}")
        return found or ["more devices, or a smaller model"]


def print_plan(plan: Plan, price: float | None, console: Console) -> None:
    """Prints the needs of every program, remedies for those that do not fit, and the totals."""
    target = plan.target
    console.print(_heading(plan), soft_wrap=True, highlight=False)
    limit = "?" if target.hbm_limit is None else _gib(target.hbm_limit)
    table = Table(title=f"{target.name}: one call on one device of {limit} GiB", box=box.SIMPLE)
    sizes = ("arguments", "temporaries", "GiB", "fits", "TFLOP", "GB", "net GB", "ms")
    for heading in ("program", *sizes, "bound", "calls"):
        left = heading in ("program", "bound")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for estimate in plan.estimates:
        needed, work = estimate.compiled, estimate.work
        table.add_row(
            estimate.program.name,
            "" if needed is None else _gib(needed.arguments),
            "" if needed is None else _gib(needed.temporaries),
            _gib(estimate.hbm_bytes),
            "yes" if estimate.fits else "NO",
            f"{work.flops / 1e12:,.3f}",
            f"{work.bytes_accessed / 1e9:,.2f}",
            "" if needed is None else f"{needed.received / 1e9:,.2f}",
            "" if estimate.seconds is None else f"{estimate.seconds * 1e3:,.1f}",
            estimate.limit or "",
            f"{estimate.program.call.count:,}",
        )
    # A number that is cut off is a wrong number, in a file and in a narrow window too.
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.width = max(console.width, width)
    console.print(table)
    for estimate in plan.estimates:
        if not estimate.fits:
            advice = ", or ".join(plan.remedies(estimate))
            line = f"{estimate.program.name} does not fit; try {advice}"
            console.print(line, soft_wrap=True, highlight=False)
    console.print(_totals(plan, price), soft_wrap=True, highlight=False)


def _heading(plan: Plan) -> str:
    load, config = plan.load, plan.load.config
    sampling, training = Sizes.of(plan.meshes.sampling), Sizes.of(plan.meshes.training)
    longest = max(role.prompt_tokens for role in load.roles) + load.completion_tokens
    return (
        f"{config.model.name}, {load.shape.num_parameters / 1e9:.2f} billion parameters;"
        f" {load.train_questions} training questions, {load.test_questions} test questions,"
        f" {config.sampling.questions_per_batch} trees at once; completions of"
        f" {load.completion_tokens} tokens, longest sequence {longest}\n"
        f"sampling on {sampling}, training on {training}"
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
        f"{stage} {duration(3600 * hours)}" for stage in STAGES if (hours := plan.hours(stage))
    ]
    lines.append(
        f"at the published peaks: {totals['hours']:.1f} hours on {totals['chips']} chips,"
        f" {totals['chip_hours']:.0f} chip-hours ({', '.join(parts)})"
    )
    if price is not None:
        lines.append(f"at {price:g} dollars per chip-hour: {totals['dollars']:,.0f} dollars")
    lines.append(
        "A real run takes longer: it does not reach the peaks, overlaps only a part of its"
        " communication, and also compiles, loads and grades."
    )
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
