"""Servers on free ports, in threads of the test's process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import OpenAI

from malt_jax.evaluation.source import Source
from malt_jax.serving.app import create_app
from malt_jax.serving.engine import Engine
from malt_jax.serving.server import Options, answering, bind, create_server
from tests.export.conftest import make_run


class Served(NamedTuple):
    """A running server."""

    url: str
    engine: Engine
    path: Path

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def wait_until_idle(self) -> None:
        """Fails unless all jobs leave soon."""
        deadline = time.monotonic() + 30
        while self.engine.tickets:
            assert time.monotonic() < deadline, "a job does not leave"
            time.sleep(0.02)


@contextlib.contextmanager
def served(path: Path | str, *overrides: str, **options: Any) -> Iterator[Served]:
    """Serves a run, an export or a model."""
    source = Source.read(str(path), overrides)
    chosen = Options(port=0, **options)
    with (
        contextlib.closing(bind(chosen.host, chosen.port)) as listener,
        answering(source, chosen) as (service, engine),
    ):
        server = create_server(create_app(service))
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        serving.start()
        try:
            while not server.started:
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Served(url, engine, Path(path))
        finally:
            server.should_exit = True
            serving.join(30)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serves a run whose roles have random adapters, in eight slots."""
    path = tmp_path_factory.mktemp("served") / "run"
    make_run(path)
    with served(path, slots=8, queue=200) as found:
        yield found
