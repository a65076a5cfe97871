"""What all commands have in common: the log, the compilation cache, errors that are for people."""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from malt_jax.errors import Stopped, UserError, outcome
from malt_jax.planning.libtpu import expect_no_tpu

TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""Files of the TPUs that are attached to a machine."""


def command(main: Callable[[], None]) -> None:
    """Runs a command; errors for people become a message on standard error and an exit status."""
    # By force, because some libraries set up logging of their own when they are imported.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    logging.getLogger("malt_jax").setLevel(logging.INFO)
    if "jax" in sys.modules:  # commands that use no JAX do not wait for its import
        _keep_compiled_programs()
        compile_faster_on_cpus()
        # Where libtpu is installed for plans alone, JAX would look for a TPU, and libtpu complain.
        if not any(glob.glob(pattern) for pattern in TPU_DEVICES):
            expect_no_tpu()
    try:
        main()
    except (UserError, Stopped, KeyboardInterrupt) as error:
        message, status = outcome(error)
        print(message, file=sys.stderr)
        sys.exit(status)


def _keep_compiled_programs() -> None:
    """Compiled programs are kept for the next run, unless JAX's own variable says where or not."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "malt_jax" / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def compile_faster_on_cpus() -> None:
    """Switches XLA's newer emitter of fused loops off: without it CPU programs take half the time
    to compile and run no slower (docs/performance.md)."""
    import jaxlib

    flag, flags = "--xla_cpu_use_fusion_emitters", os.environ.get("XLA_FLAGS", "")
    # XLA ends the process when it does not know a flag, and jaxlib 0.11 has lost this one.
    if jaxlib.__version__.startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()
