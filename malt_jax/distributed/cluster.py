"""Which processes a run consists of: from the options, a TPU pod or a SLURM step."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping

from malt_jax.config import ProcessesConfig
from malt_jax.errors import UserError

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among those of its run."""

    coordinator: str
    """HOST:PORT at which process 0 waits for the others."""
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    """The accelerators of this host that are this process's; None: all."""


def find_place(
    config: ProcessesConfig, environment: Mapping[str, str] = os.environ
) -> Place | None:
    """Where this process stands; None when it is alone. Options win over what a cluster tells.

    Raises UserError when options are missing or contradict one another, and when the cluster that
    they name is not there.
    """
    options = {name: getattr(config, name) for name in ("coordinator", "count", "index")}
    given = {name: value for name, value in options.items() if value is not None}
    found = Place("", 1, 0)
    if len(given) < len(options):
        cluster = _cluster(config.cluster, environment)
        if cluster is None and config.cluster in ("slurm", "tpu"):
            raise UserError(
                f"processes.cluster is {config.cluster}, but this process was not started in one:"
                " give processes.coordinator, processes.count and processes.index"
            )
        if cluster is None and given:
            missing = [f"processes.{name}" for name in options if name not in given]
            raise UserError(f"several processes need {' and '.join(missing)} as well")
        found = cluster or found
    place = dataclasses.replace(found, **given)
    if place.index >= place.count:
        raise UserError(
            f"processes.index is {place.index}, but the indices of {place.count} processes are 0"
            f" to {place.count - 1}"
        )
    return place if place.count > 1 else None


def _cluster(name: str, environment: Mapping[str, str]) -> Place | None:
    """What the cluster that this process runs in tells, if it runs in one."""
    if name in ("auto", "slurm") and all(variable in environment for variable in _SLURM):
        return _slurm(environment)
    return _tpu(environment) if name in ("auto", "tpu") else None


def _slurm(environment: Mapping[str, str]) -> Place:
    """From what srun tells its tasks. With one task a node, a task has all of the node's devices,
    otherwise the one with its local number."""
    job, nodes, count, index, local = (environment[name] for name in _SLURM)
    # Jobs that share a node get different ports.
    port = 61440 + int(job) % 4096
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_TASKS_PER_NODE", ""))
    return Place(
        f"{_first_node(nodes)}:{port}",
        int(count),
        int(index),
        None if alone else (int(local),),
    )


def _first_node(nodes: str) -> str:
    """ "node[003-007,9],other" starts with node003."""
    found = re.match(r"([^\[,]+)(\[([^\],-]+))?", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no node")
    return found[1] + (found[3] or "")


def _tpu(environment: Mapping[str, str]) -> Place | None:
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return None
    # What jax.distributed.initialize asks as well, which has no public name of its own.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        if cluster.is_env_present():
            count = cluster.get_process_count()
            if count == 1:
                return Place("", 1, 0)
            address = cluster.get_coordinator_address(
                timeout_secs=30, override_coordinator_port=environment.get("JAX_COORDINATOR_PORT")
            )
            return Place(address, count, cluster.get_process_id())
    return None
