"""paper.md and paper.tex: each table of the paper, its figures beside ours, and what is missing."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import malt_jax
from malt_jax.report.paper_tables import paper_latex, paper_markdown
from malt_jax.report.plots import figures

LLAMA = "models/Llama-3.1-8B-Instruct"


def rows(document: str, title: str) -> dict[str, dict[str, str]]:
    lines = document.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_the_example_follows_the_schema(paper_content: dict[str, Any]) -> None:
    schema = Path(malt_jax.__file__).parent / "results_schema.json"
    jsonschema.validate(paper_content, json.loads(schema.read_text()))


def test_the_main_table_has_costs_and_the_papers_figures(paper_content: dict[str, Any]) -> None:
    del paper_content["systems"]["sa"]["seconds"]
    paper_content.update(model=LLAMA, task="math")
    main = rows(paper_markdown(paper_content), "Main table")
    assert "malt-until-verifier+mv" not in main
    assert main["malt+mv"] == {
        "system": "malt+mv",
        "accuracy %": "87.0 [84.9, 89.1]",
        "subsets": "87.00 ± 2.10",
        "calls": "9",
        "prompt tokens": "666",
        "sampled tokens": "222",
        "seconds": "0.888",
        "paper": "57.25 ± 1.48",
    }
    assert main["sa"]["seconds"] == "not known"
    gains = rows(paper_markdown(paper_content), "Gain over the single model")
    assert gains["malt+mv against sa"] == {
        "systems": "malt+mv against sa",
        "calls": "9 : 1",
        "ahead by": "+28.3 [+26.3, +30.3]",
        "relative gain %": "+48.2",  # 87.0 / 58.7
        "paper, relative gain %": "+15.7",  # the paper prints 15.66
    }
    assert gains["malt+mv against sa+mv@9"]["paper, relative gain %"] == ""


def test_figures_of_another_model_are_named(paper_content: dict[str, Any]) -> None:
    paper_content.update(model="models/some-model", task="gsm8k")
    document = paper_markdown(paper_content)
    main = rows(document, "Main table")["malt+mv"]
    assert main["paper, Llama-3.1-8B-Instruct"] == "90.50 ± 2.06"
    assert main["paper, Qwen-2.5-1.5B-Base"] == "74.50 ± 2.65"
    assert "Its figures are of other models than this one." in document
    paper_content.update(task="riddles")
    document = paper_markdown(paper_content)
    assert "paper, " not in "".join(rows(document, "Main table")["sa"])
    assert "The paper has no figures for this task." in document


def test_votes_and_equal_calls(paper_content: dict[str, Any]) -> None:
    document = paper_markdown(paper_content)
    by_votes = rows(document, "Accuracy by the number of votes, %")
    assert list(by_votes) == [str(k) for k in range(1, 10)]
    assert by_votes["3"]["sa"].startswith("42.0 [") and by_votes["4"]["malt"] == ""
    by_calls = rows(document, "Votes at equal calls: accuracy, %")
    assert list(by_calls) == ["3", "6", "9"]
    assert by_calls["9"]["sa"].startswith("66.0 [") and by_calls["9"]["malt"].startswith("42.0 [")
    equal = rows(document, "Methods at equal calls")["malt+mv against sa+mv@9"]
    assert (equal["calls"], equal["p"], equal["sampled tokens"]) == ("9", "0.040", "222 : 216")


def test_self_correction(paper_content: dict[str, Any]) -> None:
    table = rows(paper_markdown(paper_content), "Answers that each role mends and breaks, %")
    refiner = table["ma: refiner"]
    assert refiner["of wrong"] == "55.0"  # 22 of 40
    assert refiner["of correct"] == "10.0"  # 6 of 60
    assert refiner["net"] == "+16.0 [+13.0, +19.0]"
    assert table["ma: verifier"]["of correct"] == "not known"  # none was correct before


def test_transfer_has_the_papers_figures(paper_content: dict[str, Any]) -> None:
    paper_content.update(model=LLAMA, task="gsm8k")
    document = paper_markdown(paper_content)
    table = rows(document, r"Transfer to gsm\_symbolic (variant p1, p1.jsonl)")
    assert table["malt+mv"]["paper"] == "84.75 ± 3.30" and table["sa"]["paper"] == "71.75"
    assert "The roles were trained on gsm8k." in document
    assert "all 1,319 of the source's 1,319 test questions were asked." in document
    # Trained on something else, MALT's figures are not comparable.
    paper_content.update(task="math")
    table = rows(paper_markdown(paper_content), r"Transfer to gsm\_symbolic (variant p1, p1.jsonl)")
    assert table["malt+mv"]["paper"] == "" and table["sa"]["paper"] == "71.75"


def test_what_is_open_is_said(paper_content: dict[str, Any]) -> None:
    document = paper_markdown(paper_content, ["ablations"])
    assert (
        "Here 1,000 of the source's 1,319 test questions were asked; the published test set has"
        " 5,000, with 4 seeds; the binomial standard error of malt+mv is 1.1 points." in document
    )
    assert "malt+mv is ahead by +7.9 [+5.9, +9.9] points" in document
    assert "branching 3-3-3" in document
    assert r"- debate: the question 'x\|y' is too long" in document
    assert document.endswith("![ablations](plots/ablations.png)\n")


def test_an_untrained_model_has_fewer_tables(paper_content: dict[str, Any]) -> None:
    for field in ("rounds", "training", "values"):
        paper_content.pop(field, None)
    untrained = {"sa", "sa+mv", "sa+mv@9", "ma", "ma+mv"}
    paper_content["systems"] = {n: s for n, s in paper_content["systems"].items() if n in untrained}
    paper_content["comparisons"] = {}
    paper_content["paper"] |= {"transfer": [], "equal_calls": {}, "missing": ["a", "b"]}
    document = paper_markdown(paper_content)
    titles = re.findall(r"^## (.*)", document, re.M)
    assert "Roles untrained or left out" not in titles and "Training data" not in titles
    assert "ma+mv against sa+mv@9" in document
    assert "one run has one value" not in document


def test_latex_has_every_table_of_markdown(paper_content: dict[str, Any]) -> None:
    fragment, document = paper_latex(paper_content), paper_markdown(paper_content)
    tables, lists = fragment.count(r"\begin{table}"), fragment.count(r"\begin{itemize}")
    assert tables + lists == document.count("\n## ") and lists == 2
    assert r"\item debate: the question 'x\textbar{}y' is too long" in fragment


@pytest.mark.parametrize("transfer", [True, False])
def test_plots(paper_content: dict[str, Any], transfer: bool) -> None:
    if not transfer:
        paper_content["paper"]["transfer"] = []
    drawn = dict(figures(paper_content))
    assert {"accuracy-by-votes", "votes-at-equal-calls", "self-correction"} <= set(drawn)
    assert ("transfer" in drawn) is transfer
    (axes,) = drawn["accuracy-by-votes"].axes
    heights = [[*line[0].get_ydata()] for line in axes.containers]
    assert heights[1] == pytest.approx([34.0, 38.0, 42.0])
    (axes,) = drawn["votes-at-equal-calls"].axes
    calls = [10 ** line[0].get_xdata() for line in axes.containers]
    assert [*calls[1]] == pytest.approx([3, 6, 9])
