"""The page of a run: report/index.html, which a browser opens from the disk."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from upath import UPath

from malt_jax.distributed.processes import is_coordinator
from malt_jax.files import names_in, reached, write_atomically
from malt_jax.progress import Progress
from malt_jax.viewer.overview import overview
from malt_jax.viewer.samples import read_questions, read_stages
from malt_jax.viewer.sidecar import DATA, Chunks, pack, to_json
from malt_jax.viewer.source import CLOSE, OPEN, Source, open_source
from malt_jax.viewer.trees import Marks, ShownQuestion, read_marks, read_trees

FOLDER = "report"
"""Below a run's directory."""
PAGE = "index.html"

_HERE = Path(__file__).parent
_KATEX = _HERE.parent / "assets" / "katex"
_SCRIPTS = (
    *("dom", "data", "math", "diff", "tokens", "cards", "tree", "filters", "list"),
    *("question", "compare", "router", "keys"),
)
"""In the order in which they use each other; all share one scope."""
_STYLES = ("base", "overview", "list", "question", "print")


def write_report(run: UPath, out: UPath | None = None) -> UPath | None:
    """Writes the page of a run, finished or not, and returns its file.

    out: the folder of the page; None: report/ in the run's directory.

    Process 0 alone writes; others return None. The files of an earlier page are replaced.

    Raises UserError when there is no run at `run`, or `out` cannot be written to.
    """
    if not is_coordinator():
        return None
    out = run / FOLDER if out is None else out
    source = open_source(run)
    with reached(out):
        chunks, tokens = Chunks(out), dict[str, int]()
        rounds = [
            list(chunks.entries(f"trees-{number}", _trees(source, number, tokens)))
            for number in range(source.config.rounds)
        ]
        tests = list(chunks.entries("test", _answers(source)))
        index = {
            "rounds": rounds,
            "test": tests,
            "roles": source.roles,
            "prompts": source.prompts,
            "slot": [OPEN, CLOSE],
            "folder": DATA,
        }
        variables = overview(source, tokens) | {
            "notes": list(dict.fromkeys(source.notes)),
            "trees": sum(map(len, rounds)),
            "tests": len(tests),
        }
        write_atomically(out / PAGE, render(variables, index, chunks.inline))
        chunks.remove_others()
    return out / PAGE


def render(
    variables: Mapping[str, Any], index: Mapping[str, Any], inline: Mapping[str, str]
) -> str:
    """The page.

    variables: of the template overview.html.
    index:     the entries of the lists, and what all questions share.
    inline:    packed chunks that are inside the page.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    theme = (_HERE / "scripts" / "theme.js").read_text(encoding="utf-8")
    scripts = [theme, (_KATEX / "katex.min.js").read_text(encoding="utf-8"), _script()]
    return environment.get_template("page.html").render(
        **variables,
        styles=Markup(_styles()),
        theme=Markup(theme),
        scripts=[Markup(script) for script in scripts[1:]],
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        data={"index": pack(to_json(index)), **inline},
    )


def _trees(source: Source, number: int, tokens: dict[str, int]) -> Iterator[ShownQuestion]:
    """The trees of a round; also counts the tokens of its stages into `tokens`."""
    marks, lengths = read_marks(source, number), dict[tuple[int, tuple[int, ...]], int]()
    name = f"round-{number}/trees"
    total = source.config.task.train_questions or len(source.questions.get("train", ()))
    if not names_in(source.path / name, "batch-*.parquet"):
        return
    with Progress(f"report: round {number}", total, "questions") as progress:
        for done, shown in enumerate(read_trees(source, number, marks), start=1):
            for path, node in shown.content["nodes"].items():
                place = (shown.entry["id"], tuple(map(int, path.split("."))))
                lengths[place] = len(node["costs"])
            progress.update(done=done)
            yield shown
    tokens[name] = sum(lengths.values())
    tokens |= _trained(marks, lengths, number)


def _trained(
    marks: Marks, lengths: Mapping[tuple[int, tuple[int, ...]], int], number: int
) -> dict[str, int]:
    """The completion tokens of the training rows of each stage, in one epoch."""
    return {
        f"round-{number}/{stage}": sum(lengths.get(node, 0) for node in nodes)
        for stage, nodes in marks.tokens.items()
    }


def _answers(source: Source) -> Iterator[ShownQuestion]:
    stages = read_stages(source)
    if not stages:
        return
    with Progress("report: test", len(stages[0].passes), "questions") as progress:
        for done, shown in enumerate(read_questions(source, stages), start=1):
            progress.update(done=done)
            yield shown


def _script() -> str:
    parts = [(_HERE / "scripts" / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _styles() -> str:
    """All styles, with KaTeX's fonts inside."""

    def font(match: re.Match[str]) -> str:
        content = base64.b64encode((_KATEX / "fonts" / match[1]).read_bytes()).decode("ascii")
        return f'url(data:font/woff2;base64,{content}) format("woff2")'

    katex = (_KATEX / "katex.min.css").read_text(encoding="utf-8")
    # Of the three formats of each font, browsers of today need the first alone.
    katex = re.sub(r",url\(fonts/[\w-]+[.](?:woff|ttf)\) format\(\"\w+\"\)", "", katex)
    katex = re.sub(r"url\(fonts/([\w-]+[.]woff2)\) format\(\"woff2\"\)", font, katex)
    own = [(_HERE / "styles" / f"{name}.css").read_text(encoding="utf-8") for name in _STYLES]
    return "\n".join([katex, *own])


def _digest(script: str) -> str:
    """The hash by which the page's content security policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
