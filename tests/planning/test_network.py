"""Bytes between devices, of programs whose collectives are known."""

import os
import subprocess
import sys

import pytest

from malt_jax.planning.costs import received_bytes
from tests.distributed.several import ROOT

# Eight devices hold 100 float32 each, in the shape [10, 10]. The numbers of elements that one of
# them receives stand next to the programs.
PROGRAM = """
import functools
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
from malt_jax.planning.costs import received_bytes

mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
x = jax.ShapeDtypeStruct((20, 40), jnp.float32)


def elements(f, loop_steps=1):
    split = jax.shard_map(
        f, mesh=mesh, in_specs=P("data", "tensor"), out_specs=P("data", "tensor"), check_vma=False
    )
    return received_bytes(jax.jit(split).lower(x).compile().as_text(), loop_steps) / 4


def repeated(times):
    return lambda x: lax.scan(lambda x, _: (lax.psum(x, "data") * 0.5, None), x, length=times)[0]


def until_small(x):
    def step(x):
        return lax.psum(x, "tensor") * 0.1

    return lax.while_loop(lambda x: jnp.abs(x[0, 0]) > 1.0, step, x)


def sometimes(x):
    def all_gather(x):
        return lax.all_gather(x, "tensor").sum(0)

    return lax.cond(x[0, 0] > 0, all_gather, lambda x: lax.psum(x, "tensor"), x)


def four(x):
    return jnp.tile(x, (4, 1))


cyclic = [(i, (i + 1) % 4) for i in range(4)]
found = {
    "all-gather": elements(lambda x: lax.all_gather(x, "tensor").sum(0)),
    "all-reduce": elements(lambda x: lax.psum(x, "tensor")),
    "of all": elements(lambda x: lax.psum(x, ("data", "tensor"))),
    "reduce-scatter": elements(lambda x: lax.psum_scatter(four(x), "tensor", tiled=True)),
    "all-to-all": elements(lambda x: lax.all_to_all(four(x), "tensor", 0, 0, tiled=True)),
    "permutation": elements(lambda x: lax.ppermute(x, "tensor", cyclic)),
    "scan": elements(repeated(7)),
    "nested": elements(lambda x: lax.fori_loop(0, 3, lambda _, x: repeated(5)(x), x)),
    "while": elements(until_small, 11),
    "cond": elements(sometimes),
    "none": elements(lambda x: x * 2),
}
for name, value in found.items():
    print(name, value, sep=": ")
"""
ELEMENTS = {
    "all-gather": 3 * 100,
    "all-reduce": 2 * 3 / 4 * 100,
    "of all": 2 * 7 / 8 * 100,
    "reduce-scatter": 3 / 4 * 400,
    "all-to-all": 3 / 4 * 400,
    "permutation": 100,
    "scan": 7 * 100,
    "nested": 3 * 5 * 100,
    "while": 11 * 2 * 3 / 4 * 100,
    "cond": 3 * 100,
    "none": 0,
}


def test_collectives_of_eight_devices() -> None:
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    lines = (line.split(": ") for line in done.stdout.splitlines())
    assert {name: float(value) for name, value in lines} == pytest.approx(ELEMENTS)


HEAD = "HloModule m, num_partitions=8\n\nENTRY %main (p: f32[100]) -> f32[400] {\n"


@pytest.mark.parametrize(
    ("lines", "elements"),
    [
        # As compilers write it for TPUs and for GPUs: groups by axes, parts that run meanwhile.
        (
            "  ROOT %r = f32[100]{0} all-reduce(%p), replica_groups=mesh['a'=4,'b'=2] {'a'}",
            2 * 3 / 4 * 100,
        ),
        (
            "  %s = (f32[100], f32[400]) all-gather-start(%p), replica_groups=[2,4]<=[8]\n"
            "  ROOT %r = f32[400]{0} all-gather-done(%s)",
            3 * 100,
        ),
        (
            "  %q = bf16[100]{0:T(256)} convert(%p)\n"
            "  ROOT %r = (bf16[100]{0}, f32[100]{0}) all-reduce(%q, %p), replica_groups={}",
            2 * 7 / 8 * (50 + 100),
        ),
    ],
)
def test_notations(lines: str, elements: float) -> None:
    text = f"{HEAD}  %p = f32[100]{{0}} parameter(0)\n{lines}\n}}\n"
    assert received_bytes(text) / 4 == pytest.approx(elements)
