"""The notebook runs from its first cell to its last, with the smallest sizes."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SMALLEST = " ".join(
    [
        *("task.train_questions=4", "task.test_questions=4", "sampling.questions_per_batch=4"),
        *("evaluation.questions_per_batch=4", "evaluation.votes=2", "sampling.chunk=48"),
        *("sft.batch_size=16", "dpo.batch_size=16", "dpo.epochs=1"),
    ]
)


def text_of(cell: Any) -> str:
    """What a cell has printed or shown."""
    shown = [
        output.get("text", "") + str(output.get("data", {}).get("text/markdown", ""))
        for output in cell.outputs
    ]
    return "".join(shown)


def test_the_notebook_has_no_outputs_and_one_cell_of_settings() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = f'RUN = "run"\nOPTIONS = "{SMALLEST}"'
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": tmp_path}})
    client.execute()
    by_start = {cell.source[:40]: text_of(cell) for cell in notebook.cells if "outputs" in cell}
    doctor, train, results, solve = (
        next(text for source, text in by_start.items() if word in source)
        for word in ("!malt doctor", "!malt train", "from pathlib", "!malt solve")
    )
    assert "nothing is wrong" in doctor
    assert "malt+mv" in train and re.search(r"\| \**malt\+mv", results)
    assert "refiner" in solve
    assert (tmp_path / "run/report/index.html").exists()
    assert (tmp_path / "run-export/pipeline.json").exists()
