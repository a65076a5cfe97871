"""examples/three_calls.py against a server with OpenAI's chat API that notes what it is asked."""

import contextlib
import json
import runpy
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/three_calls.py"
ANSWERS = ["12+7=19", "Curly {refiner} braces are text.", "Final Answer: 19"]


@contextlib.contextmanager
def server(asked: list[dict[str, Any]]) -> Iterator[str]:
    """Gives ANSWERS in turn."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append({"path": self.path, **json.loads(body)})
            message = {"role": "assistant", "content": ANSWERS[len(asked) - 1]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            reply = {"id": "0", "object": "chat.completion", "created": 0, "model": "any"}
            content = json.dumps(reply | {"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def run_example(monkeypatch: pytest.MonkeyPatch, directory: Path, url: str, *options: str) -> None:
    arguments = [str(directory), "12 + 7?", "--url", url, *options]
    monkeypatch.setattr(sys, "argv", ["three_calls.py", *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_untrained_roles_are_the_base_model(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((exported / "pipeline.json").read_text())
    content["roles"][1]["directory"] = None
    content["sampling"]["top_k"] = 5
    content["chat_template_kwargs"] = {"enable_thinking": False}
    (tmp_path / "pipeline.json").write_text(json.dumps(content))
    asked: list[dict[str, Any]] = []
    with server(asked) as url:
        run_example(monkeypatch, tmp_path, url, "--base", "other", "--llama-cpp")
    assert [call["model"] for call in asked] == ["generator", "other", "refiner"]
    assert all(call["top_k"] == 5 for call in asked)
    assert all(call["chat_template_kwargs"] == {"enable_thinking": False} for call in asked)
    numbers = [[used["id"] for used in call["lora"]] for call in asked]
    assert numbers == [[0], [], [1]]


def test_every_role_reads_the_answers_before_it(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []
    with server(asked) as url:
        run_example(monkeypatch, exported, url, "--model", "base:{role}")
    assert [call["model"] for call in asked] == ["base:generator", "base:verifier", "base:refiner"]
    described = json.loads((exported / "pipeline.json").read_text())
    for call, role in zip(asked, described["roles"], strict=True):
        assert call["path"] == "/v1/chat/completions"
        assert call["temperature"] == 0.3 and call["top_p"] == 0.9 and call["max_tokens"] == 40
        assert call["stop_token_ids"] == [1] and "top_k" not in call
        system, user = call["messages"]
        assert system == {"role": "system", "content": role["system"]}
        assert user["role"] == "user" and "12 + 7?" in user["content"]
    assert asked[1]["messages"][1]["content"] == f"12 + 7?\nAnswer:\n{ANSWERS[0]}"
    assert asked[2]["messages"][1]["content"].endswith(
        f"Answer:\n{ANSWERS[0]}\nCheck:\n{ANSWERS[1]}"
    )
    assert not any({"lora", "chat_template_kwargs"} & {*call} for call in asked)
    assert capsys.readouterr().out.endswith(f"--- refiner ---\n{ANSWERS[2]}\n\n")
