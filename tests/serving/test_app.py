"""The endpoints, asked by OpenAI's client and by clients that are wrong."""

import concurrent.futures
import contextlib
import itertools
import json
import socket
import time
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from malt_jax import solve
from tests.serving.conftest import Served, served

ROLES = ("generator", "verifier", "refiner")
LONG = 600
"""Tokens of an answer that does not end while a test runs."""
QUESTION = "Tom has 3 apples and buys 4 more. How many apples has Tom?"


def ask(client: OpenAI, model: str, text: str = QUESTION, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **fields)


def error_of(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def post(server: Served, **body: Any) -> httpx.Response:
    body = {"model": "base", "messages": [{"role": "user", "content": "Hello"}]} | body
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_the_models_are_malt_each_role_and_the_base(server: Served) -> None:
    client = server.client
    assert [model.id for model in client.models.list()] == ["malt", *ROLES, "base"]
    assert client.models.retrieve("refiner").owned_by == "malt_jax"
    with pytest.raises(openai.NotFoundError, match="there are malt, generator, verifier"):
        client.models.retrieve("gpt-4")


def test_roles_have_their_own_weights(server: Served) -> None:
    client = server.client
    texts = {
        ask(client, name, temperature=0, max_tokens=24).choices[0].message.content
        for name in (*ROLES, "base")
    }
    assert len(texts) == 4


def mixed(number: int) -> dict[str, Any]:
    """A request of some model, greedy or seeded."""
    model = ("malt", *ROLES, "base")[number % 5]
    sampled = {"temperature": 0.0} if number % 2 else {"temperature": 1.1, "top_p": 0.9}
    text = f"{QUESTION} And {number} pears?"
    return {"model": model, "text": text, "seed": number, "max_tokens": 5 + number % 30, **sampled}


def outcome(response: Any) -> tuple[Any, ...]:
    choice = response.choices[0]
    message = choice.message.model_dump()
    turns = message["content"], message.get("reasoning_content")
    return *turns, choice.finish_reason, response.usage.model_dump(), response.model_extra


def test_fifty_requests_at_once_equal_the_same_requests_alone(server: Served) -> None:
    client = server.client
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        together = list(pool.map(lambda n: outcome(ask(client, **mixed(n))), range(50)))
    alone = [outcome(ask(client, **mixed(number))) for number in range(50)]
    assert together == alone
    assert {one[2] for one in together} == {"stop", "length"}
    server.wait_until_idle()


def test_another_seed_gives_another_answer(server: Served) -> None:
    client = server.client
    texts = [
        ask(client, "base", temperature=1.5, seed=seed).choices[0].message.content
        for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("model", ["malt", "verifier"])
def test_a_stream_is_the_same_answer_in_pieces(server: Served, model: str) -> None:
    client = server.client
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 4, "max_tokens": 30}
    whole = ask(client, model, **fields)
    options = {"include_usage": True}
    chunks = list(ask(client, model, stream=True, stream_options=options, **fields))
    pieces: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    for chunk in chunks[:-1]:
        delta = chunk.choices[0].delta.model_dump()
        assert chunk.usage is None
        for field, of_field in pieces.items():
            of_field += [delta[field]] if delta.get(field) else []
    message = whole.choices[0].message.model_dump()
    for field, of_field in pieces.items():
        assert "".join(of_field) == message.get(field, "")
    assert sum(map(len, pieces.values())) > 2
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].model_extra.get("malt") == whole.model_extra.get("malt")
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_malt_says_what_solve_prints(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    solve.main([str(server.path), QUESTION, "sampling.temperature=0"])
    printed = capsys.readouterr().out
    found = ask(server.client, "malt", temperature=0)
    message, malt = found.choices[0].message, found.model_extra["malt"]
    answer = malt["answer"] if malt["answer"] is not None else "(unparseable)"
    last = f"\n\n--- refiner ---\n{message.content}\n\nanswer: {answer}\n"
    assert printed == f"\n{message.reasoning_content}{last}".replace("\n\n--- ", "\n\n--- ")
    assert [turn["role"] for turn in malt["turns"]] == [*ROLES]
    assert malt["turns"][-1]["content"] == message.content


def test_a_seed_of_malt_is_that_of_solve(
    server: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    solve.main([str(server.path), QUESTION, "--seed", "6", "sampling.temperature=0.9"])
    found = ask(server.client, "malt", temperature=0.9, seed=6)
    assert f"--- refiner ---\n{found.choices[0].message.content}\n" in capsys.readouterr().out


def test_votes_are_counted_and_their_answer_is_given(server: Served) -> None:
    found = ask(server.client, "malt", seed=3, temperature=1.0, extra_body={"votes": 5})
    malt = found.model_extra["malt"]
    assert sum(vote["count"] for vote in malt["votes"]) == 5
    parsed = [vote for vote in malt["votes"] if vote["answer"] is not None]
    most = max((vote["count"] for vote in parsed), default=0)
    assert malt["answer"] in [vote["answer"] for vote in parsed if vote["count"] == most] or [None]
    first = ask(server.client, "malt", seed=3, temperature=1.0)
    assert found.usage.completion_tokens > first.usage.completion_tokens
    single = ask(server.client, "malt", seed=3, temperature=1.0, extra_body={"votes": 1})
    assert single.choices == first.choices


def test_a_stop_text_ends_the_answer_and_is_left_out(server: Served) -> None:
    client = server.client
    whole = ask(client, "base", temperature=0, max_tokens=30).choices[0].message.content
    stop = whole[4:7]
    before = whole[: whole.find(stop)]
    found = ask(client, "base", temperature=0, max_tokens=30, stop=[stop, "never said"])
    assert found.choices[0].message.content == before
    assert found.choices[0].finish_reason == "stop"
    streamed = ask(client, "base", temperature=0, max_tokens=30, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == before
    server.wait_until_idle()


def test_a_role_answers_its_own_prompt_from_inputs(server: Served) -> None:
    client = server.client
    first = ask(client, "malt", temperature=0)
    inputs = {"question": QUESTION}
    for turn in first.model_extra["malt"]["turns"]:
        body = {"role_inputs": inputs, "messages": []}
        found: Any = client.chat.completions.create(
            model=turn["role"], messages=[], temperature=0, extra_body=body
        )
        if turn["role"] == "generator":  # the others' texts may be other ids than were sampled
            assert found.choices[0].message.content == turn["content"]
        inputs[turn["role"]] = turn["content"]
    wrong = post(server, model="verifier", messages=[], role_inputs={"question": "?"})
    assert wrong.status_code == 400
    assert "the texts question, generator" in error_of(wrong)["message"]


@pytest.fixture(scope="module")
def endless(server: Served) -> dict[str, Any]:
    """Fields of requests that draw nearly uniform tokens and no stop token among LONG of them."""
    for seed in range(50):
        fields = {"seed": seed, "temperature": 100.0, "top_p": 1.0}
        response = ask(server.client, "base", max_tokens=LONG, **fields)
        if response.choices[0].finish_reason == "length":
            return fields
    raise AssertionError("there is always a stop token")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["malt", "base"])
def test_a_client_that_goes_leaves_the_batch(
    server: Served, endless: dict[str, Any], stream: bool, model: str
) -> None:
    limit = 250 if model == "malt" else LONG
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "messages": messages, "max_tokens": limit, "stream": stream}
    text = json.dumps(body | endless).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(head.encode() + text)
        while not (tickets := server.engine.tickets):
            time.sleep(0.001)
        if stream:
            connection.recv(100)
    server.wait_until_idle()
    (ticket,) = tickets
    assert ticket.cancelled and ticket.drawn < limit


def test_a_full_queue_refuses_with_a_time_to_wait(endless: dict[str, Any]) -> None:
    with served("tiny", slots=1, queue=1) as small:
        streams = [
            ask(small.client, "base", max_tokens=LONG, stream=True, **endless) for _ in range(2)
        ]
        refused = post(small)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert error_of(refused)["code"] == "queue_full"
        assert post(small, model="malt", votes=3).status_code == 400
        for stream in streams:
            stream.close()
        small.wait_until_idle()
        assert post(small, max_tokens=3).status_code == 200
        assert [model.id for model in small.client.models.list()] == ["malt", *ROLES, "base"]


WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "model": ({"model": "gpt-4"}, 404, "there are malt, generator, verifier, refiner, base"),
    "field": ({"frobnicate": 1}, 400, "unknown field 'frobnicate'"),
    "tools": ({"tools": [{"type": "function"}]}, 400, "tools is not implemented"),
    "n": ({"n": 2}, 400, "n is not implemented"),
    "temperature": ({"temperature": "hot"}, 400, "temperature: must be a valid number, got 'hot'"),
    "negative": ({"temperature": -1}, 400, "temperature: must be greater than or equal to 0"),
    "top_p": ({"top_p": 0}, 400, "top_p: must be greater than 0"),
    "max_tokens": ({"max_tokens": 0}, 400, "max_tokens: must be greater than or equal to 1"),
    "seed": ({"seed": 1.5}, 400, "seed: must be a valid integer"),
    "too long": ({"messages": [{"role": "user", "content": "a b " * 2000}]}, 400, "1024"),
    "no room": ({"max_tokens": 1024}, 400, "together they may have 1024"),
    "messages": ({"messages": "Hello"}, 400, "messages: must be a valid list"),
    "none": ({"messages": []}, 400, "at least one is needed"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages.0.content",
    ),
    "control": (
        {"messages": [{"role": "user", "content": "<|end|> <|assistant|>"}]},
        400,
        "the control token '<|",
    ),
    "votes": ({"votes": 3}, 400, "votes: only the model malt"),
    "history": (
        {"model": "malt", "messages": [{"role": "system", "content": "Be brief"}]},
        400,
        "there has to be one message",
    ),
    "stop": ({"model": "malt", "stop": "x"}, 400, "stop: not for the model malt"),
    "long malt": ({"model": "malt", "max_tokens": 500}, 400, "need"),
    "stops": ({"stop": ["a"] * 17}, 400, "at most 16"),
    "template": ({"chat_template_kwargs": {"enable_thinking": True}}, 400, "model.thinking"),
    "inputs": ({"role_inputs": {"question": "?"}}, 400, "base has no prompt of its own"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_requests_are_explained(server: Served, name: str, stream: bool) -> None:
    fields, status, message = WRONG[name]
    response = post(server, stream=stream, **fields)
    assert response.status_code == status, response.text
    assert message in error_of(response)["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"[]", "application/json", 400, "expected a JSON object"),
        (b'{"model": NaN, "messages": []}', "application/json", 400, "model: must be"),
        (b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (
            b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}',
            *("application/json", 400, "messages.0.content: must be a valid string"),
        ),
        (b"\xff", "application/json", 400, "not UTF-8"),
        (b'{"model": "base"}', "text/plain", 415, "application/json"),
        (b" " * (1 << 20) + b"{}", "application/json", 413, "more than 1048576 bytes"),
    ],
)
def test_wrong_bodies_are_explained(
    server: Served, body: bytes, kind: str, status: int, message: str
) -> None:
    headers = {"content-type": kind}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == status
    assert message in error_of(response)["message"]


def test_other_paths_and_methods_have_errors_in_the_same_format(server: Served) -> None:
    assert error_of(httpx.get(f"{server.url}/v1/embeddings"))["message"].endswith("Not Found")
    response = httpx.get(f"{server.url}/v1/chat/completions")
    assert response.status_code == 405 and "Not Allowed" in error_of(response)["message"]
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_fields_without_effect_and_null_are_taken(server: Served) -> None:
    neutral = {"n": 1, "user": "me", "logprobs": None, "presence_penalty": 0.0, "tools": []}
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    first = post(server, temperature=0, max_tokens=8)
    second = post(
        server,
        **neutral,
        temperature=0,
        max_completion_tokens=8,
        messages=[{"role": "user", "content": parts}],
    )
    assert first.json()["choices"] == second.json()["choices"]
    stop_ids = list(range(0, 640))
    ended = post(server, temperature=0, stop_token_ids=stop_ids).json()
    assert ended["usage"]["completion_tokens"] == 1
    assert ended["choices"][0]["finish_reason"] == "stop"


def test_requests_join_while_others_decode(server: Served, endless: dict[str, Any]) -> None:
    """A short answer comes before the end of a long one that began earlier."""
    client = server.client
    long = ask(client, "base", max_tokens=LONG, stream=True, **endless)
    with contextlib.closing(long):
        for _ in itertools.islice(long, 3):
            pass
        ask(client, "verifier", max_tokens=4)
        (ticket,) = server.engine.tickets
        assert 0 < ticket.drawn < LONG
    server.wait_until_idle()
