"""The HTTP endpoints: a part of OpenAI's API, and their JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from malt_jax.serving.requests import MAX_BODY_BYTES, ApiError, ChatRequest, parse_request
from malt_jax.serving.service import Delta, End, Event, Service, unknown_model

logger = logging.getLogger(__name__)
T = TypeVar("T")


def create_app(service: Service) -> FastAPI:
    """The application that answers with a service."""
    app = FastAPI(title="malt_jax", docs_url=None, redoc_url=None, openapi_url=None)
    started = int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": "malt_jax"}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in service.models]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        if name not in service.models:
            raise unknown_model(name, service.models)
        return model(name)

    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        request = parse_request(await _body(http))
        events = service.answer(request)
        await anext(events)  # Begin; a request that cannot be answered ends here with its status
        if request.stream:
            return StreamingResponse(_stream(request, events), media_type="text/event-stream")
        return JSONResponse(await _until_disconnect(http, _whole(request, events)))

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_endpoint(http: Request, error: HTTPException) -> Response:
        problem = ApiError(f"{http.method} {http.url.path}: {error.detail}", error.status_code)
        return JSONResponse(problem.body(), error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    return app


async def _body(http: Request) -> bytes:
    """The body of a request, no longer than is allowed.

    A browser asks before it sends JSON to another site, and this server does not agree. So no web
    page can make requests of its visitors.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(f"the content type has to be application/json, got {kind!r:.80}", 415)
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(f"the body has more than {MAX_BODY_BYTES} bytes", 413)
    return bytes(body)


async def _until_disconnect(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled when the client disconnects."""

    async def disconnect() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(request: ChatRequest, events: AsyncGenerator[Event]) -> dict[str, Any]:
    """The JSON of an answer that is sent as a whole."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    head, began = _head(request, "chat.completion"), time.monotonic()
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                message[event.field] = message.get(event.field, "") + event.text
            elif isinstance(event, End):
                _log(request, event, began)
                choice = _choice(message=message, finish_reason=event.finish)
                malt = {} if event.malt is None else {"malt": event.malt}
                return head | {"choices": [choice], "usage": _usage(event)} | malt
    raise AssertionError("an answer without an end")


async def _stream(request: ChatRequest, events: AsyncGenerator[Event]) -> AsyncGenerator[str]:
    """The server-sent events of an answer that is sent while it grows."""
    head, began = _head(request, "chat.completion.chunk"), time.monotonic()
    options = request.stream_options
    # With it, every chunk has the field: null but in the last one.
    usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
        return _event(head | {"choices": choices} | usage | more)

    async with contextlib.aclosing(events):
        yield chunk([_choice(delta={"role": "assistant", "content": ""}, finish_reason=None)])
        try:
            async for event in events:
                if isinstance(event, Delta):
                    delta = {event.field: event.text}
                    yield chunk([_choice(delta=delta, finish_reason=None)])
                elif isinstance(event, End):
                    _log(request, event, began)
                    malt = {} if event.malt is None else {"malt": event.malt}
                    yield chunk([_choice(delta={}, finish_reason=event.finish)], **malt)
                    if usage:
                        yield chunk([], usage=_usage(event))
        except ApiError as error:
            yield _event(error.body())
    yield "data: [DONE]\n\n"


def _head(request: ChatRequest, kind: str) -> dict[str, Any]:
    id = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": id, "object": kind, "created": int(time.time()), "model": request.model}


def _choice(**fields: Any) -> dict[str, Any]:
    return {"index": 0, "logprobs": None, **fields}


def _usage(end: End) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _log(request: ChatRequest, end: End, began: float) -> None:
    logger.info(
        "%s: %d tokens read, %d written in %.1f s",
        *(request.model, end.prompt_tokens, end.completion_tokens, time.monotonic() - began),
    )
