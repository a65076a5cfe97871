"""The processes that a run consists of: from the options, or from a cluster that JAX knows."""

from __future__ import annotations

import dataclasses
import os
import re

from malt_jax.config import ProcessesConfig
from malt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Member:
    """One process among those of its run."""

    coordinator: str
    """HOST:PORT at which process 0 waits for the others."""
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    """The accelerators of this host that are this process's; None: all."""


def find_member(config: ProcessesConfig) -> Member | None:
    """This process's part in the run; None when it is alone. Options win over the cluster.

    Raises UserError when options are missing or contradict one another.
    """
    options = {name: getattr(config, name) for name in ("coordinator", "count", "index")}
    given = {name: value for name, value in options.items() if value is not None}
    member = Member("", 1, 0)
    if len(given) < len(options):
        found = None if config.cluster == "none" else _cluster(config.start_timeout)
        if found is None and given:
            missing = [f"processes.{name}" for name in options if name not in given]
            raise UserError(f"several processes need {' and '.join(missing)} as well")
        member = found or member
    member = dataclasses.replace(member, **given)
    if member.index >= member.count:
        raise UserError(
            f"processes.index is {member.index}, but the indices of {member.count} processes are 0"
            f" to {member.count - 1}"
        )
    if member.count > 1 and not re.fullmatch(r".+:\d+", member.coordinator):
        raise UserError(f"processes.coordinator is {member.coordinator!r}, but must be HOST:PORT")
    return member if member.count > 1 else None


def _cluster(timeout: float) -> Member | None:
    """This process's part in the SLURM step, MPI job or TPU pod that it was started in."""
    # What jax.distributed.initialize asks as well, which has no public name of its own.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster, OmpiCluster, SlurmCluster

    clusters = (SlurmCluster, OmpiCluster, GkeTpuCluster, GceTpuCluster)
    cluster = next((cluster for cluster in clusters if cluster.is_env_present()), None)
    if cluster is None:
        return None
    count, index = cluster.get_process_count(), cluster.get_process_id()
    if count == 1:
        return Member("", 1, 0)
    address = cluster.get_coordinator_address(
        timeout_secs=round(timeout),
        override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
    )
    local = cluster.get_local_process_id()
    # With one task a node, a task has all of the node's devices; JAX would give it the first one.
    one_a_node = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_TASKS_PER_NODE", ""))
    return Member(address, count, index, None if local is None or one_a_node else (local,))
