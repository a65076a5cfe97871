"""Settings of every test: no silent promotion of types or ranks, exact float32 products."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all of the tests' time is compilation of programs that run for milliseconds, and most of
# that is optimizing their code. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def _take_one_core() -> None:
    """Gives each parallel test process a core of its own, before JAX counts them.

    Otherwise each starts a thread for every core, and they wait for one another.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


_take_one_core()

from jaxtyping import install_import_hook

import tests.typecheck

install_import_hook("malt_jax", f"{tests.typecheck.__name__}.check_shapes")

from malt_jax.command import compile_faster_on_cpus

compile_faster_on_cpus()

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# The same examples on every machine, and no failure because a machine is busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a test does may reach for a model hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
