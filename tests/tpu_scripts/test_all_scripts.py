"""What holds for every script: it is sound bash, explains itself, and does nothing by mistake."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.cloud import SCRIPTS, Cloud

COMMANDS = [
    ("create.sh",),
    ("setup.sh",),
    ("train.sh",),
    ("watch.sh",),
    ("fetch.sh",),
    ("delete.sh",),
    ("batch.sh", "submit"),
    ("batch.sh", "status"),
    ("batch.sh", "delete"),
]


def test_shellcheck_finds_nothing() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    assert shellcheck, "shellcheck is missing: install the extra dev"
    scripts = sorted(SCRIPTS.glob("*.sh"))
    done = subprocess.run(
        [shellcheck, "--external-sources", *scripts], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_every_script_is_tested_here() -> None:
    programs = {path.name for path in SCRIPTS.glob("*.sh") if os.access(path, os.X_OK)}
    assert programs == {command[0] for command in COMMANDS} | {"worker.sh"}


def test_each_stops_at_the_first_error() -> None:
    for path in SCRIPTS.glob("*.sh"):
        text = path.read_text()
        assert "set -euo pipefail" in text or 'source "$(dirname' in text, path


@pytest.mark.parametrize("script", sorted({command[0] for command in COMMANDS}))
def test_help(cloud: Cloud, script: str) -> None:
    (cloud.checkout / "tpu_scripts" / "cluster.env").unlink()
    done = cloud.run(script, "--help")
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.startswith(script) and "--dry-run" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert cloud.calls == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("missing", ["PROJECT", "ZONE"])
def test_nothing_is_done_without_project_and_zone(
    cloud: Cloud, command: tuple[str, ...], missing: str
) -> None:
    cloud.configure(**{missing: ""})
    done = cloud.run(*command, "--yes")
    assert done.returncode == 1 and f"{missing} is empty" in done.stderr
    assert cloud.calls == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_calls_nothing(cloud: Cloud, command: tuple[str, ...]) -> None:
    before = sorted(cloud.directory.rglob("*"))
    done = cloud.run(*command, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "gcloud " in done.stdout
    assert cloud.calls == [] and sorted(cloud.directory.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "queued", "shared"),
    [
        (("create.sh",), "no", "gs://my-bucket"),
        (("create.sh",), "yes", "gs://my-bucket"),
        (("setup.sh",), "yes", "gs://my-bucket"),
        (("setup.sh",), "no", "10.0.0.2:/malt"),
        (("train.sh",), "no", "gs://my-bucket"),
        (("train.sh", "--stop"), "no", "gs://my-bucket"),
        (("fetch.sh", "--logs"), "no", "gs://my-bucket"),
        (("fetch.sh", "--logs", "a b"), "no", "10.0.0.2:/malt"),
        (("delete.sh", "--yes"), "no", "gs://my-bucket"),
        (("delete.sh", "--yes"), "yes", "gs://my-bucket"),
        (("batch.sh", "submit"), "no", "gs://my-bucket"),
        (("batch.sh", "delete", "--yes"), "no", "gs://my-bucket"),
    ],
)
def test_a_dry_run_prints_what_is_run(
    cloud: Cloud, command: tuple[str, ...], queued: str, shared: str
) -> None:
    cloud.configure(
        overrides=["task.options={question_field: q, kind: 'it''s'}", "seed=$(touch x); exit"],
        QUEUED=queued,
        SHARED=shared,
        NETWORK="my-net",
        SERVICE_ACCOUNT="me@my-project.iam.gserviceaccount.com",
    )
    created = command[0] == "create.sh"
    cloud.rule("tpu-vm describe", (1, "NOT_FOUND: no such node") if created else "READY")
    cloud.rule("queued-resources describe", (1, "NOT_FOUND: none") if created else "ACTIVE")

    printed = cloud.run(*command, "--dry-run").stdout.split("\n{")[0]
    done = cloud.run(*command)
    assert done.returncode == 0, done.stderr
    printed_commands = [shlex.split(line) for line in printed.splitlines()]
    run = [call for call in cloud.calls if "describe" not in call or call[1] == "storage"]
    assert [words for words in printed_commands if words[0] == "gcloud"] == run
    assert not (cloud.checkout / "x").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ZONES=us-west4-a", "line 2: there is no setting ZONES"),
        ("export ZONE=us-west4-a", "line 2 is not KEY=value"),
        ("ZONE=us-west4", "ZONE is us-west4; it must be a zone such as"),
        ("NAME=My_TPU", "NAME is My_TPU; it must be lowercase"),
        ("NAME=$(touch x)", "NAME is $(touch x); it must be"),
        ("PROVISIONING=cheap", "it must be on-demand, spot or reserved"),
        ("QUEUED=true", "it must be yes or no"),
        ("SHARED=/home/me", "SHARED is /home/me; it must be gs://BUCKET or SERVER:/EXPORT"),
        ("SHARED=gs://bucket/folder", "it must be gs://BUCKET or"),
        ("RUN=../other", "RUN is ../other; it must be"),
    ],
)
def test_bad_settings_are_named(cloud: Cloud, line: str, message: str) -> None:
    text = (cloud.checkout / "tpu_scripts" / "cluster.env").read_text()
    key = line.split("=")[0]
    others = "".join(f"{other}\n" for other in text.splitlines() if not other.startswith(f"{key}="))
    cloud.write_settings(f"# comment\n{line}\n{others}")
    done = cloud.run("create.sh")
    assert done.returncode == 1 and message in done.stderr
    assert cloud.calls == [] and not (cloud.checkout / "x").exists()


def test_quotes_and_comments_in_settings(cloud: Cloud) -> None:
    text = (cloud.checkout / "tpu_scripts" / "cluster.env").read_text()
    text = text.replace("ZONE=us-west4-a", 'ZONE="us-west4-b"  ')
    cloud.write_settings(text.replace("NAME=malt", "NAME=other   # mine") + "\r\n  # end")
    done = cloud.run("delete.sh", "--dry-run")
    assert "delete other " in done.stdout and "--zone=us-west4-b" in done.stdout


def test_the_example_is_complete_but_for_who_pays(cloud: Cloud, tmp_path: Path) -> None:
    example = (SCRIPTS / "cluster.env.example").read_text()
    settings = tmp_path / "my settings"
    settings.write_text(example)
    done = cloud.run("create.sh", "--dry-run", "--cluster", str(settings))
    assert done.returncode == 1 and "PROJECT is empty" in done.stderr
    for key, value in (("PROJECT", "p"), ("ZONE", "us-west4-a"), ("SHARED", "gs://b")):
        example = example.replace(f"\n{key}=\n", f"\n{key}={value}\n")
    settings.write_text(example)
    done = cloud.run("create.sh", "--dry-run", f"--cluster={settings}")
    assert done.returncode == 0, done.stderr


def test_missing_files_and_options_are_named(cloud: Cloud) -> None:
    assert "no such option: --fast" in cloud.run("create.sh", "--fast").stderr
    assert "no such option: now" in cloud.run("train.sh", "now").stderr
    assert "copy" in cloud.run("create.sh", "--cluster", "none.env").stderr
    cloud.configure(CONFIG="missing.yaml")
    assert "CONFIG=missing.yaml is no file" in cloud.run("train.sh").stderr
    cloud.configure(REVISION="no-such-branch")
    assert "REVISION=no-such-branch is no commit" in cloud.run("setup.sh").stderr
    cloud.configure(WHEEL="missing.whl")
    assert "WHEEL=missing.whl is no wheel" in cloud.run("setup.sh").stderr
    assert not cloud.commands()


def _gcloud_tree() -> Path | None:
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    tree = Path(gcloud).resolve().parents[1] / "data" / "cli" / "gcloud_completions.py"
    return tree if tree.is_file() else None


@pytest.mark.skipif(_gcloud_tree() is None, reason="compares with an installed Google Cloud SDK")
def test_gcloud_has_these_commands_and_options(cloud: Cloud) -> None:
    tree = runpy.run_path(str(_gcloud_tree()))["STATIC_COMPLETION_CLI_TREE"]
    printed = []
    for queued in ("yes", "no"):
        for shared in ("gs://my-bucket", "10.0.0.2:/malt"):
            cloud.configure(
                QUEUED=queued,
                SHARED=shared,
                NETWORK="n",
                SUBNETWORK="s",
                SERVICE_ACCOUNT="a@b.c",
                VALID_UNTIL="12h",
            )
            for command in [*COMMANDS, ("fetch.sh", "--logs"), ("train.sh", "--stop")]:
                printed += cloud.run(*command, "--dry-run").stdout.splitlines()
    commands = {line for line in printed if line.startswith("gcloud ")}
    assert len(commands) > 20
    for line in commands:
        node = tree
        words = shlex.split(line)[1:]
        while words and words[0] in node["commands"]:
            node = node["commands"][words.pop(0)]
        assert not node["commands"], f"{line}: not a command of gcloud"
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in node["flags"] | tree["flags"], f"{line}: {word}"
