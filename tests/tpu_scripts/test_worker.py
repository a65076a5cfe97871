"""The part that runs on the machines, run here in a home directory of its own."""

from __future__ import annotations

import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tpu_scripts.cloud import Cloud

RUN_DIR = "/mnt/malt/runs/first"

# Makes an environment whose Python does as its variables say.
UV = """\
#!/bin/bash
echo "uv $*" >>"$HOME/uv.log"
if [[ $1 == venv ]]; then
    mkdir -p "${!#}/bin"
    cp "$(dirname "$0")/fake-python" "${!#}/bin/python"
fi
"""
PYTHON = """\
#!/bin/bash
[[ $1 == -m ]] || exit 0
printf '%s\\n' "$*" >>"$HOME/trained"
echo "sampling trees"
[[ -f $HOME/hang ]] && sleep 60
exit "$(cat "$HOME/status")"
"""


@pytest.fixture
def machine(cloud: Cloud) -> Iterator[Cloud]:
    """A machine with its storage mounted; every `sudo` and `gcsfuse` is recorded."""
    for name, text in (("uv", UV), ("fake-python", PYTHON), ("mountpoint", "#!/bin/bash\n")):
        path = cloud.directory / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    (cloud.directory / "bin" / "sleep").unlink()
    for name in ("sudo", "gcsfuse", "findmnt"):
        cloud.stub(name)
    cloud.rule("findmnt", "my-bucket")
    (cloud.home / "status").write_text("0")
    malt = cloud.home / "malt"
    malt.mkdir()
    source = cloud.checkout / "constraints.txt"
    with tarfile.open(malt / "malt_jax-abc.tar.gz", "w:gz") as tar:
        tar.add(source, "constraints.txt")
    yield cloud
    worker(cloud, "stop")


def worker(machine: Cloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    return machine.run("worker.sh", *arguments)


def install(machine: Cloud, name: str = "abc", extras: str = "tpu") -> None:
    done = worker(machine, "install", name, "malt_jax-abc.tar.gz", extras)
    assert done.returncode == 0, done.stderr


def start(machine: Cloud, *overrides: str) -> subprocess.CompletedProcess[str]:
    return worker(machine, "start", "/mnt/malt", RUN_DIR, "malt/first.yaml", *overrides)


def state(machine: Cloud, run_dir: str = RUN_DIR) -> str:
    line = worker(machine, "status", run_dir).stdout
    assert line.startswith("malt-worker ") and line.count("\n") == 1
    return line.split(" ", 2)[2].split(" |")[0]


def until(machine: Cloud, wanted: str) -> None:
    for _ in range(100):
        if state(machine) == wanted:
            return
        time.sleep(0.05)
    assert state(machine) == wanted


def test_installing_again_does_nothing(machine: Cloud) -> None:
    assert state(machine) == "absent"
    install(machine)
    assert state(machine) == "idle"
    lines = (machine.home / "uv.log").read_text().splitlines()
    source = machine.home / "malt" / "source"
    assert lines[1].endswith(
        f"--constraint {source}/constraints.txt malt_jax[tpu] @ file://{source}"
    )
    install(machine)
    assert len((machine.home / "uv.log").read_text().splitlines()) == len(lines)
    install(machine, "def")
    assert len((machine.home / "uv.log").read_text().splitlines()) == 2 * len(lines)


def test_an_installation_that_failed_is_made_again(machine: Cloud) -> None:
    uv = machine.directory / "bin" / "uv"
    text = uv.read_text()
    uv.write_text(text + "[[ $1 == venv ]]\n")
    assert worker(machine, "install", "abc", "malt_jax-abc.tar.gz", "tpu").returncode != 0
    assert state(machine) == "absent"
    uv.write_text(text)
    install(machine)
    assert state(machine) == "idle"


def test_uv_is_fetched_where_there_is_none(machine: Cloud) -> None:
    (machine.directory / "bin" / "uv").rename(machine.directory / "bin" / "uv-to-be")
    curl = machine.directory / "bin" / "curl"
    curl.write_text(
        '#!/bin/bash\necho "$*" >>"$HOME/curl.log"\n'
        f'echo \'mkdir -p "$UV_UNMANAGED_INSTALL"; cd {curl.parent};'
        ' cp uv-to-be "$UV_UNMANAGED_INSTALL/uv"; cp fake-python "$UV_UNMANAGED_INSTALL"\'\n'
    )
    curl.chmod(0o755)
    install(machine)
    (line,) = (machine.home / "curl.log").read_text().splitlines()
    assert line.endswith("https://astral.sh/uv/0.9.26/install.sh")
    assert (machine.home / "malt/bin/uv").is_file()


def test_training_needs_installation_and_storage(machine: Cloud) -> None:
    assert "not installed" in start(machine).stderr
    install(machine)
    (machine.directory / "bin" / "mountpoint").write_text("#!/bin/bash\nexit 1\n")
    assert "/mnt/malt is not mounted" in start(machine).stderr
    assert not (machine.home / "trained").exists()


def test_training_to_its_end(machine: Cloud) -> None:
    install(machine)
    assert start(machine, "a=b c", "d=$e").returncode == 0
    until(machine, "finished")
    assert (machine.home / "trained").read_text() == (
        f"-m malt_jax.train --config malt/first.yaml --run-dir {RUN_DIR} a=b c d=$e\n"
    )
    assert "sampling trees" in worker(machine, "status", RUN_DIR).stdout
    assert state(machine, "/mnt/malt/runs/second") == "idle"
    # It can be started again, and its log is kept.
    start(machine)
    until(machine, "finished")
    log = worker(machine, "log", "20").stdout
    assert log.count("sampling trees") == 2 and log.count(f"training in {RUN_DIR}") == 2


def test_an_exit_status_is_kept(machine: Cloud) -> None:
    install(machine)
    (machine.home / "status").write_text("2")
    start(machine)
    until(machine, "failed 2")


def test_training_outlives_its_connection_and_is_not_started_twice(machine: Cloud) -> None:
    install(machine)
    (machine.home / "hang").touch()
    start(machine)
    until(machine, "running")
    assert start(machine).stdout == "training already\n"
    assert (machine.home / "trained").read_text().count("\n") == 1
    assert state(machine, "/mnt/malt/runs/second") == "busy"
    other = worker(machine, "start", "/mnt/malt", "/mnt/malt/runs/second", "malt/second.yaml")
    assert other.returncode == 1 and f"another run is training: {RUN_DIR}" in other.stderr
    replaced = worker(machine, "install", "def", "malt_jax-abc.tar.gz", "tpu")
    assert replaced.returncode == 1 and "stop it before" in replaced.stderr


def test_stop_ends_everything_that_training_started(machine: Cloud) -> None:
    install(machine)
    (machine.home / "hang").touch()
    start(machine)
    until(machine, "running")
    assert worker(machine, "stop").stdout == "stopped\n"
    # Every process that training starts holds the lock that tells this state.
    assert state(machine) == "interrupted"
    assert worker(machine, "stop").stdout == "nothing is training\n"
    (machine.home / "hang").unlink()
    start(machine)
    until(machine, "finished")


def test_logs_of_machines_with_one_name_are_kept_apart(machine: Cloud, tmp_path: Path) -> None:
    assert "nothing was trained" in worker(machine, "save-log", str(tmp_path / "logs")).stderr
    install(machine)
    start(machine)
    until(machine, "finished")
    for name in ("w-0-20260101T000000.log", "w-0-20260102T000000.log"):
        (machine.home / "malt/log_name").write_text(f"{name}\n")
        assert worker(machine, "save-log", str(tmp_path / "logs")).returncode == 0
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_what_is_mounted_is_left_so(machine: Cloud) -> None:
    done = worker(machine, "mount", "gs://my-bucket", "/mnt/malt")
    assert done.returncode == 0 and "mounted already" in done.stdout
    done = worker(machine, "mount", "gs://other", "/mnt/malt")
    assert done.returncode == 1 and "/mnt/malt holds my-bucket, not other" in done.stderr
    assert not [call for call in machine.calls if call[0] in ("sudo", "gcsfuse")]


@pytest.mark.parametrize("shared", ["gs://my-bucket", "10.0.0.2:/malt"])
def test_mounting(machine: Cloud, shared: str) -> None:
    (machine.directory / "bin" / "mountpoint").write_text("#!/bin/bash\nexit 1\n")
    machine.stub("mount.nfs")
    assert worker(machine, "mount", shared, "/mnt/malt").returncode == 0
    mounts = [call for call in machine.calls if call[0] == "gcsfuse" or "mount" in call]
    if shared == "gs://my-bucket":
        assert mounts == [["gcsfuse", "--metadata-cache-ttl-secs=0", "my-bucket", "/mnt/malt"]]
    else:
        assert mounts == [["sudo", "mount", "-t", "nfs", "-o", "hard,nolock", shared, "/mnt/malt"]]


def test_batch_trains_in_the_foreground(machine: Cloud) -> None:
    install(machine, extras="cuda12")
    (machine.home / "status").write_text("2")
    assert worker(machine, "train", RUN_DIR, "malt/first.yaml", "a=b").returncode == 2
    assert (machine.home / "trained").read_text().endswith(f"--run-dir {RUN_DIR} a=b\n")
