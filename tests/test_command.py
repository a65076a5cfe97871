"""What commands have in common."""

import os
import subprocess
import sys

import jaxlib


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
