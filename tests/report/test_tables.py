"""Tables hold the figures of results.json next to the paper's; names cannot break them."""

import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

import malt_jax
from malt_jax.report.tables import latex, markdown, print_table

LLAMA = "models/Llama-3.1-8B-Instruct"


def rows(document: str, title: str) -> dict[str, dict[str, str]]:
    """The table under a heading in Markdown: row name -> heading -> cell."""
    lines = document.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
        if not line.startswith("| ---")
    ]
    headings, *body = cells
    assert all(len(row) == len(headings) for row in body)
    return {row[0]: dict(zip(headings, row, strict=True)) for row in body}


def test_the_example_follows_the_schema(content: dict[str, Any]):
    schema = Path(malt_jax.__file__).parent / "results_schema.json"
    jsonschema.validate(content, json.loads(schema.read_text()))


def test_accuracies_costs_and_differences(content: dict[str, Any]):
    document = markdown(content)
    assert document.startswith("# tiny on arithmetic: 1,000 questions, 4 seeds\n")
    row = rows(document, "Accuracy")["ma+mv"]
    assert row == {
        "system": "ma+mv",
        "calls": "9",
        "accuracy %": "82.4 [80.0, 84.8]",
        "ahead of sa by": "+23.7 [+21.7, +25.7]",
        "p": r"\<0.001",
        "subsets": "82.40 ± 2.10",
    }
    assert rows(document, "Accuracy")["star-sa"]["ahead of sa by"] == "−2.9 [−4.9, −0.9]"
    assert rows(document, "Cost of an answer")["debate"] == {
        "system": "debate",
        "calls": "9",
        "prompt tokens": "780",
        "sampled tokens": "260",
        "seconds": "1.04",
        "accuracy %": "73.9",
    }
    against = rows(document, "MALT with a vote against the others")
    assert against["star-ma+mv"]["p"] == "0.31" and "malt+mv" not in against


def test_the_other_views(content: dict[str, Any]):
    document = markdown(content)
    turns = rows(document, "Accuracy after each role, %")
    assert list(turns["malt"]) == ["system", "generator", "verifier", "refiner"]
    assert turns["malt"]["verifier"].startswith("72.9 [")
    changed = rows(document, "Answers that changed, % of all questions")["sa → malt+mv"]
    assert changed["net"] == "+28.3" and "paper: wrong → correct" not in changed
    passes = rows(document, "At least one of k passes correct (pass@k), %")
    assert passes["sa"] == {"system": "sa", "1": "58.7", "2": "82.9", "3": "93.0"}
    by_level = rows(document, "Accuracy by level, %")["Level 5"]
    assert by_level["questions"] == "1,324" and by_level["sa"].startswith("31.7 [")
    values = rows(document, "Uncertainty of the values of the training trees")
    assert values["generator"]["doubtful labels %"] == "7.1"


def test_the_end_of_each_training_stage(content: dict[str, Any]):
    content["rounds"] = [{"verifier": {"rows": 396, "pairs": 4400}}]
    stages = rows(markdown(content), "End of each training stage")
    assert stages["verifier/sft"]["rows"] == "396"
    assert stages["verifier/dpo"] == {
        "stage": "verifier/dpo",
        "rows": "4,400",
        "updates": "1,028",
        "loss": "0.549",
        "margin": "+0.336",
        "chosen": "−0.013",
        "accuracy %": "89.9",
    }
    content["training"]["round-1/verifier/sft"] = {"updates": 1}
    assert "round-0/verifier/sft" in rows(markdown(content), "End of each training stage")
    # The number of rows of a stage that results.json does not know stays empty.
    content["rounds"] = []
    content["training"] = {"[red]x|y": {"updates": 1, "loss": None}}
    assert rows(markdown(content), "End of each training stage") == {
        r"[red]x\|y": {"stage": r"[red]x\|y", "updates": "1"}
    }


def test_the_papers_figures_are_next_to_ours(content: dict[str, Any]):
    content.update(model=LLAMA, task="math")
    document = markdown(content)
    accuracy = rows(document, "Accuracy")
    assert accuracy["malt+mv"]["paper"] == "57.25 ± 1.48"
    assert accuracy["malt-without-verifier+mv"]["paper"] == "54.75"
    assert accuracy["sa+mv@9"]["paper"] == ""
    turns = rows(document, "Accuracy after each role, %")
    assert turns["malt+mv, paper"]["verifier"] == "55.75"
    changed = rows(document, "Answers that changed, % of all questions")["sa → malt+mv"]
    assert (changed["paper: wrong → correct"], changed["paper: correct → wrong"]) == (
        "14.25",
        "6.50",
    )
    content.update(task="gsm_symbolic", trained_on="gsm8k")
    content["config"]["task"]["options"] = {"variant": "p1"}
    assert "STaR+MV 76.75; Llama-3.1-70B-Instruct 88.25" in markdown(content)


def test_results_of_a_training_alone(content: dict[str, Any]):
    fields = ("model", "task", "systems", "comparisons", "seconds", "config", "versions")
    content = {field: content[field] for field in fields}
    for system in content["systems"].values():
        for field in ("prompt_tokens", "seconds", "paper_protocol"):
            del system[field]
    document = markdown(content)
    assert re.findall(r"^## .*", document, re.M) == [
        "## Accuracy",
        "## Cost of an answer",
        "## MALT with a vote against the others",
    ]
    assert "seconds" not in document and "subsets" not in document


def test_many_passes_are_shown_at_powers_of_two(content: dict[str, Any]):
    content["pass_at_k"] = {"sa": {str(k): k / 40 for k in range(1, 28)}}
    row = rows(markdown(content), "At least one of k passes correct (pass@k), %")["sa"]
    assert list(row) == ["system", "1", "2", "4", "8", "16", "27"]


def test_latex_has_a_table_for_each_of_markdown(content: dict[str, Any]):
    content.update(model=LLAMA, task="math")
    fragment = latex(content)
    assert fragment.count(r"\begin{table}") == markdown(content).count("\n## ") == 10
    assert r"malt+mv & 9 & 87.0 [84.9, 89.1] &" in fragment
    assert r"$-$2.9 [$-$4.9, $-$0.9]" in fragment and r"57.25 $\pm$ 1.48 \\" in fragment
    for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", fragment, re.S):
        columns = re.search(r"@\{\}(l(r*))@\{\}", tabular)
        assert columns is not None
        body = [line for line in tabular.splitlines() if line.endswith(r"\\")]
        separators = {len(re.findall(r"(?<!\\)&", line)) for line in body}
        assert separators == {len(columns[2])}


@pytest.mark.parametrize(
    ("name", "in_markdown", "in_latex"),
    [
        ("a|b", r"a\|b", r"a\textbar{}b"),
        ("a\nb\x00c", "a b c", "a b c"),
        ("50%_of $x$ & {y}", r"50%\_of $x$ & {y}", r"50\%\_of \$x\$ \& \{y\}"),
        ("[2] \\", r"[2] \\", r"{}[2] \textbackslash{}"),
        ("*", r"\*", "{}*"),
        ("[a](http://b)", r"[a]\(http://b)", "{}[a](http://b)"),
        ("<b>", r"\<b>", r"\textless{}b\textgreater{}"),
    ],
)
def test_names_of_groups_cannot_break_a_table(
    content: dict[str, Any], name: str, in_markdown: str, in_latex: str
):
    content["groups"] = {"topic": {name: content["groups"]["level"]["Level 1"]}}
    ((first, row),) = rows(markdown(content), "Accuracy by topic, %").items()
    assert first == in_markdown and row["questions"] == "437" and len(row) == 6
    assert f"    {in_latex} & 437 &" in latex(content)


def test_the_table_in_a_terminal(content: dict[str, Any]):
    def printed() -> str:
        console = Console(file=io.StringIO(), width=100)
        print_table(content, console)
        assert isinstance(console.file, io.StringIO)
        return re.sub(" +", " ", console.file.getvalue())

    content["rounds"] = [{role: {"rows": 3, "pairs": 4} for role in ("generator", "verifier")}]
    assert "tiny, 1000 questions" in printed() and "malt+mv ahead by" in printed()
    assert "ma+mv 82.4 [80.0, 84.8] 9 210 +4.6 [+2.6, +6.6]" in printed()
    assert "round 0 trained on: generator 3 rows and 4 pairs" in printed()
    assert "verifier/dpo 4 1,028 0.549 +0.336 −0.013 89.9" in printed()
    content["training"] = {"[red]x": {"updates": 1}}
    assert "[red]x 1" in printed()
    content["systems"] = {name: content["systems"][name] for name in ("sa", "ma")}
    assert "ma 71.8 [69.0, 74.6] 3 70 +13.1 [+11.1, +15.1]" in printed()
