"""The SkyPilot task and the JobSet follow their schemas, and start a run that this package has."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from malt_jax.config import load_config

ROOT = Path(__file__).parent.parent.parent
CLOUD = ROOT / "cloud"


def typed(*names: str, **more: Any) -> dict[str, Any]:
    return {"type": list(names), **more}


RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{
            name: typed("string") for name in ("infra", "accelerators", "instance_type", "image_id")
        },
        **{name: typed("string", "number") for name in ("cpus", "memory")},
        "disk_size": typed("integer", minimum=50),
        "use_spot": typed("boolean"),
        "job_recovery": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "strategy": typed("string"),
                "max_restarts_on_errors": typed("integer", minimum=0),
            },
        },
        "accelerator_args": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "runtime_version": typed("string"),
                "tpu_name": typed("string"),
                "tpu_vm": typed("boolean"),
            },
        },
        "any_of": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    },
}
RESOURCES["properties"]["any_of"]["items"] = {
    **RESOURCES,
    "properties": {k: v for k, v in RESOURCES["properties"].items() if k != "any_of"},
}
TASK = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{name: typed("string") for name in ("name", "workdir", "setup", "run")},
        "num_nodes": typed("integer", minimum=1),
        "resources": RESOURCES,
        "envs": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {"^[a-zA-Z_][a-zA-Z0-9_]*$": typed("string", "null")},
        },
        "file_mounts": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["source"],
                "properties": {
                    "source": typed("string", pattern=r"^gs://"),
                    "mode": {"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]},
                },
            },
        },
    },
}
"""Those of the documented fields of a SkyPilot task (docs.skypilot.co, "SkyPilot YAML") that a task
of this kind may have."""


@pytest.fixture(scope="module")
def task() -> dict[str, Any]:
    return yaml.safe_load((CLOUD / "skypilot.yaml").read_text())


@pytest.fixture(scope="module")
def jobset() -> dict[str, Any]:
    return yaml.safe_load((CLOUD / "jobset.yaml").read_text())


def test_the_task_has_documented_fields(task: dict[str, Any]) -> None:
    jsonschema.validate(task, TASK)
    for damaged in ({**task, "numnodes": 2}, {**task, "envs": {"A-B": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(damaged, TASK)
    assert re.search(r"--env BUCKET=", (CLOUD / "skypilot.yaml").read_text())


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_are_sound(task: dict[str, Any], part: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    assert shellcheck, "shellcheck is missing: install the extra dev"
    script = tmp_path / "script.sh"
    script.write_text("#!/usr/bin/env bash\n" + task[part])
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", task[part]))
    given = {"HOME", "PATH", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"}
    assert used <= {*task["envs"], *given}


def started(task: dict[str, Any], home: Path, gpu: bool, **variables: str) -> list[str]:
    """The arguments with which the task's `run` starts malt on one node."""
    tools = {"malt/bin/malt": 'printf "%s\\n" "$@"'}
    if gpu:
        tools["tools/nvidia-smi"] = "true"
    for name, body in tools.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    environment = {
        "HOME": str(home),
        "PATH": f"{home / 'tools'}:/usr/bin:/bin",
        "SKYPILOT_NUM_NODES": "1",
        **{name: value or "" for name, value in task["envs"].items()},
        **variables,
    }
    done = subprocess.run(
        ["bash", "-c", task["run"]], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_task_starts_a_run(task: dict[str, Any], tmp_path: Path) -> None:
    options = "model.name=/malt/models/m sft.epochs=2"
    words = started(task, tmp_path, gpu=False, BUCKET="b", RUN="r", OPTIONS=options)
    config = task["envs"]["CONFIG"]
    assert words[:5] == ["train", "--config", config, "--run-dir", "gs://b/runs/r"]
    assert load_config(ROOT / config, words[5:]).sft.epochs == 2


def test_gpu_machines_find_one_another(task: dict[str, Any], tmp_path: Path) -> None:
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    words = started(task, tmp_path, gpu=True, BUCKET="b", SKYPILOT_NODE_RANK="1", **nodes)
    found = load_config(None, words[5:]).processes
    assert (found.coordinator, found.count, found.index) == ("10.0.0.1:8476", 2, 1)
    slice = tmp_path / "slice"
    alone = started(task, slice, gpu=False, BUCKET="b", SKYPILOT_NODE_RANK="1", **nodes)
    assert not alone[5:] or shutil.which("nvidia-smi", path="/usr/bin:/bin")


def as_the_schema_has_it(manifest: dict[str, Any]) -> dict[str, Any]:
    """What JobSet's models keep of a manifest: fields that they lack are gone."""
    models = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    read = models.JobsetV1alpha2JobSet.from_dict(manifest)
    assert read is not None
    kept: dict[str, Any] = read.to_dict()
    return kept


def test_the_jobset_follows_its_schema(jobset: dict[str, Any]) -> None:
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert as_the_schema_has_it(jobset) == jobset
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    for place, field, value in (
        (jobset["spec"], "maxRestarts", 3),
        (container, "port", 8471),
        (pod, "nodeSelectors", {}),
    ):
        place[field] = value
        assert as_the_schema_has_it(jobset) != jobset
        del place[field]
    container["ports"][0]["containerPort"] = "8471"
    with pytest.raises(ValueError, match="containerPort"):
        as_the_schema_has_it(jobset)
    container["ports"][0]["containerPort"] = 8471


def test_the_jobset_has_a_pod_for_every_host_of_the_slice(jobset: dict[str, Any]) -> None:
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == math.prod(map(int, sides)) // chips
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes


def test_the_jobset_starts_a_run(jobset: dict[str, Any]) -> None:
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    words = pod["containers"][0]["args"]
    assert words[:2] == ["train", "--config"] and words[3] == "--run-dir"
    config = load_config(ROOT / words[2], words[5:])
    mount = pod["containers"][0]["volumeMounts"][0]["mountPath"]
    assert all(str(x).startswith(mount) for x in (config.model.name, config.task.train))
    text = (CLOUD / "jobset.yaml").read_text()
    assert text.count("MY_BUCKET") > 2 and words[4].startswith("gs://MY_BUCKET/")


def test_the_image_copies_files_that_are_there() -> None:
    lines = (CLOUD / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    kept = (CLOUD / "Dockerfile.dockerignore").read_text().splitlines()
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in kept
    extras = next(line for line in lines if "EXTRAS=" in line).partition("=")[2].split(",")
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras)
