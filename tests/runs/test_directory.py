"""Runs on the disk: whole or absent, verified, resumed, never shared by two processes."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from malt_jax.config import Config, load_config
from malt_jax.errors import UserError
from malt_jax.files import write_atomically
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory, open_run, versions
from malt_jax.runs.stage import UNFINISHED


@pytest.mark.parametrize("content", ["grüße\n", b"\x00\xff"])
def test_a_file_is_written_whole(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "file"
    for _ in range(2):
        write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_the_configuration_and_the_versions_are_kept(tmp_path: Path) -> None:
    config = load_config(None, ["seed=3", "task.options={a: [1, x]}"])
    with open_run(tmp_path / "run", config):
        text = (tmp_path / "run" / CONFIG_FILE).read_text()
    assert RunDirectory.read(tmp_path / "run").config == config
    assert all(f"{name} {version}" in text for name, version in versions().items())
    assert {"python", "malt_jax", "jax", "flax", "optax"} <= set(versions())


def test_another_configuration_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()):
        pass
    other = load_config(None, ["sft.learning_rate=1e-4", "pipeline.roles.1.branching=2"])
    with pytest.raises(UserError) as error, open_run(tmp_path, other):
        pass
    assert "sft.learning_rate: 2e-05 -> 0.0001" in str(error.value)
    assert "pipeline.roles.1.branching: 3 -> 2" in str(error.value)
    assert "--run-dir" in str(error.value)
    with open_run(tmp_path, Config()):
        pass


def test_a_directory_with_other_files_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="it is no run"), open_run(tmp_path, Config()):
        pass
    with pytest.raises(UserError, match="cannot use"), open_run(tmp_path / "thesis.tex", Config()):
        pass
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.read(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_stage_is_seen_when_it_is_complete(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()) as run:
        assert not run.is_done("round-0/trees")
        with pytest.raises(UserError, match="no finished round-0/trees"):
            run.finished("round-0/trees")
        with run.stage("round-0/trees") as stage:
            stage.write("batch-0", b"data")
            (stage.path / "by-a-library").mkdir()
            (stage.path / "by-a-library" / "file").write_bytes(b"x" * 1000)
            assert not run.is_done("round-0/trees")
        assert run.is_done("round-0/trees")
        assert (run.finished("round-0/trees") / "batch-0").read_bytes() == b"data"
        assert 0 <= run.seconds("round-0/trees") < 60
        with pytest.raises(ValueError, match="finished already"), run.stage("round-0/trees"):
            pass
    reopened = RunDirectory.read(tmp_path)
    assert reopened.is_done("round-0/trees")


def test_an_interrupted_stage_keeps_its_parts_and_its_time(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()) as run:
        with pytest.raises(KeyboardInterrupt), run.stage("trees") as stage:
            stage._began -= 100.0
            stage.write("batch-0", b"0")
            raise KeyboardInterrupt
        assert not run.is_done("trees")
    with open_run(tmp_path, Config()) as run:
        with run.stage("trees") as stage:
            assert stage.has("batch-0") and not stage.has("batch-1")
            stage.write("batch-1", b"1")
        assert run.seconds("trees") >= 100.0
        assert sorted(os.listdir(run.finished("trees"))) == ["batch-0", "batch-1", "manifest.json"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("adapter/array", damage) for damage in ("shortened", "changed", "removed")),
        *(("manifest.json", damage) for damage in ("shortened", "changed")),
    ],
)
def test_damage_is_named_with_the_way_out(tmp_path: Path, damage: str, file: str) -> None:
    with open_run(tmp_path, Config()) as run, run.stage("verifier") as stage:
        stage.write("adapter/array", bytes(range(100)))
    path = tmp_path / "verifier" / file
    if damage == "removed":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-50] if damage == "shortened" else b"\x01" + content[1:])
    with pytest.raises(UserError) as error:
        RunDirectory.read(tmp_path).is_done("verifier")
    assert f"{path} is damaged" in str(error.value)
    assert f"delete {tmp_path / 'verifier'}" in str(error.value)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with open_run(tmp_path, Config()):
        in_use = pytest.raises(UserError, match=f"in use by process {os.getpid()}")
        with in_use, open_run(tmp_path, Config()):
            pass
        assert RunDirectory.read(tmp_path).config == Config()
    with open_run(tmp_path, Config()):
        pass


def test_a_run_whose_process_was_killed_goes_on(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from malt_jax.config import Config
        from malt_jax.runs.directory import open_run
        with open_run(sys.argv[1], Config()) as run, run.stage("trees") as stage:
            stage.write("batch-0", b"0")
            (stage.path / f".batch-1.{os.getpid()}.0123abcd").write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    with open_run(tmp_path, Config()) as run:
        assert not run.is_done("trees")
        with run.stage("trees") as stage:
            assert stage.has("batch-0")
        assert sorted(os.listdir(run.finished("trees"))) == ["batch-0", "manifest.json"]


def test_a_damaged_file_of_an_unfinished_stage_is_named_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(tmp_path, Config()) as run,
        run.stage("trees") as stage,
    ):
        for name in ("a", "b", "folder/c"):
            stage.write(name, b"content")
        raise KeyboardInterrupt
    (tmp_path / "trees/b").write_bytes(b"contend")
    (tmp_path / "trees/folder/c").unlink()
    (tmp_path / "trees/folder/unrecorded").write_bytes(b"of a process that was killed")
    with open_run(tmp_path, Config()) as run, run.stage("trees") as stage:
        assert stage.has("a") and not any(stage.has(name) for name in ("b", "folder", "d"))
        assert f"{stage.path / 'b'} is damaged: its checksum is another; it is made" in caplog.text
        assert f"{stage.path / 'folder/c'} is damaged: it is missing" in caplog.text
        stage.write("b", b"content")
    files = sorted(path.name for path in run.finished("trees").rglob("*") if path.is_file())
    assert files == ["a", "b", "manifest.json"]


def test_a_damaged_record_makes_the_stage_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_run(tmp_path, Config()) as run,
        run.stage("trees") as stage,
    ):
        stage.write("a", b"content")
        raise KeyboardInterrupt
    (tmp_path / "trees" / UNFINISHED).write_bytes(b'{"files": [')
    with open_run(tmp_path, Config()) as run, run.stage("trees") as stage:
        assert not stage.has("a") and not (stage.path / "a").exists()
        assert "so the stage is made again" in caplog.text


@pytest.mark.parametrize("name", ["lr=[1e-4]", "a*b", "what?"])
def test_a_path_that_orbax_cannot_read_is_refused_at_the_start(tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(UserError, match=r"cannot have the character"),
        open_run(tmp_path / name / "run", Config()),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with (
        pytest.raises(UserError, match=r"\.lock is a symbolic link: remove it"),
        open_run(tmp_path / "run", Config()),
    ):
        pass
    assert (tmp_path / "precious").read_text() == "work"
