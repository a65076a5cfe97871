"""Chat requests answered by single roles, and by all roles in turn (the model "malt")."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from malt_jax.config import SamplingConfig
from malt_jax.errors import UserError
from malt_jax.evaluation.statistics import count_votes
from malt_jax.malt.prompts import Pipeline, RolePrompt
from malt_jax.serving.batch import Job
from malt_jax.serving.engine import Engine
from malt_jax.serving.requests import ApiError, ChatRequest
from malt_jax.serving.turn import Turn
from malt_jax.tasks.base import Task

T = TypeVar("T")

MALT, BASE = "malt", "base"
"""Names of models: all roles in turn, and the untrained model."""


class Speaker(NamedTuple):
    """A role, or the untrained model.

    weights, adapter: as in `Job`.
    depth:            the number of the role in the pipeline; 0 for the untrained model.
    prompt:           None: the untrained model has none.
    """

    weights: int
    adapter: int
    depth: int
    prompt: RolePrompt | None = None


class Begin(NamedTuple):
    """The request is accepted."""


class Delta(NamedTuple):
    """More text of a field of the answer's message."""

    field: Literal["content", "reasoning_content"]
    text: str


class End(NamedTuple):
    """The answer is whole.

    malt: the turns, the answer and the votes, where all roles answered.
    """

    finish: str
    prompt_tokens: int
    completion_tokens: int
    malt: dict[str, Any] | None = None


Event = Begin | Delta | End


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of what the server takes on.

    completions: that decode or wait at the same time.
    tokens:      of a prompt and its completion together.
    """

    completions: int
    tokens: int


class Service:
    """Answers requests with the roles of a pipeline.

    speakers: every role, and BASE.
    defaults: sampling parameters for requests without.
    """

    def __init__(
        self,
        engine: Engine,
        pipeline: Pipeline,
        task: Task,
        speakers: Mapping[str, Speaker],
        defaults: SamplingConfig,
        limits: Limits,
    ) -> None:
        self.models = (MALT, *speakers)
        """The names that requests may ask for."""
        self._engine, self._pipeline, self._task = engine, pipeline, task
        self._speakers, self._defaults, self._limits = speakers, defaults, limits
        self._busy = 0

    async def answer(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """`Begin` at once, then the answer as it grows, then `End`.

        A caller that stops early closes the generator: then the request leaves the batch.

        Raises ApiError, instead of `Begin`, for a request that cannot be answered.
        """
        if request.model not in self.models:
            raise unknown_model(request.model, self.models)
        events = self._of_all(request) if request.model == MALT else self._of_one(request)
        async with contextlib.aclosing(events):
            with self._admitted(request.votes or 1):
                yield Begin()
                async for event in events:
                    yield event

    @contextlib.contextmanager
    def _admitted(self, completions: int) -> Iterator[None]:
        """Counts completions that decode or wait. Raises ApiError when there are too many."""
        most = self._limits.completions
        if completions > most:
            raise ApiError(f"votes: at most {most}, got {completions}", param="votes")
        if self._busy + completions > most:
            problem = f"busy: {self._busy} completions decode or wait, at most {most} may"
            raise ApiError(problem, 429, code="queue_full", headers={"Retry-After": "1"})
        self._busy += completions
        try:
            yield
        finally:
            self._busy -= completions

    def _of_one(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """One speaker's answer to a conversation. Raises ApiError for a wrong request."""
        speaker = self._speakers[request.model]
        if request.votes is not None:
            raise ApiError(f"votes: only the model {MALT} has them", param="votes")
        prompt = self._prompt(request, speaker)
        room = self._limits.tokens - len(prompt)
        longest = request.longest or min(self._defaults.max_tokens, room)
        if longest > room or room < 1:
            raise ApiError(
                f"the prompt has {len(prompt)} tokens and the completion up to {max(longest, 1)};"
                f" together they may have {self._limits.tokens}",
                param="messages" if room < 1 else "max_tokens",
                code="context_length_exceeded",
            )
        job = self._job(request, speaker, prompt, longest, _seed(request), 0)
        tokenizer = self._pipeline.tokenizer
        return self._speak(Turn(job, tokenizer, request.stops, request.stop_token_ids or ()))

    async def _speak(self, turn: Turn) -> AsyncGenerator[Event]:
        async with contextlib.aclosing(turn.pieces(self._engine)) as pieces:
            async for piece in pieces:
                yield Delta("content", piece)
        yield _end([turn], turn)

    def _prompt(self, request: ChatRequest, speaker: Speaker) -> Sequence[int]:
        if request.role_inputs is not None:
            return self._role_prompt(request, speaker)
        if not request.messages:
            raise ApiError("messages: at least one is needed", param="messages")
        tokenizer = self._pipeline.tokenizer
        template = {"enable_thinking": tokenizer.thinking}
        if (request.chat_template_kwargs or template) != template:
            raise ApiError(
                f"chat_template_kwargs: the server has {template}; start it with model.thinking",
                param="chat_template_kwargs",
            )
        turns = [message.turn() for message in request.messages]
        controls = [tokenizer.token(id) for id in sorted(tokenizer.special_ids)]
        for number, turn in enumerate(turns):
            for control in controls:
                if control in turn["content"]:
                    problem = f"messages.{number}.content has the control token {control!r}"
                    raise ApiError(f"{problem}, which could end a turn", param="messages")
        try:
            return tokenizer.encode(tokenizer.render(turns), special=True)
        except UserError as error:
            raise ApiError(str(error), param="messages") from None

    def _role_prompt(self, request: ChatRequest, speaker: Speaker) -> Sequence[int]:
        """The role's own prompt, with the texts of the request in its slots."""
        prompt, given = speaker.prompt, request.role_inputs or {}
        if prompt is None:
            problem = f"role_inputs: the model {request.model} has no prompt of its own"
            raise ApiError(problem, param="role_inputs")
        slots = ("question", *prompt.ancestors)
        if request.messages or set(given) != set(slots):
            raise ApiError(
                f"role_inputs: the model {request.model} takes the texts {', '.join(slots)}, and"
                " no messages besides",
                param="role_inputs",
            )
        encode = self._pipeline.tokenizer.encode
        try:
            return prompt.ids(given["question"], [encode(given[x]) for x in prompt.ancestors])
        except UserError as error:
            raise ApiError(str(error), param="role_inputs") from None

    def _job(
        self,
        request: ChatRequest,
        speaker: Speaker,
        prompt: Sequence[int],
        longest: int,
        seed: int,
        number: int,
    ) -> Job:
        """A completion that is drawn with the key of a tree's node.

        With the key of `malt solve` for the seed, and for the first of its branches.
        """
        default, top_k = self._defaults, request.top_k
        return Job(
            prompt=prompt,
            weights=speaker.weights,
            adapter=speaker.adapter,
            path=(seed, speaker.depth, 0, number, *[0] * speaker.depth),
            temperature=_given(request.temperature, default.temperature),
            top_p=_given(request.top_p, default.top_p),
            # -1 switches it off in vLLM's API.
            top_k=max(0, _given(top_k, default.top_k)),
            max_tokens=longest,
        )

    def _of_all(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """All roles' answer to a question. Raises ApiError for a wrong request."""
        for name in ("role_inputs", "stop", "stop_token_ids", "chat_template_kwargs"):
            if getattr(request, name) is not None:
                raise ApiError(f"{name}: not for the model {MALT}", param=name)
        turns = [message.turn() for message in request.messages]
        if [turn["role"] for turn in turns] != ["user"]:
            raise ApiError(
                f"messages: the model {MALT} answers one question, so there has to be one message,"
                " of the user; its roles have prompts of their own",
                param="messages",
            )
        question = turns[0]["content"]
        longest = request.longest or self._defaults.max_tokens
        try:
            needed = positions(self._pipeline, question, longest)
        except UserError as error:
            raise ApiError(str(error), param="messages") from None
        if needed > self._limits.tokens:
            raise ApiError(
                f"the question and {len(self._pipeline.prompts)} completions of up to {longest}"
                f" tokens need {needed} tokens in one prompt; there may be {self._limits.tokens}",
                param="messages",
                code="context_length_exceeded",
            )
        asked = _Asked(request, question, longest, _seed(request))
        return self._vote(asked, request.votes) if request.votes else self._pass(asked, 0, [])

    async def _pass(self, asked: _Asked, number: int, turns: list[Turn]) -> AsyncGenerator[Event]:
        """One turn of every role. Adds them to `turns`."""
        last = len(self._pipeline.prompts) - 1
        for depth, prompt in enumerate(self._pipeline.prompts):
            speaker = self._speakers[prompt.role.name]
            ids = prompt.ids(asked.question, [turn.ids for turn in turns])
            job = self._job(asked.request, speaker, ids, asked.longest, asked.seed, number)
            turn = Turn(job, self._pipeline.tokenizer)
            turns.append(turn)
            if depth < last:
                yield Delta("reasoning_content", _heading(prompt.role.name, depth))
            async with contextlib.aclosing(turn.pieces(self._engine)) as pieces:
                async for piece in pieces:
                    yield Delta("content" if depth == last else "reasoning_content", piece)
        answer = self._task.extract(turns[-1].text)
        yield _end(turns, turns[-1], self._described(turns, answer))

    async def _vote(self, asked: _Asked, votes: int) -> AsyncGenerator[Event]:
        """The first of several passes whose answer has the most votes."""
        passes: list[list[Turn]] = [[] for _ in range(votes)]

        async def draw(number: int) -> None:
            async with contextlib.aclosing(self._pass(asked, number, passes[number])) as events:
                async for _ in events:
                    pass

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(votes):
                    group.create_task(draw(number))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        answers = [self._task.extract(turns[-1].text) for turns in passes]
        counts = count_votes(answers, self._task.equal)
        winner = max(counts, key=counts.__getitem__, default=None)
        # The answer is that of its first voter.
        chosen = passes[answers.index(winner)]
        for depth, (turn, name) in enumerate(zip(chosen, self._pipeline.names, strict=True)):
            if turn is not chosen[-1]:
                yield Delta("reasoning_content", _heading(name, depth) + turn.text)
        yield Delta("content", chosen[-1].text)
        described = self._described(chosen, winner)
        described["votes"] = [{"answer": x, "count": count} for x, count in counts.items()]
        if unparseable := answers.count(None):
            described["votes"].append({"answer": None, "count": unparseable})
        yield _end([turn for turns in passes for turn in turns], chosen[-1], described)

    def _described(self, turns: Sequence[Turn], answer: str | None) -> dict[str, Any]:
        said = [
            {"role": name, "content": turn.text, "finish_reason": turn.finish}
            for name, turn in zip(self._pipeline.names, turns, strict=True)
        ]
        return {"answer": answer, "turns": said}


class _Asked(NamedTuple):
    """A question to all roles; `longest` is the limit of every turn."""

    request: ChatRequest
    question: str
    longest: int
    seed: int


def positions(pipeline: Pipeline, question: str, max_tokens: int) -> int:
    """The most tokens that a role's prompt and completion can have, when all are the longest.

    Raises UserError when the question cannot be tokenised.
    """
    return max(
        len(prompt.ids(question, [[]] * prompt.depth)) + (prompt.depth + 1) * max_tokens
        for prompt in pipeline.prompts
    )


def unknown_model(name: str, models: Sequence[str]) -> ApiError:
    """The error for a model that there is not."""
    problem = f"there is no model {name!r:.80}; there are {', '.join(models)}"
    return ApiError(problem, 404, param="model", code="model_not_found")


def _heading(role: str, depth: int) -> str:
    return ("\n\n" if depth else "") + f"--- {role} ---\n"


def _seed(request: ChatRequest) -> int:
    return secrets.randbits(32) if request.seed is None else request.seed


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def _end(turns: Sequence[Turn], last: Turn, malt: dict[str, Any] | None = None) -> End:
    prompt_tokens = sum(len(turn.job.prompt) for turn in turns)
    return End(last.finish or "stop", prompt_tokens, sum(len(turn.ids) for turn in turns), malt)
