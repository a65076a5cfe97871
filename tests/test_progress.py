"""What people see of long work."""

import io

import pytest
from rich.console import Console

from malt_jax.progress import Progress, duration


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=40), output


def test_lines_are_rare_and_end_with_a_summary() -> None:
    console, output = plain()
    clock = Clock()
    with Progress("trees", 40, "questions", console=console, clock=clock) as progress:
        for done in range(1, 41):
            clock.now += 1.0
            progress.update(done=done, tokens=1000 * done)
    shown = output.getvalue().splitlines()
    assert len(shown) == 5
    assert shown[0] == "trees: 10/40 questions, 1 questions/s, 1,000 tokens/s, 30 s left"
    assert shown[-1] == "trees: 40 questions in 40 s, 1 questions/s, 1,000 tokens/s"


def test_values_and_a_resumed_start() -> None:
    console, output = plain()
    clock = Clock()
    with Progress("sft", 100, "steps", start=60, console=console, clock=clock) as progress:
        clock.now += 10.0
        progress.update(done=80, loss=0.69315, role="verifier")
    assert output.getvalue().splitlines()[0] == (
        "sft: 80/100 steps, 2 steps/s, loss 0.693, role verifier, 10 s left"
    )


def test_the_rate_forgets_a_slow_start() -> None:
    console, output = plain()
    clock = Clock()
    with Progress("sft", 10_000, "steps", console=console, clock=clock) as progress:
        clock.now += 300.0
        progress.update(done=1)
        for step in range(2, 200):
            clock.now += 1.0
            progress.update(done=step)
    assert ", 1 steps/s," in output.getvalue().splitlines()[-2]


def test_stopping_early_says_so() -> None:
    console, output = plain()
    clock = Clock()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress("trees", 4, "questions", console=console, clock=clock) as progress,
    ):
        clock.now += 2.0
        progress.update(done=1)
        raise KeyboardInterrupt
    assert output.getvalue() == "trees: 1/4 questions in 2 s, 0.5 questions/s, stopped\n"


def test_on_a_terminal_one_line_is_renewed() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    with Progress("trees", 4, "questions", console=console) as progress:
        progress.update(done=2)
    text = output.getvalue()
    assert "\x1b[" in text and text.rstrip().splitlines()[-1].count("trees: 2 questions") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
