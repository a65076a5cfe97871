"""The same rows from every kind of source, and what is said when a source is not there."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from malt_jax.errors import UserError
from malt_jax.tasks import Data, sources
from malt_jax.tasks.commonsense_qa import CommonsenseQaTask
from malt_jax.tasks.gsm8k import Gsm8kTask
from malt_jax.tasks.gsm_symbolic import GsmSymbolicTask
from malt_jax.tasks.math import MathTask
from malt_jax.tasks.rows import RowsTask
from malt_jax.tasks.sources import array_records, hub

ROWS: list[dict[str, Any]] = [
    {
        "question": f"Is it “{number}”?",
        "choices": {"label": list("ABCDE"), "text": [f"{number}{i}" for i in range(5)]},
        "answerKey": "ABCDE"[number],
    }
    for number in range(5)
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return str(path)


def rows_of(source: str, split: str = "test") -> list[Any]:
    return [row.fields for row in sources.read(source, "task.test", split)]


def test_parquet(tmp_path: Path):
    assert rows_of(write_parquet(tmp_path / "rows.parquet", ROWS)) == ROWS


def test_files_that_match_a_pattern_are_read_by_name(tmp_path: Path):
    write_parquet(tmp_path / "b.parquet", ROWS[2:])
    write_parquet(tmp_path / "a.parquet", ROWS[:2])
    assert rows_of(f"{tmp_path}/*.parquet") == ROWS


def test_saved_data_sets(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    splits = {"train": ROWS[:3], "validation": ROWS[3:]}
    saved = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "several")

    assert rows_of(f"{tmp_path}/one") == ROWS
    assert rows_of(f"{tmp_path}/several:validation") == ROWS[3:]
    several = str(tmp_path / "several")
    task = CommonsenseQaTask(Data(several, several))
    assert len(task.questions("train")) == 3
    assert len(task.questions("test")) == 2
    with pytest.raises(UserError, match=r"no split 'test'; name one of .* train, validation"):
        rows_of(several)


def test_array_records_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorflow_datasets")
    train, test = (write_jsonl(tmp_path / name, ROWS[i:][:3]) for i, name in ((0, "a"), (2, "b")))
    plain = CommonsenseQaTask(Data(train, test))
    recorded = Data(train, test, str(tmp_path / "records"))
    assert CommonsenseQaTask(recorded).questions("train") == plain.questions("train")
    assert CommonsenseQaTask(recorded).questions("test") == plain.questions("test")

    with monkeypatch.context() as patch:
        patch.setattr(array_records, "write_once", None)
        assert CommonsenseQaTask(recorded).questions("test") == plain.questions("test")
    write_jsonl(Path(test), ROWS[4:])
    assert len(CommonsenseQaTask(recorded).questions("test")) == 1

    (directory,) = tmp_path.glob("records/commonsense_qa/train_*/1.0.0")
    assert rows_of(f"{directory}:train") == ROWS[:3]
    with pytest.raises(UserError, match="no split 'test'; name one of its splits, train"):
        rows_of(str(directory))


@pytest.mark.parametrize("key", array_records.CLASS_KEYS)
def test_features_cannot_name_other_modules(key: str, tmp_path: Path):
    pytest.importorskip("tensorflow_datasets")
    features = {"featuresDict": {"features": [{key: "antigravity.Feature"}]}}
    (tmp_path / "features.json").write_text(json.dumps(features))
    with pytest.raises(
        UserError, match=r"'antigravity\.Feature' is no class of TensorFlow Datasets"
    ):
        rows_of(str(tmp_path))
    assert "antigravity" not in sys.modules


def test_bad_rows_are_not_written_and_name_their_line(tmp_path: Path):
    pytest.importorskip("tensorflow_datasets")
    test = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {**ROWS[0], "answerKey": "F"}])
    with pytest.raises(UserError, match=r"rows\.jsonl:6: field 'answerKey'"):
        CommonsenseQaTask(Data(test=test, array_records=str(tmp_path / "r"))).questions("test")
    assert not list(tmp_path.glob("r/**/*.array_record*"))


def test_rows_that_differ_cannot_be_array_records(tmp_path: Path):
    pytest.importorskip("tensorflow_datasets")
    test = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], {**ROWS[1], "id": 7}])
    with pytest.raises(UserError, match="row 2 has other fields than row 1"):
        CommonsenseQaTask(Data(test=test, array_records=str(tmp_path / "r"))).questions("test")


def test_array_records_do_without_tensorflow(tmp_path: Path):
    pytest.importorskip("tensorflow_datasets")
    program = (
        "import sys; from malt_jax.tasks.sources import array_records as a; from pathlib import"
        " Path; d = a.write_once(Path(sys.argv[1]), 'x', 'y', 'test', [{'q': 'é', 'n': 1.5}]);"
        " assert [row.fields for row in a.read_directory(d, 'test')] == [{'q': 'é', 'n': 1.5}];"
        " assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


HUB = {
    Gsm8kTask: ["openai/gsm8k main train", "openai/gsm8k main test"],
    CommonsenseQaTask: ["tau/commonsense_qa None train", "tau/commonsense_qa None validation"],
    GsmSymbolicTask: ["openai/gsm8k main train", "apple/GSM-Symbolic main test"],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub is asked for; it has one row in everything."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append(f"{dataset} {config} {split}")
        math = {"problem": "?", "solution": "\\boxed{1}", "level": 1, "subject": "Algebra"}
        return [{**ROWS[0], **math, "answer": "#### 3"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "answers", lambda endpoint: True)
    return asked


@pytest.mark.parametrize("task", HUB)
def test_the_hub_is_asked_for_the_published_splits(task: type[RowsTask], asked: list[str]):
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"1 rows, but .* has \d+ (train|test) questions"):
            task().all_questions(split)
    assert asked == HUB[task]


def test_math_comes_in_seven_parts_and_math_500_in_one(asked: list[str]):
    for task in (MathTask(), MathTask(test_split="math-500")):
        with pytest.raises(UserError):
            task.questions("test")
    assert len(asked) == 8
    assert asked[0] == "EleutherAI/hendrycks_math algebra test"
    assert asked[-1] == "HuggingFaceH4/MATH-500 None test"


def test_another_data_set_on_the_hub_may_have_any_size(asked: list[str]):
    task = Gsm8kTask(Data(test="hub:someone/sums/hard:validation"))
    assert len(task.questions("test")) == 1
    assert asked == ["someone/sums hard validation"]


@pytest.mark.parametrize("source", ["hub:openai/gsm8k/main:test", "tfds:huggingface:a__b:test"])
def test_without_network_it_fails_fast_and_names_the_file_to_give(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("datasets")
    pytest.importorskip("tensorflow_datasets")

    def unresolved(*args: object, **options: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(hub, "_offline", lambda: False)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        rows_of(source)
    assert time.monotonic() - start < 5
    assert str(error.value).startswith(f"{source} cannot be had: ")
    assert "is out of reach" in str(error.value)
    assert str(error.value).endswith(
        "put its rows, with its own names of the fields, into a JSON Lines or Parquet file and"
        " name that with task.test=FILE"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:gsm8k:test", "write hub:OWNER/NAME:SPLIT"),
        ("hub:openai/gsm8k", "write hub:OWNER/NAME:SPLIT"),
        ("tfds:mnist", "write tfds:NAME:SPLIT"),
        ("{tmp}", "no data set saved by `datasets`"),
        ("{tmp}/x*.jsonl", "there are no such files"),
        ("{tmp}/x.parquet", "cannot be read (No such file or directory); put the questions there"),
        ("{tmp}/bad.parquet", "not a Parquet file"),
    ],
)
def test_sources_that_are_none(source: str, message: str, tmp_path: Path):
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError) as error:
        rows_of(source.format(tmp=tmp_path))
    assert message in str(error.value)


def test_a_fingerprint_is_one_of_contents(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows", ROWS)
    first = sources.fingerprint([path])
    assert sources.fingerprint([path]) == first
    write_jsonl(tmp_path / "rows", ROWS[1:])
    assert sources.fingerprint([path]) != first
    assert sources.fingerprint(["hub:a/b:test"]) != sources.fingerprint(["hub:a/b:train"])
