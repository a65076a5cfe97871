"""Creating, setting up, training, fetching and deleting, against a stub of gcloud."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.tpu_scripts.cloud import Cloud

ABSENT = (1, "(gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found")
NO_CAPACITY = (
    1,
    '{"code": 8, "message": "There is no more capacity in the zone \\"us-west4-a\\"; you can try'
    ' in another zone where Cloud TPU Nodes are offered"}',
)
NO_QUOTA = (
    1,
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been"
    " exceeded. Limit: 0 in zone us-west4-a.",
)


@pytest.mark.parametrize(
    ("queued", "provisioning", "kind", "flag"),
    [
        ("no", "spot", "tpu-vm", "--spot"),
        ("no", "on-demand", "tpu-vm", None),
        ("no", "reserved", "tpu-vm", "--reserved"),
        ("yes", "spot", "queued-resources", "--spot"),
        ("yes", "on-demand", "queued-resources", None),
        ("yes", "reserved", "queued-resources", "--reserved"),
    ],
)
def test_create(cloud: Cloud, queued: str, provisioning: str, kind: str, flag: str | None) -> None:
    cloud.configure(QUEUED=queued, PROVISIONING=provisioning)
    cloud.rule("describe malt", ABSENT)
    done = cloud.run("create.sh")
    assert done.returncode == 0, done.stderr
    (call,) = cloud.commands()
    assert call[:6] == ["gcloud", "compute", "tpus", kind, "create", "malt"]
    assert {
        "--project=my-project",
        "--zone=us-west4-a",
        "--accelerator-type=v5litepod-16",
        "--labels=malt-run=first",
        "--quiet",
    } <= set(call)
    assert {"--spot", "--reserved"} & set(call) == ({flag} if flag else set())
    version = "--runtime-version" if queued == "yes" else "--version"
    assert f"{version}=v2-alpha-tpuv5-lite" in call


@pytest.mark.parametrize("state", ["READY", "CREATING", "REPAIRING"])
def test_what_exists_is_not_created_again(cloud: Cloud, state: str) -> None:
    cloud.rule("tpu-vm describe", state)
    done = cloud.run("create.sh")
    assert done.returncode == 0 and "exists already" in done.stderr
    assert not cloud.commands()


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        (NO_CAPACITY, 75, "no capacity for v5litepod-16"),
        (NO_QUOTA, 1, "quota does not allow v5litepod-16 (spot) in us-west4-a"),
        ((1, "PERMISSION_DENIED: The caller does not have permission"), 1, "will not help"),
        ((1, "INTERNAL: an internal error has occurred"), 75, "could not be created"),
    ],
)
def test_create_says_whether_trying_again_helps(
    cloud: Cloud, reply: tuple[int, str], status: int, message: str
) -> None:
    cloud.rule("tpu-vm describe", ABSENT)
    cloud.rule("tpu-vm create", reply)
    done = cloud.run("create.sh")
    assert done.returncode == status and message in done.stderr
    assert reply[1] in done.stderr


def test_setup_copies_the_commit_and_what_it_needs(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "CREATING", "READY")
    (cloud.checkout / "run.yaml").write_text("seed: 1\n")  # not committed
    done = cloud.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert "changes that are not committed are left out" in done.stderr
    assert cloud.sleeps == [30]
    assert cloud.steps == ["mkdir", "scp", "mount", "install"]
    scp = cloud.commands()[1]
    assert "--worker=all" in scp and "malt:malt/" in scp
    archive = Path(next(word for word in scp if word.endswith(".tar.gz")))
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=cloud.checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert archive.name == f"malt_jax-{commit}.tar.gz"
    with tarfile.open(archive) as tar:
        member = tar.extractfile("run.yaml")
        assert member is not None and member.read() == b"seed: 0\n"
    install = cloud.commands()[-1]
    assert f"--command=bash malt/worker.sh install {commit} {archive.name} tpu" in install


def test_setup_with_a_wheel(cloud: Cloud) -> None:
    wheel = cloud.checkout / "malt_jax-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    cloud.configure(WHEEL=wheel.name, EXTRAS="tfds,tensorboard", SHARED="10.0.0.2:/malt")
    cloud.rule("tpu-vm describe", "READY")
    assert cloud.run("setup.sh").returncode == 0
    first = cloud.commands()
    assert wheel.name in first[1]
    assert shlex.split(first[2][-2])[-2:] == ["10.0.0.2:/malt", "/mnt/malt"]
    assert first[-1][-2].endswith(f" {wheel.name} tpu,tfds,tensorboard")
    # Another wheel of the same name is another version.
    wheel.write_bytes(b"other")
    cloud.run("setup.sh")
    assert cloud.commands()[-1] != first[-1]


def test_a_bucket_must_rename_directories_as_a_whole(cloud: Cloud) -> None:
    cloud.rule("hierarchicalNamespace.enabled", "")
    cloud.rule("tpu-vm describe", "READY")
    done = cloud.run("setup.sh")
    assert done.returncode == 1 and "--enable-hierarchical-namespace" in done.stderr
    assert not cloud.commands()[1:]


@pytest.mark.parametrize("state", ["PREEMPTED", "STOPPED"])
def test_setup_needs_a_machine(cloud: Cloud, state: str) -> None:
    cloud.rule("tpu-vm describe", state)
    done = cloud.run("setup.sh")
    assert done.returncode == 1 and "not there to be set up" in done.stderr


def test_setup_ends_at_a_lost_connection(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh mount", (255, "ssh: connect to host 10.1.2.3 port 22: timed out"))
    assert cloud.run("setup.sh").returncode == 255
    assert cloud.steps == ["mkdir", "scp", "mount"]


def test_train_hands_options_on_as_they_are(cloud: Cloud, tmp_path: Path) -> None:
    overrides = ["task.options={question_field: q}", "model.name=it's $HOME/`x`; exit", 'a="b" c']
    cloud.configure(overrides=[*overrides, "last=*"])
    assert cloud.run("train.sh").returncode == 0
    scp, start = cloud.commands()
    assert Path(scp[5]).read_text() == "seed: 0\n" and Path(scp[5]).name == "first.yaml"
    assert "--worker=all" in start
    (command,) = [word.removeprefix("--command=") for word in start if "--command=" in word]
    # The shell of the worker sees these words.
    words = subprocess.run(
        ["bash", "-c", f"set -- {command}; printf '%s\\0' \"$@\""],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    assert words == [
        *("bash", "malt/worker.sh", "start", "/mnt/malt", "/mnt/malt/runs/first"),
        *("malt/first.yaml", *overrides, "last=*"),
    ]


def test_fetch_from_a_bucket_needs_no_machine(cloud: Cloud) -> None:
    assert cloud.run("fetch.sh", "here").returncode == 0
    (call,) = cloud.commands()
    assert call[1:6] == [
        *("storage", "rsync", "--recursive", "gs://my-bucket/runs/first", "here/runs/first"),
    ]
    assert (cloud.checkout / "here/runs/first").is_dir()


def test_fetch_from_nfs_goes_through_a_worker(cloud: Cloud) -> None:
    cloud.configure(SHARED="10.0.0.2:/malt")
    assert cloud.run("fetch.sh", "--logs").returncode == 0
    copy, save, logs = cloud.commands()
    assert copy[4:8] == ["scp", "--recurse", "malt:/mnt/malt/runs/first", "./runs"]
    assert "--command=bash malt/worker.sh save-log /mnt/malt/logs/first" in save
    assert logs[6] == "malt:/mnt/malt/logs/first"


def test_saved_logs_are_fetched_when_the_machines_are_gone(cloud: Cloud) -> None:
    cloud.rule("worker.sh save-log", (1, "NOT_FOUND: no such node"))
    done = cloud.run("fetch.sh", "--logs")
    assert done.returncode == 0 and "saved before" in done.stderr
    assert cloud.steps == ["rsync", "save-log", "rsync"]


@pytest.mark.parametrize("queued", ["yes", "no"])
def test_delete(cloud: Cloud, queued: str) -> None:
    cloud.configure(QUEUED=queued)
    cloud.rule("describe malt", "ACTIVE")
    assert cloud.run("delete.sh", "--yes").returncode == 0
    (call,) = cloud.commands()
    assert call[3:6] == ["queued-resources" if queued == "yes" else "tpu-vm", "delete", "malt"]
    assert ("--force" in call) == (queued == "yes")


def test_deleting_nothing_is_fine(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", ABSENT)
    done = cloud.run("delete.sh", "--yes")
    assert done.returncode == 0 and "there is no malt" in done.stderr
    assert not cloud.commands()


@pytest.mark.parametrize("command", [["delete.sh"], ["batch.sh", "delete"]])
def test_nothing_is_deleted_when_nobody_can_answer(cloud: Cloud, command: list[str]) -> None:
    cloud.rule("tpu-vm describe", "READY")
    done = cloud.run(*command)
    assert done.returncode == 1 and "use --yes" in done.stderr
    assert not cloud.commands()


@pytest.mark.parametrize(("answer", "deleted"), [("", 0), ("n", 0), ("malt", 0), ("y", 1)])
def test_delete_asks(cloud: Cloud, answer: str, deleted: int) -> None:
    cloud.rule("tpu-vm describe", "READY")
    terminal, side = pty.openpty()
    try:
        os.write(terminal, f"{answer}\n".encode())
        done = subprocess.run(
            [cloud.checkout / "tpu_scripts" / "delete.sh"],
            stdin=side,
            env=cloud.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(terminal)
        os.close(side)
    assert "Delete malt (READY) in us-west4-a of my-project" in done.stderr
    assert len(cloud.commands()) == deleted and done.returncode == 1 - deleted


def test_gcloud_that_is_missing_is_named(cloud: Cloud) -> None:
    (cloud.directory / "bin" / "gcloud").unlink()
    tools = cloud.directory / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "git", "cat", "mktemp"):
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout
        (tools / tool).symlink_to(found.strip())
    done = cloud.run("create.sh", env={"PATH": str(tools)})
    assert done.returncode == 1 and "gcloud is not there" in done.stderr
