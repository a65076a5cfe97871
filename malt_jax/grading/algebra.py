"""Equality that takes a computer algebra system: math-verify, in processes that may be killed.

What models write can keep a computer algebra system busy for ever, and inside of one call neither a
thread nor a signal can stop it. So it runs in child processes, each an interpreter of its own (a
forked one would inherit JAX's threads half alive), which are killed from outside when they take too
long or too much. A kill costs one verdict, "not equal", and is logged; the next question goes to a
spare process that is already there.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO

SECONDS = 2.0
"""Wall time of one question; then its process is killed."""
BYTES = 10**9
"""Memory of one process."""
START_SECONDS = 60.0
"""Time that a process has for importing its libraries."""

MAX_LENGTH = 300
MAX_NESTING = 15
_MAX_POWERS = 20
_TICK = 0.02
_READY = "ready"

_TOO_MUCH = re.compile(
    r"[0-9]{30}"  # long numbers
    r"|\^ ?\{?[-+( ]*[0-9]{4}"  # large exponents
    r"|\^ ?\{[^{}]*(?:\^|!|\{)"  # towers
    r"|[0-9]{4} ?!|[!)\]}] ?!"  # factorials of much, or of anything but a number or a letter
    r"|\\(?:prod|sum|int|lim)[^0-9]*[0-9]{5}"
    r"|[0-9)}\]] ?_"  # bases, which it drops
    r"|(?<![A-Za-z])(?:and|or)(?![A-Za-z])"  # which are commas to it
    r"|__|[;'`#@\"]|\\(?:input|write|def|let|csname|catcode|operatorname)(?![a-z])"
)

logger = logging.getLogger(__name__)


class _Lost(Exception):
    """A process was killed, or died, before it answered."""


def equal(a: str, b: str) -> bool:
    """Whether math-verify takes two LaTeX answers for equal, whichever of them it is given first.

    False for answers that pass the bounds on length, nesting and powers, and for those that use up
    the time or the memory. Verdicts are remembered.
    """
    first, second = sorted((a, b))
    return _equal(first, second)


@lru_cache(maxsize=100_000)
def _equal(a: str, b: str) -> bool:
    return is_bounded(a) and is_bounded(b) and _POOL.ask(a, b)


def is_bounded(latex: str) -> bool:
    """Whether an answer is small, and of what math-verify is known to read as it is meant."""
    if len(latex) > MAX_LENGTH or latex.count("^") > _MAX_POWERS or _TOO_MUCH.search(latex):
        return False
    depth = deepest = 0
    for sign in latex:
        depth += (sign in "({[") - (sign in ")}]")
        deepest = max(deepest, depth)
    return deepest <= MAX_NESTING


class _Worker:
    """One child process and the pipes to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "malt_jax.grading.algebra_worker", str(BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
        )
        self._started = time.monotonic()
        self._is_ready = False

    def wait_until_ready(self) -> None:
        """Raises RuntimeError when the process cannot be used at all."""
        if self._is_ready:
            return
        try:
            line = self._read(self._started + START_SECONDS)
        except _Lost as error:
            raise RuntimeError(
                f"the process that compares LaTeX answers did not start ({error}); see why with"
                f" python -m malt_jax.grading.algebra_worker {BYTES}"
            ) from None
        assert json.loads(line) == _READY
        self._is_ready = True

    def ask(self, a: str, b: str) -> bool:
        """Raises _Lost when no answer comes within the limits; the process is gone then."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps([a, b]).encode() + b"\n")
            stdin.flush()
        except OSError as error:
            self.kill()
            raise _Lost(f"it has died ({error.strerror})") from None
        return json.loads(self._read(time.monotonic() + SECONDS)) is True

    def _read(self, deadline: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None
        while not select.select([stdout], [], [], _TICK)[0]:
            if time.monotonic() > deadline:
                self.kill()
                raise _Lost(f"more than {SECONDS:g} seconds")
            if self.memory() > BYTES:
                self.kill()
                raise _Lost(f"more than {BYTES / 1e9:g} GB")
        line = stdout.readline()  # it is written in one piece
        if not line.endswith(b"\n"):
            self.kill()
            raise _Lost("it has died")
        return line

    def memory(self) -> int:
        """Bytes in use, where the system tells; elsewhere the child's own limit must do."""
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            _close(pipe)


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        pass  # what was still to be written has no reader any more


class _Pool:
    """A process that answers and a spare one, both started when the first question comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self.lost = 0

    def _first(self) -> _Worker:
        while len(self._workers) < 2:
            self._workers.append(_Worker())
        self._workers[0].wait_until_ready()
        return self._workers[0]

    def start(self) -> None:
        with self._lock:
            self._first()

    def ask(self, a: str, b: str) -> bool:
        with self._lock:
            worker = self._first()
            try:
                verdict = worker.ask(a, b)
            except _Lost as reason:
                self._workers.pop(0)
                self.lost += 1
                logger.warning(
                    "an answer counts as not equal: comparing it took %s (%d so far): %.80r",
                    reason,
                    self.lost,
                    b,
                )
                return False
            except BaseException:  # an interrupt: the answer still under way is nobody's
                self._workers.pop(0).kill()
                raise
            if worker.memory() > BYTES // 2:
                self._workers.pop(0).kill()
            return verdict

    def close(self) -> None:
        while self._workers:
            self._workers.pop().kill()


def _environment() -> Mapping[str, str]:
    root = str(Path(__file__).parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # A fixed hash seed: SymPy's ways through an expression depend on the order of sets.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}


def start() -> None:
    """Starts the processes now, which takes a second or two, instead of at the first question."""
    _POOL.start()


def questions() -> int:
    """How many pairs were not decided by text, structure or value so far, each counted once."""
    return _equal.cache_info().misses


def lost_workers() -> int:
    """How many processes were killed, or died, over a question so far."""
    return _POOL.lost


_POOL = _Pool()
atexit.register(_POOL.close)
