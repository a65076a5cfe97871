"""Roofline times."""

import pytest

from malt_jax.planning.chips import CHIPS


def test_the_slower_limit_binds() -> None:
    chip = CHIPS["TPU v5 lite"]
    assert chip.seconds(197e12, 1.0) == (1.0, "compute")
    assert chip.seconds(1.0, 819e9) == (1.0, "memory")
    # At the ridge, 240.5 operations a byte, both take the same time.
    seconds, binds = chip.seconds(2 * 197e12, 2 * 819e9)
    assert (seconds, binds) == (2.0, "compute")
    assert chip.seconds(197e12, 819e9, 3 * 200e9) == (3.0, "network")


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_numbers_have_their_units(chip) -> None:
    assert 1e14 < chip.flops < 1e16 and 5e11 < chip.hbm_bandwidth < 1e13
    assert 15e9 < chip.hbm_bytes < 3e11 and chip.source
    assert 1e11 < chip.interconnect < chip.hbm_bandwidth
