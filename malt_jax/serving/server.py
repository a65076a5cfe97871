"""The server's process: its socket, its engine and its signals."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import uvicorn
from fastapi import FastAPI

from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.evaluation.sampling import evaluation_key
from malt_jax.evaluation.source import Source
from malt_jax.malt.experiment import Experiment, prepare
from malt_jax.serving.app import create_app
from malt_jax.serving.batch import Batch, Job
from malt_jax.serving.engine import Engine
from malt_jax.serving.load import load_speakers
from malt_jax.serving.service import Limits, Service, Speaker, positions

logger = logging.getLogger(__name__)

CHUNK = 4
"""Tokens that are decoded between two looks at who comes and goes."""
TOKENS = 4096
"""Default of the tokens of a prompt and its completion; more where the roles' prompts need it."""
LAST_SECONDS = 10
"""Time that requests have to finish in after SIGTERM."""


class Options(NamedTuple):
    """What a server is started with.

    tokens: the limit of a prompt and its completion together; None: chosen.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 16
    queue: int = 64
    tokens: int | None = None
    untrained: bool = False


def serve(source: Source, options: Options) -> None:
    """Answers requests until SIGTERM or SIGINT.

    Raises UserError when the port cannot be had, when the models cannot be loaded or have no room
    for the roles' prompts, and when memory does not suffice.
    """
    with contextlib.closing(bind(options.host, options.port)) as listener, _ends_quietly():
        with answering(source, options) as (service, engine):
            server = create_server(create_app(service))
            # From another thread: uvicorn looks at this ten times a second.
            engine.on_error = lambda: setattr(server, "should_exit", True)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            logger.info("http://%s:%d/v1 answers as %s", shown, port, ", ".join(service.models))
            _run(server, listener)
        if engine.error is not None:
            if "RESOURCE_EXHAUSTED" in str(engine.error):
                raise UserError(
                    "the device's memory is full; start with fewer --slots or a lower --max-length"
                ) from engine.error
            raise engine.error
    logger.info("stopped")


@contextlib.contextmanager
def answering(source: Source, options: Options) -> Iterator[tuple[Service, Engine]]:
    """The service of a source's roles and its running engine, inside a `with` block.

    Raises UserError as `serve` does.
    """
    config = source.config
    experiment = prepare(config, source.roles)
    limits = _limits(experiment, config, options)
    trained = {} if options.untrained else source.trained(experiment.policy)
    weights, speakers = load_speakers(experiment, trained)
    for name, speaker in speakers.items():
        if speaker.prompt is not None:
            logger.info("%s: %s", name, "trained" if name in trained else "untrained")
    key, stop_ids = evaluation_key(config.seed), experiment.pipeline.tokenizer.stop_ids
    batches = [Batch(each, key, stop_ids, options.slots, CHUNK) for each in weights]
    for number, batch in enumerate(batches):
        batch.warm_up(_first_jobs(speakers, number))
    with Engine(batches) as engine:
        parts = experiment.pipeline, experiment.task, speakers
        yield Service(engine, *parts, config.sampling, limits), engine


def _limits(experiment: Experiment, config: Config, options: Options) -> Limits:
    """Raises UserError when the roles' prompts do not fit."""
    pipeline, longest = experiment.pipeline, experiment.sampler.model.config.max_positions
    needed = positions(pipeline, "", config.sampling.max_tokens)
    tokens = options.tokens or min(longest, max(TOKENS, needed + 1024))
    if tokens > longest:
        raise UserError(f"--max-length {tokens}: the model has {longest} positions")
    if needed >= tokens:
        raise UserError(
            f"the roles' prompts with completions of up to sampling.max_tokens="
            f"{config.sampling.max_tokens} need {needed} tokens without a question, and there may"
            f" be {tokens}: lower sampling.max_tokens"
            + (" or raise --max-length" if tokens < longest else "")
        )
    return Limits(options.slots + options.queue, tokens)


def _first_jobs(speakers: dict[str, Speaker], weights: int) -> list[Job]:
    """Jobs with the lengths of the roles' own prompts, which compile the first programs."""
    jobs = []
    for speaker in speakers.values():
        prompt = [0] if speaker.prompt is None else speaker.prompt.ids("", [[]] * speaker.depth)
        path = (0, speaker.depth, 0, 0, *[0] * speaker.depth)
        if speaker.weights == weights:
            jobs.append(Job(prompt, weights, speaker.adapter, path, 1.0, 0.9, 0, max_tokens=1))
    return jobs


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, on which nothing listens yet.

    port: 0: any that is free.

    Raises UserError when the address is unknown or in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: no address of this machine ({error.strerror})") from None
    try:
        # A server that has just ended keeps its port for a minute otherwise.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port} of {host} cannot be had ({error.strerror}): another program may use it;"
            " name another with --port, or 0 for one that is free"
        ) from None
    return listener


@contextlib.contextmanager
def _ends_quietly() -> Iterator[None]:
    """Ends the process with status 0 on SIGTERM, while it loads or compiles too."""

    def leave(*_: Any) -> None:
        raise SystemExit

    jax.devices()  # libtpu, where it is installed, handles signals from here on
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def create_server(app: FastAPI) -> uvicorn.Server:
    """An HTTP server that logs nothing by itself."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return uvicorn.Server(config)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Runs until a signal. uvicorn raises the signal again at its end, for the handlers before."""

    def stop(*_: Any) -> None:
        server.should_exit = True

    signals = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(each, stop) for each in signals]
    try:
        server.run(sockets=[listener])
    except OSError as error:
        # Between binding and listening another program may have begun to listen.
        raise UserError(f"the port cannot be had ({error.strerror}); name another") from None
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
