"""The table of a sweep."""

from typing import Any

from malt_jax.report.sweep import sweep_markdown, sweep_table


def setting(beta: float, epochs: int, correct: float, margin: float | None) -> dict[str, Any]:
    def accuracy(value: float) -> dict[str, Any]:
        return {"accuracy": value, "ci95": [value - 0.1, value + 0.1]}

    training: dict[str, Any] = {
        "round-0/generator/sft": {"updates": 4, "loss": 0.5},
        "round-0/verifier/sft": {"updates": 8, "loss": 0.5},
        "round-0/verifier/dpo": {"updates": 14, "rewards/margins": margin},
    }
    return {
        "options": {"dpo.beta": beta, "sft.epochs": epochs, "dpo.epochs": 1},
        "systems": {"malt+mv": accuracy(correct), "ma+mv": accuracy(0.5)},
        "from_best": {"difference": correct - 0.75, "ci95": [-0.3, 0.1]},
        "training": training,
    }


CONTENT: dict[str, Any] = {
    "trees": "runs/first",
    "questions": 100,
    "seeds": 1,
    "judged_by": "malt+mv",
    "best": "b",
    "left": 2,
    "settings": {
        "a": setting(0.1, 1, 0.6, None),
        "b": {**setting(0.2, 2, 0.75, 0.5), "from_best": None},
        "c": setting(0.3, 1, 0.7, 0.25),
    },
}


def test_rows_are_ordered_by_accuracy_with_the_best_first() -> None:
    table = sweep_table(CONTENT)
    headings = ("beta", "sft.epochs", "dpo.epochs", "malt+mv %", "from the best, points")
    headings = (*headings, "ma+mv %", "sft updates", "dpo updates", "dpo margins")
    assert table.headings == headings
    best, second, last = table.rows
    assert best == ("0.2", "2", "1", "75.0 [65.0, 85.0]", "", "50.0", "4 8", "14", "0.500")
    assert second[0] == "0.3" and second[4] == "−5.0 [−30.0, +10.0]"
    # A margin that is no number leaves its place empty.
    assert last[0] == "0.1" and last[-1] == ""


def test_notes_say_what_was_asked_and_what_is_left() -> None:
    text = sweep_markdown(CONTENT)
    assert "the test split was not asked" in text and "2 settings are not done." in text
    assert "100 questions" in text and "# Sweep on the trees of runs/first" in text


def test_one_setting_without_varied_options_is_named() -> None:
    one = {**CONTENT["settings"]["b"], "options": {}}
    table = sweep_table({**CONTENT, "settings": {"b": one}, "left": 0})
    assert table.headings[0] == "setting" and table.rows[0][0] == "b"
