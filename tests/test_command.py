"""What commands have in common."""

import errno
import glob
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

import malt_jax.command
from malt_jax.config import options


def test_commands_without_a_model_do_not_import_jax() -> None:
    program = (
        "import sys, malt_jax.command, malt_jax.grading.__main__, malt_jax.tasks.__main__\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_users_own_xla_flags_are_kept() -> None:
    program = (
        "import os, jax\n"
        "from malt_jax.command import command\n"
        "command(lambda: print(os.environ['XLA_FLAGS'], jax.device_count()))"
    )
    devices, fusion = "--xla_force_host_platform_device_count=3", "--xla_cpu_use_fusion_emitters"
    expected = {devices: f"{devices} 3"}
    if jaxlib.__version__.startswith("0.10."):
        expected = {devices: f"{devices} {fusion}=false 3", f"{fusion}=true": f"{fusion}=true 1"}
    for given, output in expected.items():
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "XLA_FLAGS": given},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip().endswith(output), done.stderr


@pytest.mark.parametrize(("files", "skips"), [([], "1"), (["accel0"], None)])
def test_libtpu_is_told_where_there_is_no_tpu(
    files: list[str], skips: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setattr(malt_jax.command, "TPU_DEVICES", (f"{tmp_path}/accel*",))
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)
    malt_jax.command.command(lambda: None)
    assert os.environ.get("TPU_SKIP_MDS_QUERY") == skips


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None
    or any(glob.glob(pattern) for pattern in malt_jax.command.TPU_DEVICES),
    reason="libtpu is not installed, or there is a TPU",
)
def test_libtpu_without_a_tpu_is_silent() -> None:
    program = (
        "import jax; from malt_jax.command import command; command(lambda: print(jax.devices()))"
    )
    libtpus_own = ("JAX_PLATFORMS", "ALLOW_MULTIPLE_LIBTPU_LOAD")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TPU_") and name not in libtpus_own
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "tpu" not in done.stderr.lower()


@pytest.mark.parametrize("module", ["train", "evaluate", "solve", "plan"])
def test_help_shows_the_options_of_a_newcomer(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"malt_jax.{module}").main
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    brief = capsys.readouterr().out
    assert f"example:\n  python -m malt_jax.{module} " in brief and "\n  model.name=tiny\n" in brief
    assert "credit.threshold" not in brief and brief.count("\n") < 100
    with pytest.raises(SystemExit, match="0"):
        main(["--help-all"])
    assert "\nsft: Supervised fine-tuning" in (text := capsys.readouterr().out)
    for name, schema in options().items():
        if "properties" not in schema and "description" in schema:
            assert re.search(rf"^  {re.escape(name)}=.*\n      \S.+", text, re.M), name
    assert "  sft.learning_rate=2e-05\n" in text and "bfloat16 (auto | float32 |" in text


def test_help_of_ten_options() -> None:
    assert len(malt_jax.command.COMMON) == 10 and set(malt_jax.command.COMMON) <= set(options())


@pytest.mark.parametrize("module", ["train", "evaluate", "solve", "plan"])
def test_help_does_not_wait_for_jax(module: str) -> None:
    program = f"import sys, malt_jax.{module}\nsys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_full_disk_is_one_line_and_a_mistake_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/x")

    with pytest.raises(SystemExit, match="1"):
        malt_jax.command.command(full)
    said = capsys.readouterr().err
    assert said.startswith("error: /run/x: the disk is full") and said.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        malt_jax.command.command(lambda: print(1 // 0))
