"""Writes the job of batch.sh: what Batch's API calls a Job, as JSON on standard output.

Needs nothing but Python's standard library. The fields are those of
https://cloud.google.com/batch/docs/reference/rest/v1/projects.locations.jobs.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from typing import Any

# Batch runs a script as root; whether HOME is set is not documented, so the script sets it.
SCRIPT = """\
set -euo pipefail
export HOME=/root
mkdir -p "$HOME/malt"
cp {folder}/* "$HOME/malt/"
bash "$HOME/malt/worker.sh" install {install}
exec bash "$HOME/malt/worker.sh" train {run_dir} "$HOME"/malt/{config} {overrides}
"""

USER_ERROR = 2
"""Exit status of malt_jax.train when its input is wrong: another attempt would fail as well."""


def job(options: argparse.Namespace) -> dict[str, Any]:
    folder = f"{options.mount}/jobs/{options.run}"
    script = SCRIPT.format(
        folder=shlex.quote(folder),
        install=shlex.join([options.package_id, options.package, options.extras]),
        run_dir=shlex.quote(f"{options.mount}/runs/{options.run}"),
        config=shlex.quote(f"{options.run}.yaml"),
        overrides=shlex.join(options.overrides),
    )
    task = {
        "runnables": [{"script": {"text": script}}],
        "volumes": [{"gcs": {"remotePath": options.bucket}, "mountPath": options.mount}],
        "maxRunDuration": f"{options.max_hours * 3600}s",
        "maxRetryCount": options.retries,
        # Everything else, preemption included, is tried again.
        "lifecyclePolicies": [
            {"action": "FAIL_TASK", "actionCondition": {"exitCodes": [USER_ERROR]}}
        ],
    }
    policy: dict[str, Any] = {
        "machineType": options.machine_type,
        "provisioningModel": options.model,
        "bootDisk": {"sizeGb": "100"},
    }
    if options.gpu:
        kind, count = options.gpu.split(":")
        policy["accelerators"] = [{"type": kind, "count": count}]
    allocation: dict[str, Any] = {
        "instances": [{"policy": policy, "installGpuDrivers": True}],
        "location": {"allowedLocations": [f"zones/{options.zone}"]},
        "labels": {"malt-run": options.run},
    }
    if options.network or options.subnetwork:
        allocation["network"] = {"networkInterfaces": [_network(options)]}
    if options.service_account:
        allocation["serviceAccount"] = {"email": options.service_account}
    return {
        "taskGroups": [{"taskCount": "1", "taskSpec": task}],
        "allocationPolicy": allocation,
        "labels": {"malt-run": options.run},
        "logsPolicy": {"destination": "CLOUD_LOGGING"},
    }


def _network(options: argparse.Namespace) -> dict[str, str]:
    names = {}
    if options.network:
        names["network"] = f"projects/{options.project}/global/networks/{options.network}"
    if options.subnetwork:
        region = options.zone.rsplit("-", 1)[0]
        names["subnetwork"] = (
            f"projects/{options.project}/regions/{region}/subnetworks/{options.subnetwork}"
        )
    return names


def problems(options: argparse.Namespace) -> list[str]:
    """What is wrong with the settings, one line each, by their names in cluster.env."""
    found = []
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+", options.machine_type):
        found.append(
            f"BATCH_MACHINE_TYPE is {options.machine_type or 'empty'}; it must be a type such as"
            " a2-highgpu-1g"
        )
    if options.gpu and not re.fullmatch(r"[a-z0-9-]+:[1-9][0-9]*", options.gpu):
        found.append(f"BATCH_GPU is {options.gpu}; it must be TYPE:COUNT or empty")
    if options.machine_type.startswith("n1-") and not options.gpu:
        found.append("BATCH_GPU is empty, and N1 machines have no GPU of their own")
    if not 1 <= options.max_hours <= 14 * 24:
        found.append(f"BATCH_MAX_HOURS is {options.max_hours}; it must be from 1 to 336")
    if not 0 <= options.retries <= 10:
        found.append(f"BATCH_RETRIES is {options.retries}; it must be from 0 to 10")
    if options.extras.split(",")[0] not in ("cuda12", "cuda13"):
        found.append(f"BATCH_CUDA is {options.extras.split(',')[0]}; it must be cuda12 or cuda13")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the job of batch.sh as JSON.")
    for name in (
        *("bucket", "mount", "run", "zone", "machine-type", "gpu", "model", "network"),
        *("subnetwork", "service-account", "project", "package-id", "package", "extras"),
    ):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--max-hours", type=int, required=True)
    parser.add_argument("--retries", type=int, required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    found = problems(options)
    if found:
        sys.exit("\n".join(f"error: {line}" for line in found))
    json.dump(job(options), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
