"""What all commands share: logging, the setup of JAX, errors for people."""

from __future__ import annotations

import glob
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from malt_jax.errors import Stopped, UserError, outcome

TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""Files of the TPUs that are attached to a machine."""


def command(main: Callable[[], None]) -> None:
    """Runs a command; errors for people become a message on standard error and an exit status."""
    # By force, because some libraries set up logging of their own when they are imported.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    logging.getLogger("malt_jax").setLevel(logging.INFO)
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
    """Keeps compiled programs for the next run, unless the user has set JAX's own variables.

    Variables, because a command imports JAX after its arguments are read; JAX reads them then.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "malt_jax" / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if jax := sys.modules.get("jax"):  # imported already: it has read its variables
        for name in ("compilation_cache_dir", "persistent_cache_min_compile_time_secs"):
            value = os.environ[f"JAX_{name.upper()}"]
            jax.config.update(f"jax_{name}", value if name.endswith("dir") else float(value))


def compile_faster_on_cpus() -> None:
    """Switches XLA's newer emitter of fused loops off: without it CPU programs take half the time
    to compile and run no slower (docs/performance.md)."""
    flag, flags = "--xla_cpu_use_fusion_emitters", os.environ.get("XLA_FLAGS", "")
    # XLA ends the process when it does not know a flag, and jaxlib 0.11 has lost this one.
    if importlib.metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=false".strip()


def expect_no_tpu() -> None:
    """Tells libtpu, before it is loaded, that there is no TPU and that it is here to compile.

    Then it asks no metadata server, does not complain about what it cannot find out about its
    host, and does not wait for other processes that have loaded it. The user's settings stay.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
