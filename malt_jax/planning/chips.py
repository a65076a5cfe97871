"""Published peak numbers of accelerators, for roofline times."""

from __future__ import annotations

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one JAX device can do at most, by its maker's own account.

    Where a chip is several devices of JAX (tpu7x), the numbers are those of one device.
    """

    name: str
    flops: float
    """bfloat16 operations per second, without sparsity."""
    hbm_bytes: float
    """The compiler leaves a part of it to the runtime; see `topologies.usable_hbm`."""
    hbm_bandwidth: float
    """Bytes per second."""
    interconnect: float
    """Bytes per second that a device can receive from those of its slice or machine over all of its
    links: half of what is published as bidirectional."""
    source: str

    def seconds(
        self, flops: float, bytes_accessed: float, network_bytes: float = 0.0
    ) -> tuple[float, str]:
        """The least time for so much work on one device, and what binds: "compute", "memory" or
        "network".

        The roofline model (Williams, Waterman, Patterson 2009): the slowest of the limits, as if
        they overlapped perfectly and nothing else took time.
        """
        times = {
            "compute": flops / self.flops,
            "memory": bytes_accessed / self.hbm_bandwidth,
            "network": network_bytes / self.interconnect,
        }
        binds = max(times, key=times.__getitem__)
        return times[binds], binds


_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs"

CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * _GIB, 1200e9, 300e9, f"{_TPU_DOCS}/v4, arXiv 2304.01433"),
    "TPU v5 lite": Chip("v5e", 197e12, 16e9, 819e9, 200e9, f"{_TPU_DOCS}/v5e"),
    "TPU v5": Chip("v5p", 459e12, 95e9, 2765e9, 600e9, f"{_TPU_DOCS}/v5p"),
    "TPU v6 lite": Chip("v6e", 918e12, 32e9, 1640e9, 400e9, f"{_TPU_DOCS}/v6e"),
    # 2,307 TFLOP/s, 192 GiB, 7,380 GB/s and 1,200 GB/s both ways a chip, which is two devices.
    "TPU7x": Chip("tpu7x", 2307e12 / 2, 96 * _GIB, 7380e9 / 2, 600e9 / 2, f"{_TPU_DOCS}/tpu7x"),
    "NVIDIA A100-SXM4-80GB": Chip(
        "A100 80GB", 312e12, 80e9, 2039e9, 300e9, "NVIDIA A100 Tensor Core GPU datasheet"
    ),
    "NVIDIA H100 80GB HBM3": Chip(
        "H100 SXM", 989.4e12, 80e9, 3350e9, 450e9, "NVIDIA H100 Tensor Core GPU datasheet"
    ),
    "NVIDIA H200": Chip("H200 SXM", 989.4e12, 141e9, 4800e9, 450e9, "NVIDIA H200 datasheet"),
}
"""By JAX's `device_kind`."""
