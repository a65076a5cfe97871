"""Stubs of what the scripts call: they record their arguments, and reply as they are told."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"

STUB = """\
#!{python} -IS
import json, os, sys

with open("{calls}", "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
with open("{plan}") as file:
    plan = json.load(file)
line = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
for rule in plan:
    if rule["words"] in line:
        reply = rule["replies"][0]
        if len(rule["replies"]) > 1:
            del rule["replies"][0]
            with open("{plan}", "w") as file:
                json.dump(plan, file)
        sys.stdout.write(reply["out"])
        sys.stdout.flush()
        sys.stderr.write(reply["err"])
        sys.exit(reply["status"])
"""

SETTINGS = {
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "NAME": "malt",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "PROVISIONING": "spot",
    "QUEUED": "no",
    "SHARED": "gs://my-bucket",
    "RUN": "first",
    "CONFIG": "run.yaml",
    "BATCH_MACHINE_TYPE": "a2-highgpu-1g",
}


class Cloud:
    """Runs scripts in a small checkout; `gcloud` and `sleep` are stubs that do nothing.

    A call that no rule matches succeeds without output.
    """

    def __init__(self, directory: Path, checkout: Path) -> None:
        self.directory = directory
        self.checkout = directory / "checkout"
        self.home = directory / "home"
        self._plan = directory / "plan.json"
        self._calls = directory / "calls.jsonl"
        self._rules: list[dict] = []
        self.home.mkdir()
        (directory / "bin").mkdir()
        shutil.copytree(checkout, self.checkout)
        self.configure()
        self.rule("hierarchicalNamespace.enabled", "True")
        for name in ("gcloud", "sleep"):
            self.stub(name)

    def configure(self, overrides: Sequence[str] = (), **changes: str) -> None:
        """Writes cluster.env: the usual settings with changes, and OVERRIDE lines."""
        lines = [f"{key}={value}" for key, value in (SETTINGS | changes).items()]
        lines += [f"OVERRIDE={value}" for value in overrides]
        self.write_settings("\n".join(lines) + "\n")

    def write_settings(self, content: str) -> None:
        (self.checkout / "tpu_scripts" / "cluster.env").write_text(content)

    def stub(self, name: str) -> None:
        path = self.directory / "bin" / name
        path.write_text(STUB.format(python=sys.executable, calls=self._calls, plan=self._plan))
        path.chmod(0o755)

    def rule(self, words: str, *replies: str | tuple[int, str]) -> None:
        """Calls with `words` in them get these replies in turn, the last one for ever.

        A reply is standard output, or an exit status and an error message. The longest `words`
        win, then the later rule.
        """
        plan = [
            {"out": reply and reply + "\n", "err": "", "status": 0}
            if isinstance(reply, str)
            else {"out": "", "err": f"ERROR: {reply[1]}\n", "status": reply[0]}
            for reply in replies
        ]
        self._rules.insert(0, {"words": words, "replies": plan})
        self._rules.sort(key=lambda rule: -len(rule["words"]))
        self._plan.write_text(json.dumps(self._rules))

    def run(
        self,
        script: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "tpu_scripts" / script, *arguments],
            cwd=self.checkout,
            env=self.environment() | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        return kept | {"HOME": str(self.home), "PATH": path}

    @property
    def calls(self) -> list[list[str]]:
        """Every call of a stub so far: its name and arguments."""
        if not self._calls.exists():
            return []
        return [json.loads(line) for line in self._calls.read_text().splitlines()]

    def commands(self) -> list[list[str]]:
        """The calls of gcloud that change something."""
        questions = ("describe", "worker.sh status", "worker.sh log")
        return [
            call
            for call in self.calls
            if call[0] == "gcloud" and not any(words in " ".join(call) for words in questions)
        ]

    @property
    def steps(self) -> list[str]:
        """`commands` in short: what was created, deleted, or done on the workers."""
        steps = []
        for call in self.commands():
            line = " ".join(call)
            on_worker = [argument for argument in call if argument.startswith("--command=")]
            if on_worker:
                words = shlex.split(on_worker[0].removeprefix("--command="))
                steps.append(words[2] if words[0] == "bash" else words[0])
            else:
                known = ("create", "delete", "scp", "rsync", "cp", "submit")
                steps.append(next(word for word in known if f" {word} " in line))
        return steps

    @property
    def sleeps(self) -> list[int]:
        return [int(call[1]) for call in self.calls if call[0] == "sleep"]
