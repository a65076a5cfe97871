"""The page of finished, unfinished, foreign and damaged runs, read without a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from malt_jax.cli import main
from malt_jax.config import to_yaml
from malt_jax.errors import UserError
from malt_jax.files import location, write_atomically
from malt_jax.viewer import page as page_module
from malt_jax.viewer.page import write_report
from tests.buckets import emulated
from tests.viewer.conftest import ROLES, MadeRun, boxed, correct


class Page(HTMLParser):
    """The text of a page, its scripts and its packed data."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.text, self.scripts, self.data = "", list[str](), dict[str, str]()
        self.policy = ""
        self._inside: str | None = None
        self._name: str | None = None
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._inside, self._name = tag, given.get("data-name")
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and self._name:
            self.data[self._name] = data
        elif self._inside == "script" and data.strip():
            self.scripts.append(data)
        elif self._inside not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def unpacked(self, name: str) -> Any:
        return json.loads(gzip.decompress(base64.b64decode(self.data[name])))


def written(run: MadeRun) -> Page:
    file = write_report(UPath(run.path))
    assert file is not None
    return Page(Path(str(file)))


def test_the_overview_has_results_stages_curves_options_and_versions(made: MadeRun) -> None:
    page = written(made)
    for text in (
        "tiny on arithmetic: 1,000 questions, 4 seeds",
        "87.0 [84.9, 89.1]",
        "Accuracy against calls",
        "Accuracy after each role, %",
        "Cost of an answer",
        "round-0/verifier/dpo",
        "rewards/margins",
        "task.train_questions",
        "sampling:\n  temperature: 0.3",
        "optax",
    ):
        assert text in page.text
    assert "has not finished" not in page.text


def test_tokens_of_stages_are_those_of_the_files(made: MadeRun) -> None:
    tree = made.tree(list(made.train))
    of_role = {
        role: sum(
            int(tree.completions[depth].lengths[row["question"], *row["path"]])
            for line in (made.path / f"round-0/rows/{role}/sft.jsonl").read_text().splitlines()
            for row in [json.loads(line)]
        )
        for depth, role in enumerate(ROLES)
    }
    page = written(made)
    row = (
        r"round-0/(\S+)</th><td class=\"text state[^>]*>[^<]*</td>(?:<td>[^<]*</td>){2}<td>([^<]*)"
    )
    cells = re.findall(row, page.source)
    shown = {name: int(text.replace(",", "")) for name, text in cells if text}
    assert shown["trees"] == tree.tokens
    # Two epochs: five updates of 1 / 2.5 each.
    assert {role: shown[f"{role}/sft"] for role in ROLES} == {
        role: 2 * count for role, count in of_role.items()
    }


def test_entries_and_nodes_are_those_of_the_tree(made: MadeRun) -> None:
    page = written(made)
    index = page.unpacked("index")
    entry = index["rounds"][0][1]
    assert (entry["id"], entry["reference"]) == (1, "11")
    assert entry["groups"] == {"level": "Level 2", "subject": "Geometry"}
    leaves = [correct(1, (a, b, c)) for a in range(3) for b in range(3) for c in range(3)]
    assert entry["value"] == pytest.approx(sum(leaves) / 27, abs=1e-4)
    # Values of siblings: 4/9, 5/9, 4/9 at the first role, 1/3 and 2/3 at the second.
    assert entry["spread"] == pytest.approx((1 / 9 + 3 * 1 / 3) / 4, abs=1e-4)
    assert entry["disputed"] and not entry["cut"] and not entry["unparseable"]
    node = page.unpacked(entry["chunk"])["1"]["nodes"]["1.0.0"]
    assert "".join(node["pieces"]) == boxed(1, (1, 0, 0))
    assert node["costs"] == [25 * place for place in range(len(node["pieces"]))]
    assert (node["answer"], node["correct"], node["sft"], node["over"]) == ("11", True, True, [1])
    assert [entry["disputed"] for entry in index["rounds"][0]] == [False, True, True]


def test_before_and_after_come_from_the_samples(made: MadeRun) -> None:
    page = written(made)
    entries = page.unpacked("index")["test"]
    assert [entry["shares"] for entry in entries] == [[1, 1, 1], [0.3333, 0.6667, 1], [0, 0, 0]]
    assert [entry["gained"] for entry in entries] == [False, True, False]
    stages = page.unpacked(entries[1]["chunk"])["1"]["stages"]
    assert [(stage["name"], stage["training"]) for stage in stages] == [
        ("untrained", ["untrained"] * 3),
        ("after SFT", ["SFT"] * 3),
        ("after DPO", ["SFT", "DPO", "DPO"]),
    ]


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "run")
    page = written(run)
    assert "This run has not finished: 0 of 7 stages are done" in " ".join(page.text.split())
    assert page.unpacked("index")["rounds"] == [[]]
    with pytest.raises(RuntimeError), run.directory.stage("round-0/trees"):
        run.directory.growing("round-0/trees").write("batch-00000.parquet", b"no Parquet")
        raise RuntimeError
    page = written(run)
    assert "in progress, or interrupted" in page.text
    assert "batch-00000.parquet cannot be read as a tree" in page.text


def test_a_run_without_its_questions_still_shows_its_texts(made: MadeRun) -> None:
    (made.path.parent / "questions/train.jsonl").unlink()
    page = written(made)
    assert "The questions cannot be loaded" in page.text
    entry = page.unpacked("index")["rounds"][0][1]
    assert entry["text"] == "(the text of question 1 cannot be loaded)"
    node = page.unpacked(entry["chunk"])["1"]["nodes"]["0"]
    assert "".join(node["pieces"]) == boxed(1, (0,)) and node["correct"] is None


def test_a_run_without_its_tokenizer_shows_whole_texts_and_plain_prompts(made: MadeRun) -> None:
    config = made.path / "config.yaml"
    config.write_text(to_yaml(made.config).replace("name: tiny", "name: ./no-such-model"))
    page = written(made)
    assert "without tokens" in page.text and "no-such-model" in page.text
    index = page.unpacked("index")
    assert "[user]\n" in index["prompts"]["generator"]
    entry = index["rounds"][0][0]
    assert page.unpacked(entry["chunk"])["0"]["nodes"]["0"]["pieces"] == [boxed(0, (0,))]


@pytest.mark.parametrize("content", ["{", '{"systems": {"sa": 3}}', '{"systems": {}}'])
def test_damaged_results_are_noted(made: MadeRun, content: str) -> None:
    (made.path / "results.json").write_text(content)
    page = written(made)
    assert "results.json" in page.text and "Accuracy against calls" not in page.text


def test_texts_of_files_are_escaped(made: MadeRun, content: dict[str, Any]) -> None:
    evil = "</script></style><script>alert(1)</script><b onclick='alert(1)'>\"&amp;"
    made.add_results(content | {"model": evil, "versions": {evil: evil}})
    page = written(made)
    assert evil not in page.source
    assert evil in page.text


def test_the_policy_knows_the_page_s_own_scripts(made: MadeRun) -> None:
    page = written(made)
    assert len(page.scripts) == 3
    for script in page.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy
    sources = page.policy.partition("script-src")[2].partition(";")[0]
    assert "unsafe" not in sources and "default-src 'none'" in page.policy
    assert not re.search(r"(?:src|href)=[\"']?https?:", page.source)
    assert not re.search(r"url\((?!data:)", page.source)


def test_equal_runs_give_equal_pages_and_old_data_is_removed(
    made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = written(made).source
    assert written(made).source == first
    monkeypatch.setattr("malt_jax.viewer.sidecar.INLINE", 0)
    assert set(written(made).data) == {"index"}
    data = made.path / "report/data"
    assert sorted(file.name for file in data.iterdir()) == ["test-0.js", "trees-0-0.js"]
    monkeypatch.undo()
    assert written(made).source == first and not list(data.iterdir())


def test_other_processes_write_nothing(made: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "is_coordinator", lambda: False)
    assert write_report(UPath(made.path)) is None
    assert not (made.path / "report").exists()


def test_the_command_writes_to_another_folder(
    made: MadeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(made.path), "--out", str(tmp_path / "there")])
    assert (tmp_path / "there/index.html").is_file() and not (made.path / "report").exists()
    assert str(tmp_path / "there/index.html") in capsys.readouterr().out


def test_a_run_in_a_bucket_has_its_report_there(made: MadeRun) -> None:
    with emulated() as address:
        run = location(f"{address}/run")
        for file in filter(Path.is_file, made.path.rglob("*")):
            write_atomically(run / str(file.relative_to(made.path)), file.read_bytes())
        there = write_report(run)
        assert there == run / "report/index.html"
        content = there.read_text(encoding="utf-8")
    ours = written(made).source
    assert content.replace(str(run), "RUN") == ours.replace(str(made.path), "RUN")


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        write_report(UPath(tmp_path))
