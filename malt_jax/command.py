"""Common parts of all commands: options and their help, logging, JAX's variables, errors."""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from malt_jax.config import options
from malt_jax.errors import Stopped, UserError, machine_problem, outcome
from malt_jax.option_problems import allowed

COMMON = (
    *("model.name", "task.name", "task.train", "task.test", "task.train_questions"),
    *("sampling.temperature", "sampling.max_tokens", "sampling.questions_per_batch"),
    *("sft.learning_rate", "dpo.learning_rate"),
)
"""The options that a newcomer changes; `--help` lists them."""

_TITLE = "options, with the value that each has where neither --config nor an argument sets it"

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
    except (Exception, KeyboardInterrupt) as error:
        known = isinstance(error, UserError | Stopped | KeyboardInterrupt)
        if not known and machine_problem(error) is None:
            raise
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


def add_options(
    parser: argparse.ArgumentParser, example: str, shown: Iterable[str] = COMMON
) -> None:
    """Adds `section.field=value` arguments (`overrides`) and `--help-all` to a command.

    example: arguments; `--help` shows them after the command.
    shown:   the options and sections that `--help` lists.
    """

    class ShowAll(argparse.Action):
        def __call__(self, *_: Any, **__: Any) -> None:
            parser.epilog = f"{_TITLE}:\n{describe(options())}"
            parser.print_help()
            parser.exit()

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 100)
    parser.epilog = f"example:\n  {parser.prog} {example}\n\n{_TITLE}:\n{describe(shown)}"
    parser.add_argument("--help-all", action=ShowAll, nargs=0, help="list all options and exit")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.field=value", help="changed options; see below"
    )


def describe(names: Iterable[str]) -> str:
    """Default, meaning, type and bounds of options; a section's name stands for its options."""
    lines, wanted = [], tuple(f"{name}." for name in names)
    for name, schema in options().items():
        if not f"{name}.".startswith(wanted) or "description" not in schema:
            continue
        if "properties" in schema:
            lines.append(f"\n{name}: {schema['description']}")
        else:
            default = json.dumps(schema.get("default", "?")).replace('"', "")
            text = f"{schema['description']} ({allowed(schema)})"
            lines.append(f"  {name}={default}\n{textwrap.indent(textwrap.fill(text, 94), ' ' * 6)}")
    return "\n".join(lines)


def positive(text: str) -> int:
    """A number of at least 1, as argparse takes the type of an argument."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A number of at least 0, as argparse takes the type of an argument."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text!r}")
    return int(text)
