"""The watch: a run is brought to its end over queues, preemptions, crashes and lost connections."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from tests.tpu_scripts.cloud import Cloud
from tests.tpu_scripts.test_machines import ABSENT, NO_CAPACITY, NO_QUOTA

SET_UP = ["mkdir", "scp", "mount", "install", "scp", "start"]
SAVE = ["save-log"]
LOST = (255, "ssh: connect to host 10.1.2.3 port 22: Connection timed out")


def worker(state: str, name: str = "w-0", line: str = "sampling trees 3/9") -> str:
    return f"malt-worker {name} {state} | {line}"


def test_a_run_that_has_finished_ends_the_watch(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh status", worker("finished"))
    cloud.rule("worker.sh log", "everything is in runs/first")
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    assert "everything is in runs/first" in done.stdout
    assert "still paid for" in done.stderr and cloud.steps == SAVE and not cloud.sleeps


def test_machines_are_deleted_at_the_end_if_that_was_asked(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh status", worker("running"), worker("finished"))
    done = cloud.run("watch.sh", "--delete", "--interval", "7")
    assert done.returncode == 0 and cloud.steps == [*SAVE, "delete"] and cloud.sleeps == [7]
    assert " running: sampling trees 3/9\n" in done.stdout


def test_machines_that_cannot_be_deleted_are_tried_again(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("tpu-vm delete", (1, "UNAVAILABLE: try later"), "")
    cloud.rule("worker.sh status", worker("finished"))
    assert cloud.run("watch.sh", "--delete").returncode == 0
    assert cloud.steps == [*SAVE, "delete", "delete"] and cloud.sleeps == [30]


def test_a_deletion_that_takes_its_time_is_waited_for(cloud: Cloud) -> None:
    cloud.rule(
        "tpu-vm describe", "PREEMPTED", "PREEMPTED", *["DELETING"] * 3, ABSENT, "CREATING", "READY"
    )
    cloud.rule("worker.sh status", worker("finished"))
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.steps == ["delete", "create", *SAVE] and cloud.sleeps == [10, 10, 10, 60]


def test_a_new_machine_gets_what_the_first_one_had(cloud: Cloud) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], cwd=cloud.checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    # While the watch sleeps, somebody commits and edits the settings.
    sleep = cloud.directory / "bin" / "sleep"
    sleep.write_text(
        f"#!/bin/bash\ncd {cloud.checkout}\n{shlex.join(git)} commit -q --allow-empty -m later\n"
        "sed -i s/ZONE=.*/ZONE=us-west4-b/ tpu_scripts/cluster.env\n"
    )
    cloud.rule("tpu-vm describe", "READY", "PREEMPTED", "PREEMPTED", ABSENT, "READY")
    cloud.rule("worker.sh status", worker("running"), worker("absent"), worker("finished"))
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    (install,) = [call for call in cloud.commands() if "worker.sh install" in " ".join(call)]
    assert f"install {head} " in " ".join(install)
    assert {word for call in cloud.commands() for word in call if word.startswith("--zone")} == {
        "--zone=us-west4-a"
    }


def test_from_the_queue_to_the_end(cloud: Cloud) -> None:
    cloud.configure(QUEUED="yes")
    cloud.rule("queued-resources describe", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    cloud.rule("tpu-vm describe", "CREATING", "READY")
    cloud.rule("worker.sh status", worker("absent"), worker("running"), worker("finished"))
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps == [*SET_UP, *SAVE]
    assert cloud.sleeps == [60] * 5


@pytest.mark.parametrize("queued", ["no", "yes"])
def test_a_preempted_machine_is_created_again_and_the_run_goes_on(
    cloud: Cloud, queued: str
) -> None:
    cloud.configure(QUEUED=queued)
    if queued == "yes":
        cloud.rule(
            "queued-resources describe",
            *("ACTIVE", "SUSPENDED"),  # two looks
            *("", "SUSPENDED", ABSENT),  # the reason, what is deleted, what is created
            "ACTIVE",
        )
        cloud.rule("tpu-vm describe", "READY")
    else:
        cloud.rule(
            "tpu-vm describe", *("READY", "PREEMPTED"), *("PREEMPTED", ABSENT), "CREATING", "READY"
        )
    cloud.rule("worker.sh status", worker("running"), worker("absent"), worker("finished"))
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps == ["delete", "create", *SET_UP, *SAVE]
    assert ("--force" in cloud.commands()[0]) == (queued == "yes")
    assert "--spot" in cloud.commands()[1]


def test_without_capacity_it_asks_ever_more_rarely(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "PREEMPTED", "PREEMPTED", *[ABSENT] * 15, "READY")
    cloud.rule("tpu-vm create", *[NO_CAPACITY] * 7, "")
    cloud.rule("worker.sh status", worker("finished"))
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps == ["delete", *["create"] * 8, *SAVE]
    assert cloud.sleeps == [30, 60, 120, 240, 480, 900, 900]


def test_machines_lost_before_they_are_of_use_are_not_asked_for_at_once(cloud: Cloud) -> None:
    lost = ("PREEMPTED", "PREEMPTED", ABSENT)
    cloud.rule("tpu-vm describe", *lost, *lost, *lost, "READY")
    cloud.rule("worker.sh status", worker("finished"))
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.steps == [*["delete", "create"] * 3, *SAVE] and cloud.sleeps == [30, 60]


@pytest.mark.parametrize("queued", ["no", "yes"])
def test_a_quota_ends_the_watch(cloud: Cloud, queued: str) -> None:
    cloud.configure(QUEUED=queued)
    if queued == "yes":
        cloud.rule("queued-resources describe", "FAILED", NO_QUOTA[1])
    else:
        cloud.rule("tpu-vm describe", "PREEMPTED", "PREEMPTED", ABSENT)
        cloud.rule("tpu-vm create", NO_QUOTA)
    done = cloud.run("watch.sh")
    assert done.returncode == 1 and "quota" in done.stderr.lower()
    assert not cloud.sleeps


def test_a_lost_connection_is_made_again(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule(
        "worker.sh status",
        worker("running"),
        LOST,
        LOST,
        worker("running"),
        LOST,
        worker("finished"),
    )
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    assert "Connection timed out" in done.stderr
    # The pauses begin anew after a success, and nothing was started twice.
    assert cloud.sleeps == [60, 30, 60, 60, 30] and cloud.steps == SAVE


def test_a_connection_that_stays_lost_ends_the_watch(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh status", LOST)
    done = cloud.run("watch.sh")
    assert done.returncode == 1 and "8 times in a row" in done.stderr
    assert "may be paid for" in done.stderr
    assert cloud.sleeps == [30, 60, 120, 240, 480, 900, 900] and not cloud.commands()


def test_gcloud_that_cannot_be_reached_is_tried_again(cloud: Cloud) -> None:
    unavailable = (1, "There was a problem refreshing your current auth tokens")
    cloud.rule("tpu-vm describe", unavailable, unavailable, "READY")
    cloud.rule("worker.sh status", worker("finished"))
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.sleeps == [30, 60] and cloud.steps == SAVE


def test_a_preemption_during_set_up_is_one_like_others(cloud: Cloud) -> None:
    cloud.rule(
        "tpu-vm describe", "READY", "READY", "PREEMPTED", "PREEMPTED", ABSENT, "READY", "READY"
    )
    cloud.rule("worker.sh install", LOST, "")
    cloud.rule("worker.sh status", worker("absent"), worker("absent"), worker("finished"))
    done = cloud.run("watch.sh")
    assert done.returncode == 0, done.stderr
    assert cloud.steps == [*SET_UP[:4], "delete", "create", *SET_UP, *SAVE]


@pytest.mark.parametrize("crash", ["failed 137", "interrupted"])
def test_a_crash_is_started_again_three_times(cloud: Cloud, crash: str) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh status", worker(crash))
    cloud.rule("worker.sh log", "out of memory")
    done = cloud.run("watch.sh")
    assert done.returncode == 1 and "crashed 4 times" in done.stderr
    assert cloud.steps == ["stop", *SET_UP] * 3
    assert "out of memory" in done.stdout


def test_an_input_error_is_not_tried_again(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh status", "\n".join([worker("failed 2"), worker("running", "w-1")]))
    cloud.rule("worker.sh log", "error: task.train: no such file")
    done = cloud.run("watch.sh")
    assert done.returncode == 1 and "refused its input" in done.stderr
    assert "no such file" in done.stdout
    assert not cloud.commands() and not cloud.sleeps


def test_a_pod_waits_for_the_slower_workers_but_not_for_ever(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    mixed = "\n".join([worker("finished"), worker("running", "w-1")])
    whole = "\n".join([worker("finished"), worker("finished", "w-1")])
    cloud.rule("worker.sh status", *[mixed] * 3, whole)
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.sleeps == [60] * 3 and cloud.steps == SAVE

    hanging = "\n".join([worker("failed 1"), worker("running", "w-1")])
    cloud.rule("worker.sh status", *[hanging] * 11, whole)
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.steps == [*SAVE, "stop", *SET_UP, *SAVE]


def test_a_worker_of_a_pod_that_is_new_is_set_up(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule(
        "worker.sh status",
        "\n".join([worker("interrupted"), worker("absent", "w-1")]),
        worker("finished"),
    )
    assert cloud.run("watch.sh").returncode == 0
    assert cloud.steps == [*SET_UP, *SAVE]


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([ABSENT], "create.sh makes it"),
        (["READY", ABSENT], "was deleted by somebody"),
        (["STOPPED"], "is stopped"),
    ],
)
def test_what_somebody_removed_is_not_created_again(
    cloud: Cloud, states: list[str | tuple[int, str]], message: str
) -> None:
    cloud.rule("tpu-vm describe", *states)
    cloud.rule("worker.sh status", worker("running"))
    done = cloud.run("watch.sh")
    assert done.returncode == 1 and message in done.stderr
    assert not cloud.commands()


def test_another_run_on_the_machine_is_left_alone(cloud: Cloud) -> None:
    cloud.rule("tpu-vm describe", "READY")
    cloud.rule("worker.sh status", worker("busy"))
    done = cloud.run("watch.sh")
    assert done.returncode == 1 and "another run" in done.stderr and not cloud.commands()


def test_bad_intervals_are_refused(cloud: Cloud) -> None:
    assert "--interval is soon" in cloud.run("watch.sh", "--interval", "soon").stderr
    assert "needs a number" in cloud.run("watch.sh", "--interval").stderr
    assert not cloud.calls
