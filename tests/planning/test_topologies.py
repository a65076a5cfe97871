"""Names of topologies, and what the compiler says about memory."""

import pytest

from malt_jax.errors import UserError
from malt_jax.planning.topologies import SHAPES, Topology, out_of_memory, parse_topology


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
    topology = parse_topology(name, slices)
    assert topology.chips == chips
    assert name.lower() in topology.name


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:2x2", "v5e", "", "v4:4x4"])
def test_an_unknown_topology_lists_those_that_exist(name: str) -> None:
    with pytest.raises(UserError) as error:
        parse_topology(name)
    for generation, shapes in SHAPES.items():
        assert f"{generation}: {', '.join(shapes)}" in str(error.value)


def test_there_is_no_topology_of_no_slices() -> None:
    with pytest.raises(UserError, match="--slices is 0"):
        parse_topology("v5e:4x4", 0)


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
