"""Whole servers: what they serve, and how they begin and end."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

import malt_jax
from malt_jax import serve
from malt_jax.errors import UserError
from malt_jax.export import __main__ as export
from malt_jax.sampling.completions import Finish
from malt_jax.serving.batch import Job
from malt_jax.serving.engine import Engine
from tests.export.conftest import STAGES, make_run
from tests.serving.conftest import Served, served
from tests.serving.test_app import QUESTION, ROLES, ask

ROOT = Path(malt_jax.__file__).parent.parent


@pytest.fixture(scope="module")
def exported_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An export of a greedy run without a trained verifier."""
    path = tmp_path_factory.mktemp("exported")
    stages = tuple(stage for stage in STAGES if "verifier" not in stage)
    made = make_run(path / "run", "sampling.temperature=0.0", stages=stages)
    export.main([str(made.path), "--out", str(path / "out")])
    with served(path / "out") as found:
        yield found


def test_an_exported_pipeline_answers_as_its_run(exported_server: Served) -> None:
    with served(exported_server.path.parent / "run") as of_run:
        for model in ("malt", *ROLES):
            first, second = (
                ask(each.client, model).choices[0].message for each in (exported_server, of_run)
            )
            assert first == second


def test_the_client_in_three_calls(exported_server: Served) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "examples/three_calls.py")),
            *(str(exported_server.path), QUESTION, "--url", f"{exported_server.url}/v1"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    turns = re.findall(r"--- (\w+) ---\n(.+?)\n\n", done.stdout, re.DOTALL)
    assert [name for name, _ in turns] == [*ROLES]
    said = ask(exported_server.client, "malt").model_extra["malt"]["turns"]
    # Later prompts have texts that are tokenised again, which may give other ids.
    assert turns[0][1] == said[0]["content"]


def test_roles_after_full_fine_tuning_have_their_own_models(tmp_path: Path) -> None:
    stages = ("round-0/generator/sft", "round-0/refiner/sft")
    make_run(tmp_path / "run", "training.method=full", stages=stages)
    with served(tmp_path / "run", slots=2) as full:
        client = full.client
        texts = {name: _said(full, name) for name in (*ROLES, "base")}
        assert texts["verifier"] == texts["base"]
        assert len(set(texts.values())) == 3
        malt = ask(client, "malt", temperature=0, max_tokens=20).model_extra["malt"]
        assert [turn["role"] for turn in malt["turns"]] == [*ROLES]
    with served(tmp_path / "run", untrained=True) as untrained:
        assert {_said(untrained, name) for name in ROLES} == {texts["base"]}


def _said(server: Served, model: str) -> tuple[str, ...]:
    """A model's greedy answers to some questions."""
    answers = (
        ask(server.client, model, f"What is {number} * 7?", temperature=0, max_tokens=40)
        for number in range(5)
    )
    return tuple(answer.choices[0].message.content for answer in answers)


@contextlib.contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """`malt serve tiny` and its log."""
    server = subprocess.Popen(
        [sys.executable, "-m", "malt_jax", "serve", "tiny", "--port", "0", "--slots", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert server.stderr is not None
    try:
        yield server, server.stderr
    finally:
        server.kill()


def wait_for(pattern: str, log: IO[str]) -> re.Match[str]:
    """The first match in the log, which has to come."""
    lines = []
    for line in log:
        lines.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(lines))


def test_a_process_answers_until_it_is_terminated() -> None:
    with process() as (server, log):
        url = wait_for(r"(http://127\.0\.0\.1:\d+/v1) answers as malt, gen", log)[1]
        body = {"model": "malt", "messages": [{"role": "user", "content": QUESTION}]}
        response = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
        assert response.status_code == 200
        server.send_signal(signal.SIGTERM)
        rest = log.read()
        assert server.wait(timeout=60) == 0
    assert rest.endswith("INFO stopped\n") and "Traceback" not in rest


def test_a_process_that_loads_can_be_terminated() -> None:
    with process() as (server, log):
        wait_for("refiner: untrained", log)
        server.send_signal(signal.SIGTERM)
        rest = log.read()
        assert server.wait(timeout=60) == 0
    assert "Traceback" not in rest and "***" not in rest


def test_a_port_in_use_is_an_error_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of 127\.0\.0\.1 cannot be had.*--port"):
            serve.main(["no-such-model", "--port", str(port)])


def test_wrong_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--host nowhere\.invalid"):
        serve.main(["tiny", "--host", "nowhere.invalid"])
    with pytest.raises(UserError, match="unknown model"):
        serve.main(["no-such-model", "--port", "0"])
    with pytest.raises(UserError, match="the model has 1024 positions"):
        serve.main(["tiny", "--port", "0", "--max-length", "1025"])
    with pytest.raises(UserError, match=r"without a question, and there may be 100:.*--max-length"):
        serve.main(["tiny", "--port", "0", "--max-length", "100"])
    for role in ("malt", "base"):
        with pytest.raises(UserError, match=f"cannot be named '{role}'"):
            prompt = tmp_path / "prompt.yaml"
            prompt.write_text("user: '{question}'\n")
            roles = f"pipeline.roles=[{{name: {role}, prompt: {prompt}}}]"
            serve.main(["tiny", "--port", "0", roles, "training.dpo_roles=[]"])
    with pytest.raises(SystemExit, match="2"):
        serve.main(["tiny", "--port", "70000"])
    assert "from 0 to 65535" in capsys.readouterr().err


class _Broken:
    """A batch whose program fails."""

    def __init__(self) -> None:
        self.tickets: list[Any] = []

    def advance(self, waiting: Any) -> None:
        self.tickets = [waiting.popleft()]
        raise MemoryError("RESOURCE_EXHAUSTED")


def test_a_failed_program_drops_all_jobs_and_is_told() -> None:
    batch: Any = _Broken()
    job = Job([1], 0, -1, (0,), 0.0, 1.0, 0, 1)
    told = threading.Event()
    dropped: list[tuple[list[int], Finish | None]] = []
    engine = Engine([batch])
    engine.on_error = told.set
    with engine:
        engine.submit(job, lambda *given: dropped.append(given))
        assert told.wait(30)
    assert dropped == [([], None)]
    assert isinstance(engine.error, MemoryError)
    engine.submit(job, lambda *given: dropped.append(given))
    assert dropped == [([], None)] * 2
