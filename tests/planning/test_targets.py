"""Roofline times, names of topologies, and the compiler's messages about memory."""

import pytest

from malt_jax.errors import UserError
from malt_jax.planning.targets import CHIPS, SHAPES, Topology, out_of_memory


@pytest.mark.parametrize(
    "name, slices, chips",
    [
        ("v5e:4x4", 1, 16),
        ("V6E:2x4", 1, 8),
        ("v4:2x2x1", 1, 4),
        ("v5p:4x4x8", 2, 256),
        ("tpu7x:2x2x1", 1, 4),
    ],
)
def test_sizes(name: str, slices: int, chips: int) -> None:
    topology = Topology.parse(name, slices)
    assert topology.chips == chips
    assert name.lower() in topology.name


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "", "v4:4x4"])
def test_an_unknown_topology_lists_those_that_exist(name: str) -> None:
    with pytest.raises(UserError) as error:
        Topology.parse(name)
    for generation, shapes in SHAPES.items():
        assert f"{generation}: {shapes}" in str(error.value)


def test_there_is_no_topology_of_no_slices() -> None:
    with pytest.raises(UserError, match="--slices is 0"):
        Topology.parse("v5e:4x4", 0)


def test_names_say_the_slices() -> None:
    assert Topology("v5e", "4x4", 2).name == "2 x v5e:4x4"


@pytest.mark.parametrize(
    "message, need, limit",
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space"
            " hbm. Used 16.54G of 15.75G hbm. Exceeded hbm capacity by 810.23M.",
            16.54,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
            " temporaries (1.25T) exceeds available HBM (15.75G).",
            1280,
            15.75,
        ),
    ],
)
def test_refusals_name_need_and_limit(message: str, need: float, limit: float) -> None:
    assert out_of_memory(message) == (round(need * 2**30), round(limit * 2**30))


def test_other_errors_are_not_about_memory() -> None:
    assert out_of_memory("INTERNAL: something else, 3.5G of nothing") is None


def test_the_slower_limit_limit() -> None:
    chip = CHIPS["TPU v5 lite"]
    assert chip.seconds(197e12, 1.0) == (1.0, "compute")
    assert chip.seconds(1.0, 819e9) == (1.0, "memory")
    # At the ridge, 240.5 operations a byte, both take the same time.
    seconds, limit = chip.seconds(2 * 197e12, 2 * 819e9)
    assert (seconds, limit) == (2.0, "compute")
    assert chip.seconds(197e12, 819e9, 3 * 200e9) == (3.0, "network")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_numbers_have_their_units(chip) -> None:
    assert 1e14 < chip.flops < 1e16 and 5e11 < chip.hbm_bandwidth < 1e13
    assert 1e11 < chip.interconnect < chip.hbm_bandwidth
