"""What commands have in common."""

import subprocess
import sys


def test_commands_without_a_model_do_not_import_jax() -> None:
    program = (
        "import sys, malt_jax.command, malt_jax.grading.__main__, malt_jax.tasks.__main__\n"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
