"""The choice of meshes, and the errors for options that do not fit."""

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp
import pytest

from malt_jax.checkpoints.checkpoint import PRESETS
from malt_jax.config import load_config
from malt_jax.errors import UserError
from malt_jax.malt.experiment import mesh_requests, meshes
from malt_jax.sharding.mesh import Hardware, Sizes, build, choose

GIB = 2**30
LLAMA_8B = PRESETS["llama-3.1-8b"]


def chosen(hardware: Hardware, *overrides: str, model: str = "llama-3.1-8b") -> tuple[Sizes, Sizes]:
    config = load_config(None, overrides)
    return choose(*mesh_requests(config, PRESETS[model], jnp.bfloat16), hardware)


@pytest.mark.parametrize(
    ("hardware", "sampling", "training"),
    [
        (Hardware(1, 80 * GIB), Sizes(1, 1, 1), Sizes(1, 1, 1)),
        (Hardware(16, 15.75 * GIB), Sizes(4, 1, 4), Sizes(1, 8, 2)),  # v5e-16
        (Hardware(8, 31.25 * GIB), Sizes(4, 1, 2), Sizes(1, 8, 1)),  # v6e-8
        (Hardware(4, 95 * GIB), Sizes(4, 1, 1), Sizes(1, 4, 1)),  # v5p-8
        (Hardware(4, 30.75 * GIB), Sizes(2, 1, 2), Sizes(1, 4, 1)),  # v4-8
        (Hardware(8, 80 * GIB, slices=2), Sizes(8, 1, 1), Sizes(2, 4, 1)),
    ],
)
def test_llama_8b_is_split_as_far_as_memory_and_batch_say(
    hardware: Hardware, sampling: Sizes, training: Sizes
) -> None:
    assert chosen(hardware) == (sampling, training)


def test_small_models_are_copied_to_every_device() -> None:
    assert chosen(Hardware(8, 16 * GIB), model="smollm2-135m") == (Sizes(8, 1, 1), Sizes(8, 1, 1))


def test_training_all_weights_is_split_further_than_training_adapters() -> None:
    hardware = Hardware(8, 80 * GIB)
    lora, full = (
        chosen(hardware, f"training.method={method}", model="llama-3.2-1b")[1]
        for method in ("lora", "full")
    )
    assert lora == Sizes(8, 1, 1) and full == Sizes(1, 8, 1)


def test_options_fix_what_they_name() -> None:
    hardware = Hardware(16, 15.75 * GIB)
    sampling, training = chosen(hardware, "sampling_mesh.tensor=8", "training_mesh.data=4")
    assert sampling == Sizes(2, 1, 8)
    assert training.data == 4 and training.devices == 16
    explicit = ["sampling_mesh.data=2", "sampling_mesh.fsdp=2", "sampling_mesh.tensor=4"]
    assert chosen(hardware, *explicit)[0] == Sizes(2, 2, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling_mesh.tensor=3"], r"sampling_mesh.tensor=3 cannot make up the 16 devices"),
        (["training_mesh.data=4", "training_mesh.fsdp=8"], r"data=4 x training_mesh.fsdp=8 cannot"),
        (
            ["sampling_mesh.tensor=16"],
            r"tensor=16 does not divide the model's key-value heads of 8: .* 1, 2, 4, 8",
        ),
        (
            ["training_mesh.fsdp=16"],
            r"= 16 does not divide sft.batch_size=8: make sft.batch_size a multiple of 16",
        ),
        (
            ["sft.batch_size=32", "dpo.micro_batch_size=2", "training_mesh.tensor=1"],
            r"= 16 does not divide dpo.micro_batch_size=2",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_number_to_change(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen(Hardware(16, 15.75 * GIB), *overrides)


def test_widths_and_slices_are_refused_likewise() -> None:
    odd = dataclasses.replace(LLAMA_8B, d_model=4095, vocab_size=128_255)
    config = load_config(None, ["sampling_mesh.fsdp=2", "sampling_mesh.tensor=2"])
    with pytest.raises(UserError) as caught:
        choose(*mesh_requests(config, odd, jnp.bfloat16), Hardware(4, 80 * GIB))
    assert "fsdp=2 does not divide the model's model width of 4095" in str(caught.value)
    assert "tensor=2 does not divide the model's vocabulary of 128255" in str(caught.value)
    with pytest.raises(UserError, match=r"data=1 is not a multiple of the 2 slices"):
        chosen(Hardware(8, 80 * GIB, slices=2), "training_mesh.data=1")


@pytest.mark.parametrize("value", [0, -2])
def test_sizes_are_positive(value: int) -> None:
    with pytest.raises(UserError, match=r"sampling_mesh.data: must be .* 1 or more"):
        load_config(None, [f"sampling_mesh.data={value}"])


def test_the_choice_and_its_reason_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        chosen(Hardware(1, 80 * GIB))
        assert not caplog.messages
        chosen(Hardware(16, 15.75 * GIB))
    sampling, training = caplog.messages
    assert "sampling on 16 devices: data=4 x fsdp=1 x tensor=4" in sampling
    assert "16.1 GB take 4.02 GB of each device's 16.9 GB" in sampling
    assert "training on 16 devices: data=1 x fsdp=8 x tensor=2" in training


def test_a_run_has_both_meshes_over_all_devices() -> None:
    devices = jax.devices()
    placed = meshes(load_config(), PRESETS["smollm2-135m"], jnp.float32)
    for mesh in (placed.sampling, placed.training):
        assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.size == len(devices)
    assert build(Sizes(len(devices), 1, 1), devices).shape["data"] == len(devices)
    assert Hardware.of(devices).memory > 2**28 and math.isfinite(Hardware.of(devices).memory)
