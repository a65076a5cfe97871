"""Runs without a model: questions, trees, rows, metrics and samples are made here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import Config, load_config, to_yaml
from malt_jax.evaluation.store import Store
from malt_jax.files import write_atomically
from malt_jax.malt import credit
from malt_jax.malt.tree import Tree, to_parquet
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from malt_jax.runs.metrics import Metrics
from malt_jax.sampling.completions import Completions, Finish
from malt_jax.tasks import create
from malt_jax.tasks.base import Question
from tests.report.conftest import example

ROLES = ("generator", "verifier", "refiner")
SUBJECTS = ("Algebra", "Geometry", "Number Theory")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Write = Callable[[int, Sequence[int]], str]
"""The text of a node: of a question's id and a path, or of a policy's number and a pass."""


def correct(question: int, path: Sequence[int]) -> bool:
    """Whether the answer of a node is; every third question is always answered correctly."""
    return question % 3 == 0 or (question + sum(path)) % 2 == 0


def boxed(question: int, path: Sequence[int]) -> str:
    answer = question + 10 if correct(question, path) else 1000 + sum(path)
    role = ROLES[len(path) - 1]
    return f"The {role} says $x^2 = {question}$ and \\[\\frac{{1}}{{2}}\\] so \\boxed{{{answer}}}"


class MadeRun:
    """A run directory that is written part by part."""

    def __init__(
        self,
        path: Path,
        questions: int = 3,
        branching: Sequence[int] = (3, 3, 3),
        options: Sequence[str] = (),
    ) -> None:
        self.path, files = path, path.parent / "questions"
        files.mkdir(parents=True, exist_ok=True)
        for split, offset in (("train", 0), ("test", 1_000_000)):
            rows = [json.dumps(self.row(id, offset)) for id in range(questions)]
            (files / f"{split}.jsonl").write_text("\n".join(rows))
        self.config: Config = load_config(
            None,
            [
                "task.name=math",
                f"task.train={files}/train.jsonl",
                f"task.test={files}/test.jsonl",
                f"task.train_questions={questions}",
                *(f"pipeline.roles.{d}.branching={n}" for d, n in enumerate(branching)),
                *options,
            ],
        )
        write_atomically(UPath(path) / CONFIG_FILE, to_yaml(self.config))
        self.directory = RunDirectory(UPath(path), self.config)
        self.branching = tuple(branching)
        self.tokenizer = StoredCheckpoint("tiny").tokenizer
        task = create(self.config.task)
        self.train, self.test = task.questions("train"), task.questions("test")

    def row(self, id: int, offset: int) -> dict[str, str]:
        return {
            "problem": f"Question {id + offset}: what is $x$?",
            "level": f"Level {1 + id % 5}",
            "type": SUBJECTS[id % 3],
            "solution": f"It is \\boxed{{{id + 10}}}.",
        }

    def completions(self, texts: np.ndarray) -> Completions:
        stop = self.tokenizer.stop_ids[0]
        ids = [[*self.tokenizer.encode(text), stop] for text in texts.flat]
        logps = [-0.25 * np.arange(len(row)) for row in ids]
        finish = [Finish.STOP] * len(ids)
        return Completions.of_rows(ids, texts.shape, logps, finish)

    def tree(self, questions: Sequence[Question], write: Write = boxed) -> Tree:
        levels = []
        for depth in range(len(ROLES)):
            texts = np.empty((len(questions), *self.branching[: depth + 1]), object)
            for node in np.ndindex(texts.shape):
                texts[node] = write(questions[node[0]].id, node[1:])
            levels.append(texts)
        rewards = np.zeros(levels[-1].shape)
        for node in np.ndindex(rewards.shape):
            rewards[node] = correct(questions[node[0]].id, node[1:])
        completions = tuple(map(self.completions, levels))
        return Tree(tuple(questions), ROLES, completions, tuple(levels), rewards)

    def add_trees(self, write: Write = boxed, number: int = 0, batch: int = 500) -> None:
        with self.directory.stage(f"round-{number}/trees") as stage:
            for start in range(0, len(self.train), batch):
                questions = [self.train[i] for i in range(start, len(self.train))][:batch]
                content = to_parquet(self.tree(questions, write))
                stage.write(f"batch-{start // batch:05}.parquet", content)

    def add_rows(self) -> None:
        tree = self.tree(list(self.train))
        options = [self.config.credit] * len(ROLES)
        roles = credit.assign(tree.rewards, tree.texts, range(99), options, 0)

        def named(node: credit.Node) -> dict[str, Any]:
            return {"question": tree.questions[node.question].id, "path": list(node.path)}

        with self.directory.stage("round-0/rows") as stage:
            for role, rows in zip(ROLES, roles, strict=True):
                pairs = [{"chosen": named(p[0]), "rejected": named(p[1])} for p in rows.pairs]
                for name, lines in (("sft", list(map(named, rows.sft))), ("pairs", pairs)):
                    text = "".join(json.dumps(line) + "\n" for line in lines)
                    stage.write(f"{role}/{name}.jsonl", text)

    def add_training(self) -> None:
        with Metrics(self.path) as metrics:
            for role in ROLES:
                for stage in ("sft",) if role == "generator" else ("sft", "dpo"):
                    name = f"round-0/{role}/{stage}"
                    names = ("loss", "rewards/margins") if stage == "dpo" else ("loss",)
                    for step in range(1, 6):
                        values = {n: 1.0 / step for n in names} | {"epoch": step / 2.5}
                        metrics.log(name, step, values)
                    with self.directory.stage(name) as made:
                        made.write("weights", "none")

    def add_samples(self, write: Callable[[int, int, int], str], passes: int = 3) -> None:
        """write: the text of a question's id, a stage (0: untrained, 1: SFT, 2: DPO) and a pass."""
        store = Store(self.directory)
        nodes = [(question.id, n) for question in self.test for n in range(passes)]
        chains = (("base",) * 3, ("star",) * 3, ("star", "malt", "malt"))
        for number, chain in enumerate(chains):
            for depth in range(1, 4):
                if chain[:depth] in [other[:depth] for other in chains[:number]]:
                    continue
                written = [write(question, number, n) for question, n in nodes]
                texts = np.array(written, object).reshape(len(self.test), passes)
                lengths = [7] * len(nodes)
                made = self.completions(texts)
                store.add(0, chain[:depth], nodes, made, texts, lengths, 2.0)

    def add_results(self, content: dict[str, Any]) -> None:
        (self.path / "results.json").write_text(json.dumps(content))


def whole(path: Path, content: dict[str, Any]) -> MadeRun:
    """A finished run with three questions, of which the second becomes correct by training."""
    made = MadeRun(path)
    made.add_trees()
    made.add_rows()
    made.add_training()

    def write(question: int, stage: int, number: int) -> str:
        right = question == 0 or (question == 1 and stage + number > 1)
        return f"pass {number}: \\boxed{{{question + 10 if right else -1}}}"

    made.add_samples(write)
    made.add_results(content)
    return made


@pytest.fixture
def content() -> dict[str, Any]:
    """A results.json."""
    return example()


@pytest.fixture
def made(tmp_path: Path, content: dict[str, Any]) -> MadeRun:
    return whole(tmp_path / "run", content)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, that of the system."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("there is no Chromium here, so no test looks at the report in a browser")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page, whose console must stay empty and which must not touch the network."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened, problems = context.new_page(), list[str]()
    opened.set_default_timeout(15_000)
    opened.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
    allowed = ("file:", "data:", "blob:")
    opened.on(
        "request", lambda r: None if r.url.startswith(allowed) else problems.append(f"asks {r.url}")
    )
    yield opened
    context.close()
    assert problems == []
