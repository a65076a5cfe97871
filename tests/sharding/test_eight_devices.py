"""One device and eight: the same completions, token for token, and the same adapters.

Sums over a split axis are rounded in another order, which is all that may differ.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.distributed.several import ROOT
from tests.sharding.eight_devices import LEARNING_RATE, MESHES

# In float32, after six updates. Adam divides a gradient by its own size: where that is near 0, the
# last bit of a sum becomes a share of an update. So a few numbers may differ by up to an update,
# and 995 of 1,000 by far less. Of 11,136, one differs by 4e-4 to 1.1e-3, and 6 to 18 by more than
# 1e-5, depending on the optimizations of XLA.
TOLERANCE = LEARNING_RATE
USUAL_TOLERANCE = 0.001 * LEARNING_RATE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    file = tmp_path_factory.mktemp("eight") / "outcomes.npz"
    command = [sys.executable, "-m", "tests.sharding.eight_devices", str(file)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    with np.load(file) as arrays:
        return dict(arrays)


def alone(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The results without a mesh."""
    return {
        name.removeprefix("alone/"): value
        for name, value in found.items()
        if name.startswith("alone/")
    }


@pytest.mark.parametrize("mesh", MESHES)
def test_completions_are_the_same_token_for_token(mesh: str, found: dict[str, np.ndarray]) -> None:
    one_device = alone(found)
    for name in ("tokens", "finish"):
        np.testing.assert_array_equal(found[f"{mesh}/{name}"], one_device[name])
    assert len(np.unique(one_device["finish"])) == 2
    # Six questions are padded to eight; four parts of two shrink to parts of one.
    assert set(found[f"{mesh}/sizes"]) == ({8, 4} if mesh == "all" else {8})
    np.testing.assert_allclose(
        found[f"{mesh}/log_probabilities"], one_device["log_probabilities"], atol=1e-4
    )


@pytest.mark.parametrize("mesh", MESHES)
def test_requests_in_slots_get_the_same_tokens(mesh: str, found: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(found[f"{mesh}/served_tokens"], found["alone/served_tokens"])
    assert (found["alone/served_tokens"] > 0).any(axis=1).all()


def test_windows_are_the_same_on_data_and_tensor_shards(found: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(found["all/window_tokens"], found["alone/window_tokens"])
    np.testing.assert_allclose(
        found["all/window_log_probabilities"], found["alone/window_log_probabilities"], atol=1e-4
    )


@pytest.mark.parametrize("mesh", MESHES)
def test_training_ends_in_the_same_adapters(mesh: str, found: dict[str, np.ndarray]) -> None:
    one_device = alone(found)
    adapters = [name for name in one_device if name.startswith(("sft", "dpo"))]
    assert len(adapters) == 2 * 2 * 7
    differences = []
    for name in adapters:
        np.testing.assert_allclose(
            found[f"{mesh}/{name}"], one_device[name], atol=TOLERANCE, err_msg=name
        )
        differences.append(np.abs(found[f"{mesh}/{name}"] - one_device[name]).ravel())
        assert differences[-1].mean() < USUAL_TOLERANCE
        assert np.abs(one_device[name]).max() > LEARNING_RATE
    assert (np.concatenate(differences) < USUAL_TOLERANCE).mean() > 0.995
    for name in ("losses", "reference_logps"):
        np.testing.assert_allclose(found[f"{mesh}/{name}"], one_device[name], atol=1e-3)


def test_a_checkpoint_is_read_into_its_shards_and_moved_between_meshes(
    found: dict[str, np.ndarray],
) -> None:
    assert found["reloaded/same"].all() and found["reloaded/sharding"].all()
    read, tensors = found["reloaded/read"]
    assert read == tensors
    # Split over fsdp and tensor, or over tensor alone; the norms are not.
    assert set(found["reloaded/share"]) == {0.25, 1.0}
    assert set(found["reloaded/moved_share"]) == {0.5, 1.0}


def test_the_sampler_gets_the_weights_of_a_role_on_its_own_mesh(
    found: dict[str, np.ndarray],
) -> None:
    assert found["variables/error"].max() < 1e-6
    assert found["variables/same_base"].all() and found["variables/shared"].all()
    assert set(found["variables/merged_share"]) == {1 / 2, 1.0}
    assert set(found["variables/training_share"]) == {1 / 8, 1.0}
