"""Processes that compare, and what becomes of them."""

import logging
from pathlib import Path

import pytest

from malt_jax.grading import algebra
from malt_jax.grading.algebra import _Pool, equal, is_bounded


@pytest.fixture
def pool():
    made = _Pool()
    yield made
    made.close()


def test_verdicts_of_the_computer_algebra_system():
    assert equal(r"\int_0^1 x\,dx", r"\frac{1}{2}")
    assert equal(r"\frac{1}{2}", r"\int_0^1 x\,dx")
    assert not equal(r"\int_0^1 x\,dx", r"\frac{1}{3}")


@pytest.mark.parametrize(
    ("limit", "value", "reason"), [("SECONDS", 0.0, "seconds"), ("BYTES", 1000, "GB")]
)
def test_a_process_past_its_limits_costs_one_verdict(
    pool: _Pool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limit: str,
    value: float,
    reason: str,
):
    pool.start()
    pool._workers[1].wait_until_ready()
    first = pool._workers[0]._process
    # Long enough that the parent looks at the process before it has answered.
    slow = r"\int \sin(x^3) \cos(x^2) \ln(x) e^{x^2} dx"
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(algebra, limit, value)
        assert not pool.ask(slow, "2")
    assert pool.lost == 1
    assert reason in caplog.text
    assert first.returncode == -9
    assert pool.ask("x + x", "2x")


def test_a_process_that_dies_is_replaced(pool: _Pool):
    pool.start()
    pool._workers[0]._process.kill()
    assert not pool.ask("1", "1")
    assert pool.ask("1", "1")


def test_nothing_is_evaluated_as_python(pool: _Pool, tmp_path: Path):
    trace = tmp_path / "executed"
    code = f"open('{trace}', 'w')"
    for text in (
        code,
        f"\\text{{{code}}}",
        f"\\operatorname{{{code}}}(1)",
        f"1 + {code}",
        f"${code}$",
    ):
        assert not pool.ask(text, "1")
    assert not trace.exists()
    assert pool.ask("1", "1")


@pytest.mark.parametrize(
    "latex",
    ["x" * 301, "9^{9^9}", "10000!", "2^{99999}", "(" * 16 + "x" + ")" * 16, "3!!", "x^1" * 21],
)
def test_bounds(latex: str):
    assert not is_bounded(latex)
    assert is_bounded(r"\sum_{k=1}^{10} \frac{k^2}{2}")
