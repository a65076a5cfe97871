"""Which process this is: from options, from SLURM as JAX reads it, from nothing."""

import pytest
from jax._src.clusters import GceTpuCluster, GkeTpuCluster, SlurmCluster

from malt_jax.config import ProcessesConfig
from malt_jax.distributed.cluster import Place, find_place
from malt_jax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "node[003-007,9],other",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "1(x6)",
}


def explicit(**options: object) -> ProcessesConfig:
    return ProcessesConfig(**{"coordinator": "a:1", "count": 4, "index": 3} | options)  # type: ignore[arg-type]


def test_options_alone() -> None:
    assert find_place(explicit(), {}) == Place("a:1", 4, 3)
    assert find_place(explicit(), SLURM) == Place("a:1", 4, 3)
    assert find_place(ProcessesConfig(), {}) is None
    assert find_place(explicit(count=1, index=0), {}) is None


@pytest.mark.parametrize("nodes", ["n1", "n1,n2", "node[003-007,9],other", "node[12,14]", "a-b-3"])
def test_slurm_as_jax_reads_it(nodes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SLURM | {"SLURM_STEP_NODELIST": nodes}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    address = SlurmCluster.get_coordinator_address(
        timeout_secs=None, override_coordinator_port=None
    )
    assert find_place(ProcessesConfig(), environment) == Place(address, 6, 4)


def test_slurm_with_several_tasks_a_node_gives_each_its_own_device() -> None:
    environment = SLURM | {"SLURM_TASKS_PER_NODE": "2(x3)", "SLURM_LOCALID": "1"}
    place = find_place(ProcessesConfig(), environment)
    assert place is not None and place.local_devices == (1,)


def test_a_slurm_step_of_one_task_is_one_process() -> None:
    alone = SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "1"}
    assert find_place(ProcessesConfig(), alone) is None
    assert find_place(ProcessesConfig(cluster="none"), SLURM) is None


def test_options_win_over_slurm() -> None:
    place = find_place(ProcessesConfig(coordinator="front:9"), SLURM)
    assert place == Place("front:9", 6, 4)


def test_a_tpu_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GkeTpuCluster, "is_env_present", classmethod(lambda cls: False))
    monkeypatch.setattr(GceTpuCluster, "is_env_present", classmethod(lambda cls: True))
    workers = ["10.0.0.1", "10.0.0.2"]
    monkeypatch.setattr(GceTpuCluster, "_get_worker_list_in_slice", staticmethod(lambda: workers))
    monkeypatch.setattr(GceTpuCluster, "_get_process_id_in_slice", staticmethod(lambda: 1))
    for name, value in {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080",
    }.items():
        monkeypatch.setenv(name, value)
    assert find_place(ProcessesConfig(), {}) == Place("10.0.0.1:8482", 4, 3)
    # Whoever asks for CPUs on a TPU machine gets one process.
    assert find_place(ProcessesConfig(), {"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": None}, "need processes.coordinator as well"),
        ({"coordinator": None, "index": None}, "processes.coordinator and processes.index"),
        ({"index": 4}, "indices of 4 processes are 0 to 3"),
        ({"cluster": "slurm", "index": None}, "was not started in one"),
        ({"cluster": "tpu", "index": None}, "was not started in one"),
    ],
)
def test_places_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_place(explicit(**options), {"JAX_PLATFORMS": "cpu"})
