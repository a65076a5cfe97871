"""The sharding of every array, against reviewed files; device_put and back to the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from malt_jax.config import MESH_AXES
from malt_jax.sharding.mesh import Sizes, build
from malt_jax.sharding.rules import (
    RULES,
    ArraySpec,
    abstract,
    array_specs,
    batch_shards,
    device_put,
    partition,
    to_host,
    zeros,
)
from tests.sharding.golden_shardings import CASES, FOLDER, arrays, device_bytes, text

MEGABYTE = 1_000_000


@pytest.mark.parametrize("case", CASES)
def test_the_shardings_are_the_reviewed_ones(case: str) -> None:
    """Update the files with `python -m tests.sharding.golden_shardings` and review the change."""
    assert text(case) == (FOLDER / f"{case}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_nothing_large_is_replicated_by_accident(case: str) -> None:
    for title, members in arrays(case).items():
        for path, array in members.items():
            whole = array.size * array.dtype.itemsize
            # LoRA's narrow matrices along the model's width: only "fsdp" splits that, and sampling
            # has none of it, so that no step has to gather them.
            narrow = "adapter" in title and path.endswith(("/a", "o/b", "down/b"))
            if whole > MEGABYTE and not narrow:
                assert device_bytes(array) <= whole / 2, (title, path)
            if whole > 100 * MEGABYTE:
                sizes = array.sharding.mesh.shape
                parts = sizes["fsdp"] * sizes["tensor"]
                if path.endswith(("keys", "values")) and "level 0" not in title:
                    parts *= sizes["data"]
                assert device_bytes(array) == whole / parts, (title, path)


def test_every_mesh_axis_splits_something_and_no_array_twice() -> None:
    assert {axis for axes in RULES.values() for axis in axes} == set(MESH_AXES)
    for case in CASES:
        for members in arrays(case).values():
            for array in members.values():
                used = [axis for entry in array.sharding.spec for axis in np.atleast_1d(entry)]
                used = [axis for axis in used if axis is not None]
                assert len(used) == len(set(used))


def test_partitions_name_only_axes_that_split() -> None:
    axes = P("batch", None, "heads", "embed", None)
    assert partition(AbstractMesh((2, 2, 2), MESH_AXES), axes) == P(
        ("data", "fsdp"), None, "tensor", "fsdp"
    )
    assert partition(AbstractMesh((1, 2, 1), MESH_AXES), P("batch", "heads")) == P("fsdp")
    assert partition(AbstractMesh((1, 1, 1), MESH_AXES), axes) == P()
    with pytest.raises(KeyError, match="hheads"):
        partition(AbstractMesh((2, 2, 2), MESH_AXES), P("hheads"))


def test_abstract_arrays_and_zeros_follow_from_specs() -> None:
    mesh = AbstractMesh((2, 2, 2), MESH_AXES)
    specs = {"x": ArraySpec((4, 6), jnp.float32, P("batch", "heads")), "none": None}
    abstracted = abstract(mesh, specs)
    assert abstracted["x"].sharding == NamedSharding(mesh, P(("data", "fsdp"), "tensor"))
    assert abstract(None, specs)["x"].sharding is None
    made = zeros(specs)
    assert made["x"].shape == (4, 6) and array_specs(made, P("batch", "heads")) == specs


def test_without_a_mesh_nothing_moves() -> None:
    tree = {"x": np.arange(3)}
    assert device_put(None, tree, P("batch")) is tree
    assert batch_shards(None) == 1


def test_device_put_and_back() -> None:
    mesh = build(Sizes(1, 1, 1), jax.devices()[:1])
    tree = {"x": np.arange(6.0, dtype=np.float32), "keys": jax.random.split(jax.random.key(0), 2)}
    placed = device_put(mesh, tree, P("batch"))
    whole = NamedSharding(mesh, P())
    assert all(leaf.sharding.is_equivalent_to(whole, leaf.ndim) for leaf in placed.values())
    np.testing.assert_array_equal(to_host(placed["x"]), tree["x"])
    np.testing.assert_array_equal(
        jax.random.key_data(placed["keys"]), jax.random.key_data(tree["keys"])
    )
