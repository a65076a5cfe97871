"""A whole run on a machine that is played here: created, set up, preempted, finished, fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tpu_scripts.cloud import Cloud

# One machine: its state is a file, its disk a directory, and ssh runs the command there.
GCLOUD = """\
#!/bin/bash
set -euo pipefail
cd "$CLOUD"
echo "$*" >>calls
state() { [[ -f state ]] && cat state || { echo "ERROR: NOT_FOUND: no malt" >&2; exit 1; }; }
case "$*" in
    *'tpu-vm describe'*) state ;;
    *'tpu-vm create'*) mkdir disk; echo READY >state ;;
    *'tpu-vm delete'*) rm -rf state disk ;;
    *'tpu-vm scp'*)
        for word in "${@:5}"; do [[ $word != /* ]] || cp "$word" disk/malt/; done ;;
    *'tpu-vm ssh'*)
        [[ $(state) == READY ]] || { echo "ssh: connection refused" >&2; exit 255; }
        for word; do
            [[ $word == --command=* ]] || continue
            command=${word#--command=}
            (cd disk && HOME=$PWD bash -c "${command//"/mnt/malt"/"$CLOUD/bucket"}")
        done
        if [[ "$*" == *status* && -f preempt ]]; then
            (cd disk && HOME=$PWD bash malt/worker.sh stop >/dev/null)
            rm -r preempt disk
            echo PREEMPTED >state
        fi ;;
    *'storage buckets describe'*) echo True ;;
    *'storage rsync'*) cp -r "bucket/${4#gs://my-bucket/}/." "$5/" ;;
esac
"""
# Training with two stages: the first attempt loses its machine during the second one.
PYTHON = """\
#!/bin/bash
[[ $1 == -m ]] || exit 0
run=$6
mkdir -p "$run"
if [[ -d $run/stage-1 ]]; then
    echo "stage-1 is done already"
else
    mkdir "$run/stage-1"
    touch "$CLOUD/preempt"
    exec sleep 60
fi
mkdir "$run/stage-2"
"""
UV = """\
#!/bin/bash
[[ $1 == venv ]] || exit 0
mkdir -p "${!#}/bin"
cp "$(dirname "$0")/train" "${!#}/bin/python"
"""


def program(cloud: Cloud, name: str, text: str) -> None:
    path = cloud.directory / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def world(cloud: Cloud) -> Path:
    world = cloud.directory / "world"
    world.mkdir()
    sleep = shutil.which("sleep")
    program(cloud, "gcloud", GCLOUD)
    program(cloud, "train", PYTHON)
    program(cloud, "uv", UV)
    program(cloud, "mountpoint", "#!/bin/bash\n")
    program(cloud, "findmnt", "#!/bin/bash\necho my-bucket\n")
    # Seconds of waiting become as many hundredths.
    program(cloud, "sleep", f'#!/bin/bash\nexec {sleep} "$(printf "0.%02d" "${{1%%.*}}")"\n')
    return world


def test_a_preempted_run_is_finished_on_a_new_machine(cloud: Cloud, world: Path) -> None:
    env = {"CLOUD": str(world)}
    created = cloud.run("create.sh", env=env)
    assert created.returncode == 0, created.stderr

    watched = cloud.run("watch.sh", "--interval=20", env=env)
    assert watched.returncode == 0, watched.stderr
    assert "is created again" in watched.stderr
    assert "stage-1 is done already" in watched.stdout
    calls = (world / "calls").read_text()
    assert calls.count("tpu-vm create") == 2 and calls.count("worker.sh install") == 2

    fetched = cloud.run("fetch.sh", str(world / "here"), "--logs", env=env)
    assert fetched.returncode == 0, fetched.stderr
    assert sorted(path.name for path in (world / "here/runs/first").iterdir()) == [
        "stage-1",
        "stage-2",
    ]
    (log,) = (world / "here/logs/first").iterdir()
    assert "stage-1 is done already" in log.read_text()
    assert cloud.run("delete.sh", "--yes", env=env).returncode == 0
    assert not (world / "state").exists()
