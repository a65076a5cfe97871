"""Jobs on GPU machines: what is submitted follows the API, and bad settings never get there."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import jsonschema
import pytest

from tests.tpu_scripts.cloud import Cloud


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name in REQUIRED],
        "additionalProperties": False,
    }


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 1}


REQUIRED = {"taskGroups", "taskSpec", "runnables", "allocationPolicy", "instances", "policy"}
TEXT = {"type": "string", "minLength": 1}
INT64 = {"type": "string", "pattern": "^[1-9][0-9]*$"}  # as JSON of protocol buffers has them
LABELS = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-z][-_a-z0-9]{0,62}$"},
    "additionalProperties": {"type": "string", "pattern": "^[-_a-z0-9]{0,63}$"},
}
# The part of projects.locations.jobs (Batch API, v1) that is used here.
JOB = _object(
    labels=LABELS,
    logsPolicy=_object(destination={"enum": ["CLOUD_LOGGING", "PATH"]}),
    taskGroups=_list(
        _object(
            taskCount=INT64,
            taskSpec=_object(
                runnables=_list(_object(script=_object(text=TEXT))),
                volumes=_list(_object(gcs=_object(remotePath=TEXT), mountPath=TEXT)),
                maxRunDuration={"type": "string", "pattern": "^[1-9][0-9]*s$"},
                maxRetryCount={"type": "integer", "minimum": 0, "maximum": 10},
                lifecyclePolicies=_list(
                    _object(
                        action={"enum": ["RETRY_TASK", "FAIL_TASK"]},
                        actionCondition=_object(exitCodes=_list({"type": "integer"})),
                    )
                ),
            ),
        )
    ),
    allocationPolicy=_object(
        labels=LABELS,
        location=_object(allowedLocations=_list({"type": "string", "pattern": "^zones/"})),
        network=_object(networkInterfaces=_list(_object(network=TEXT, subnetwork=TEXT))),
        serviceAccount=_object(email=TEXT),
        instances=_list(
            _object(
                installGpuDrivers={"const": True},
                policy=_object(
                    machineType=TEXT,
                    provisioningModel={"enum": ["STANDARD", "SPOT"]},
                    bootDisk=_object(sizeGb=INT64),
                    accelerators=_list(_object(type=TEXT, count=INT64)),
                ),
            )
        ),
    ),
)


def submitted(cloud: Cloud) -> dict[str, Any]:
    done = cloud.run("batch.sh", "submit")
    assert done.returncode == 0, done.stderr
    copy, submit = cloud.commands()
    assert copy[1:3] == ["storage", "cp"] and "gs://my-bucket/jobs/first/" in copy
    assert submit[1:5] == ["batch", "jobs", "submit", "malt"]
    assert "--location=us-west4" in submit
    (path,) = [word.removeprefix("--config=") for word in submit if "--config=" in word]
    with open(path) as file:
        job = json.load(file)
    jsonschema.validate(job, JOB)
    return job


def test_a_job_follows_the_api(cloud: Cloud) -> None:
    cloud.configure(NETWORK="my-net", SUBNETWORK="my-subnet", SERVICE_ACCOUNT="me@example.com")
    job = submitted(cloud)
    task = job["taskGroups"][0]["taskSpec"]
    assert task["volumes"] == [{"gcs": {"remotePath": "my-bucket"}, "mountPath": "/mnt/malt"}]
    assert task["maxRunDuration"] == "86400s" and task["maxRetryCount"] == 10
    allocation = job["allocationPolicy"]
    assert allocation["instances"][0]["policy"]["provisioningModel"] == "SPOT"
    assert allocation["location"] == {"allowedLocations": ["zones/us-west4-a"]}
    assert allocation["network"]["networkInterfaces"][0] == {
        "network": "projects/my-project/global/networks/my-net",
        "subnetwork": "projects/my-project/regions/us-west4/subnetworks/my-subnet",
    }


def test_gpus_of_n1_machines_are_named(cloud: Cloud) -> None:
    cloud.configure(
        BATCH_MACHINE_TYPE="n1-standard-8", BATCH_GPU="nvidia-tesla-t4:2", PROVISIONING="on-demand"
    )
    policy = submitted(cloud)["allocationPolicy"]["instances"][0]["policy"]
    assert policy["accelerators"] == [{"type": "nvidia-tesla-t4", "count": "2"}]
    assert policy["provisioningModel"] == "STANDARD"


def test_the_job_installs_and_trains(cloud: Cloud) -> None:
    overrides = ["task.options={question_field: q}", "model.name=it's $HOME/`x`"]
    cloud.configure(overrides, BATCH_CUDA="cuda13", EXTRAS="tfds", BATCH_MAX_HOURS="5")
    job = submitted(cloud)
    task = job["taskGroups"][0]["taskSpec"]
    assert task["maxRunDuration"] == "18000s"
    # Run with a worker.sh that prints its arguments, in the place of the machine's.
    home, shared = cloud.directory / "root", cloud.directory / "shared"
    folder = shared / "jobs" / "first"
    folder.mkdir(parents=True)
    (folder / "worker.sh").write_text("printf '%s\\0' \"$@\"; printf '\\n'\n")
    script = task["runnables"][0]["script"]["text"].replace("HOME=/root", f"HOME={home}")
    done = subprocess.run(
        ["bash", "-c", script.replace("/mnt/malt/jobs", str(shared / "jobs"))],
        capture_output=True,
        text=True,
        check=True,
    )
    install, train = [line.split("\0")[:-1] for line in done.stdout.splitlines()]
    assert install[0] == "install" and install[-1] == "cuda13,tfds"
    assert install[2].startswith("malt_jax-") and install[2].endswith(".tar.gz")
    assert train == ["train", "/mnt/malt/runs/first", f"{home}/malt/first.yaml", *overrides]


def test_wrong_input_is_not_tried_again(cloud: Cloud) -> None:
    (policy,) = submitted(cloud)["taskGroups"][0]["taskSpec"]["lifecyclePolicies"]
    assert policy == {"action": "FAIL_TASK", "actionCondition": {"exitCodes": [2]}}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BATCH_MACHINE_TYPE", "", "BATCH_MACHINE_TYPE is empty"),
        ("BATCH_MACHINE_TYPE", "n1-standard-8", "N1 machines have no GPU of their own"),
        ("BATCH_GPU", "nvidia-tesla-t4", "must be TYPE:COUNT"),
        ("BATCH_CUDA", "tpu", "must be cuda12 or cuda13"),
        ("BATCH_MAX_HOURS", "0", "from 1 to 336"),
        ("BATCH_MAX_HOURS", "long", "invalid int value"),
        ("BATCH_RETRIES", "11", "from 0 to 10"),
        ("SHARED", "10.0.0.2:/malt", "must be a bucket"),
        ("PROVISIONING", "reserved", "spot or on-demand"),
    ],
)
def test_bad_settings_are_refused(cloud: Cloud, key: str, value: str, message: str) -> None:
    cloud.configure(**{key: value})
    done = cloud.run("batch.sh", "submit")
    assert done.returncode != 0 and message in done.stderr
    assert not cloud.commands()


def test_status_and_delete(cloud: Cloud) -> None:
    cloud.rule("batch jobs describe", "state: RUNNING")
    done = cloud.run("batch.sh", "status")
    assert done.stdout == "state: RUNNING\n"
    assert cloud.run("batch.sh", "delete", "--yes").returncode == 0
    assert cloud.commands()[0][1:5] == ["batch", "jobs", "delete", "malt"]
    assert cloud.run("batch.sh").returncode == 1
    assert "no such action: list" in cloud.run("batch.sh", "list").stderr


def test_a_submission_that_fails_says_so(cloud: Cloud) -> None:
    cloud.rule("batch jobs submit", (1, "ALREADY_EXISTS: the job malt exists"))
    done = cloud.run("batch.sh", "submit")
    assert done.returncode == 1 and "ALREADY_EXISTS" in done.stderr
