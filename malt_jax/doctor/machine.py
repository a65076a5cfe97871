"""Checks of this machine: versions, devices, memory, disk."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
from pathlib import Path

import jax

from malt_jax.command import TPU_DEVICES
from malt_jax.doctor.check import Finding, amount, check
from malt_jax.errors import UserError
from malt_jax.runs.directory import versions

LEAST_DISK = 1e9
"""Bytes that must be free; checkpoints of small models and trees take less."""

_EXTRAS = {
    "gcsfs": "gcs",
    "reasoning_gym": "gym",
    "tensorflow_datasets": "tfds",
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "fastapi": "serve",
}
"""The module that tells whether an extra is installed -> the extra."""


def machine(directory: Path) -> list[Finding]:
    """The findings about this machine. directory: on the disk that has to have space."""
    return [
        check("versions", _versions),
        check("extras", _extras),
        check("devices", _devices),
        check("memory", _memory),
        check("disk", lambda: _disk(directory)),
    ]


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def _extras() -> str:
    found = [extra for module, extra in _EXTRAS.items() if importlib.util.find_spec(module)]
    return ", ".join(found) or "none is installed"


def _devices() -> str:
    devices = jax.devices()
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    if jax.default_backend() == "cpu" and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        for patterns, name, extra in (
            (TPU_DEVICES, "a TPU", "tpu"),
            (("/dev/nvidia[0-9]*",), "an NVIDIA GPU", "cuda13"),
        ):
            if any(glob.glob(pattern) for pattern in patterns):
                raise UserError(
                    f"this machine has {name}, but JAX finds only the CPU: install the extra"
                    f" {extra}, or set JAX_PLATFORMS=cpu if that is meant"
                )
    return f"{len(devices)} of {', '.join(kinds)}"


def _memory() -> str:
    texts = [f"{amount(_free_memory())} are free on this machine"]
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
            texts.append(f"{amount(free)} of {amount(stats['bytes_limit'])} on {device}")
    return ", ".join(texts)


def _free_memory() -> float:
    """Bytes that new arrays can take without swapping; all memory where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _disk(directory: Path) -> str:
    free = shutil.disk_usage(directory).free
    text = f"{amount(free)} are free in {directory}"
    if free < LEAST_DISK:
        raise UserError(f"only {text}: delete old runs, or use another disk")
    return text
