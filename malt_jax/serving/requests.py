"""Requests as clients send them: the fields of OpenAI's chat API that this server takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from malt_jax.errors import UserError
from malt_jax.files import parse_json_object

MAX_BODY_BYTES = 1 << 20
"""Longest body of a request."""

Text = Annotated[str, Field(max_length=MAX_BODY_BYTES)]
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Id = Annotated[int, Field(ge=0, le=2**31 - 1)]

_WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier")
"""Fields that change no answer."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of OpenAI's API and of other servers that are not implemented, and the values that ask for
nothing else than what happens; null is one of them."""


class ApiError(Exception):
    """An answer with a status of 400 or more, in OpenAI's format.

    param: the field of the request that is wrong.
    code:  for programs.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        fields = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


class _Part(pydantic.BaseModel):
    model_config = _STRICT
    type: Literal["text"]
    text: Text


class Message(pydantic.BaseModel):
    """A turn of a conversation."""

    model_config = _STRICT
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_Part]
    name: str | None = None

    def turn(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(pydantic.BaseModel):
    """Options of a streamed answer."""

    model_config = _STRICT
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(pydantic.BaseModel):
    """The body of POST /v1/chat/completions; docs/serving.md describes every field."""

    model_config = _STRICT
    model: Text
    messages: list[Message] = []
    role_inputs: dict[str, Text] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    seed: _Seed | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[_Id] | None = None
    chat_template_kwargs: dict[str, bool] | None = None
    votes: Annotated[int, Field(ge=1, le=1024)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a completion."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def longest(self) -> int | None:
        """The limit of tokens; None: the server's."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_request(body: bytes) -> ChatRequest:
    """Reads the body of a request, which is not trusted.

    Raises ApiError for bad JSON, a field that is unknown or not implemented, and a wrong value.
    """
    try:
        fields = parse_json_object(body, "the body")
    except UserError as error:
        raise ApiError(str(error), code="invalid_json") from None
    known: dict[str, Any] = {}
    for name, value in fields.items():
        if name in ChatRequest.model_fields:
            known[name] = value
        elif name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            problem = f"{name} is not implemented; leave it out"
            raise ApiError(problem, param=name, code="unsupported_parameter")
        elif name not in _NEUTRAL and name not in _WITHOUT_EFFECT:
            there = ", ".join(ChatRequest.model_fields)
            problem = f"unknown field {name!r:.50}; there are {there}"
            raise ApiError(problem, param=name[:50], code="unknown_parameter")
    try:
        request = ChatRequest.model_validate(known)
    except pydantic.ValidationError as error:
        raise _explained(error.errors()[0]) from None
    stops = request.stops
    if len(stops) > 16 or not all(stops):
        raise ApiError("stop: at most 16 texts, none of them empty", param="stop")
    return request


def _explained(problem: Any) -> ApiError:
    models = (ChatRequest, Message, _Part, StreamOptions)
    known = {name for model in models for name in model.model_fields}
    # The other parts of a place are the alternatives of a union.
    name = ".".join(str(x) for x in problem["loc"] if isinstance(x, int) or x in known)
    message = problem["msg"].replace("Input should", "must")
    if problem["type"] == "missing":
        return ApiError(f"the field {name!r} is missing", param=name, code="missing_parameter")
    return ApiError(f"{name}: {message}, got {problem['input']!r:.80}", param=name)
