"""Which process this is: from options, from a cluster as JAX reads it, from nothing."""

import pytest
from jax._src.clusters import GceTpuCluster, GkeTpuCluster

from malt_jax.config import ProcessesConfig
from malt_jax.distributed.processes import Member, find_member
from malt_jax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "node[003-007,9],other",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_TASKS_PER_NODE": "1(x6)",
}
PORT = 61440 + 123456 % 4096


def explicit(**options: object) -> ProcessesConfig:
    return ProcessesConfig(**{"coordinator": "a:1", "count": 4, "index": 3} | options)  # type: ignore[arg-type]


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_options_alone() -> None:
    assert find_member(explicit()) == Member("a:1", 4, 3)
    assert find_member(ProcessesConfig()) is None
    assert find_member(explicit(count=1, index=0)) is None


def test_a_slurm_step_with_one_task_a_node(slurm: pytest.MonkeyPatch) -> None:
    assert find_member(ProcessesConfig()) == Member(f"node003:{PORT}", 6, 4)


def test_slurm_with_several_tasks_a_node_gives_each_its_own_device(
    slurm: pytest.MonkeyPatch,
) -> None:
    slurm.setenv("SLURM_TASKS_PER_NODE", "2(x3)")
    slurm.setenv("SLURM_LOCALID", "1")
    member = find_member(ProcessesConfig())
    assert member is not None and member.local_devices == (1,)


def test_options_win_over_slurm(slurm: pytest.MonkeyPatch) -> None:
    assert find_member(ProcessesConfig(coordinator="front:9")) == Member("front:9", 6, 4)
    assert find_member(explicit()) == Member("a:1", 4, 3)
    assert find_member(ProcessesConfig(cluster="none")) is None


def test_a_slurm_step_of_one_task_is_one_process(slurm: pytest.MonkeyPatch) -> None:
    slurm.setenv("SLURM_NTASKS", "1")
    slurm.setenv("SLURM_PROCID", "0")
    assert find_member(ProcessesConfig()) is None


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
    assert find_member(ProcessesConfig()) == Member("10.0.0.1:8482", 4, 3)
    assert find_member(ProcessesConfig(cluster="none")) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": None}, "need processes.coordinator as well"),
        ({"coordinator": None, "index": None}, "processes.coordinator and processes.index"),
        ({"index": 4}, "indices of 4 processes are 0 to 3"),
        ({"coordinator": "host"}, "'host', but must be HOST:PORT"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_member(explicit(**options))
