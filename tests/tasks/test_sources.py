"""The same rows from every kind of source, and the errors for missing sources."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks import sources
from malt_jax.tasks.data_sets import CommonsenseQaTask, Gsm8kTask, GsmSymbolicTask, MathTask
from malt_jax.tasks.rows import RowsTask

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
    return [fields for _, fields in sources.read([source], "task.test", split)]


def test_parquet(tmp_path: Path):
    assert rows_of(write_parquet(tmp_path / "rows.parquet", ROWS)) == ROWS


def test_files_that_match_a_pattern_are_read_by_name(tmp_path: Path):
    write_parquet(tmp_path / "b.parquet", ROWS[2:])
    write_parquet(tmp_path / "a.parquet", ROWS[:2])
    assert rows_of(f"{tmp_path}/*.parquet") == ROWS


def test_saved_data_sets(tmp_path: Path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    splits = {"train": ROWS[:3], "validation": ROWS[3:]}
    saved = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "several")

    assert rows_of(f"{tmp_path}/one") == ROWS
    assert rows_of(f"{tmp_path}/several:validation") == ROWS[3:]
    several = str(tmp_path / "several")
    task = CommonsenseQaTask(TaskConfig(train=several, test=several))
    assert len(task.questions("train")) == 3
    assert len(task.questions("test")) == 2
    with pytest.raises(UserError, match=r"no split 'test'; name one of .* train, validation"):
        rows_of(several)


def write_array_records(data_dir: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes the data set `toy`, with the split `test`, as TensorFlow Datasets stores it."""
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text()
    choices = {"label": tfds.features.Sequence(text), "text": tfds.features.Sequence(text)}
    features = tfds.features.FeaturesDict(
        {"question": text, "choices": choices, "answerKey": text, "number": np.float64}
    )

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "toy"
        VERSION = "1.0.0"

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, downloads: Any) -> dict[str, Any]:
            return {"test": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            yield from enumerate(rows)

    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir / "toy" / "1.0.0"


def test_data_sets_of_tensorflow_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{**row, "number": 1.5} for row in ROWS]
    directory = write_array_records(tmp_path, rows)
    assert rows_of(f"{directory}:test") == rows_of(str(directory)) == rows
    (question, *_) = CommonsenseQaTask(TaskConfig(test=f"{directory}:test")).questions("test")
    assert question.text.startswith("Is it “0”?\nA. 00")
    with pytest.raises(UserError, match="no split 'train'; name one of its splits, test"):
        rows_of(str(directory), "train")

    monkeypatch.setattr(sources, "_unreachable", lambda site: "no network")
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    assert rows_of("tfds:toy:test") == rows
    with pytest.raises(
        UserError, match=r"tfds:math_qa:test: cannot be read \(no network\); put the q"
    ):
        rows_of("tfds:math_qa:test")


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path):
    directory = write_array_records(tmp_path, [{**ROWS[0], "question": b"caf\xe9", "number": 1.5}])
    with pytest.raises(UserError, match=r":test, row 1: a lone surrogate, .* in 'caf"):
        CommonsenseQaTask(TaskConfig(test=f"{directory}:test")).questions("test")


def test_array_records_are_read_without_tensorflow(tmp_path: Path):
    directory = write_array_records(tmp_path, [{**ROWS[0], "number": 1.5}])
    program = (
        "import sys; from malt_jax.tasks import sources;"
        " (row,) = sources.read([sys.argv[1]], 'task.test', 'test');"
        " assert row[1]['number'] == 1.5; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(directory)], check=True, timeout=60)


@pytest.mark.parametrize("key", sources.CLASS_KEYS)
def test_features_cannot_name_other_modules(key: str, tmp_path: Path):
    pytest.importorskip("tensorflow_datasets")
    features = {"featuresDict": {"features": [{key: "antigravity.Feature"}]}}
    (tmp_path / "features.json").write_text(json.dumps(features))
    with pytest.raises(
        UserError, match=r"'antigravity\.Feature' is no class of TensorFlow Datasets"
    ):
        rows_of(str(tmp_path))
    assert "antigravity" not in sys.modules


HUB = {
    Gsm8kTask: ["openai/gsm8k main train", "openai/gsm8k main test"],
    CommonsenseQaTask: ["tau/commonsense_qa None train", "tau/commonsense_qa None validation"],
    GsmSymbolicTask: ["openai/gsm8k main train", "apple/GSM-Symbolic main test"],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub is asked for; it has one row in everything."""
    asked = []

    def load_dataset(dataset: str, config: str | None, split: str) -> list[dict[str, Any]]:
        asked.append(f"{dataset} {config} {split}")
        math = {"problem": "?", "solution": "\\boxed{1}", "level": 1, "subject": "Algebra"}
        return [{**ROWS[0], **math, "answer": "#### 3"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "_unreachable", lambda site: None)
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
    task = Gsm8kTask(TaskConfig(test="hub:someone/sums/hard:validation"))
    assert len(task.questions("test")) == 1
    assert asked == ["someone/sums hard validation"]


GSM8K_FILE = "https://huggingface.co/api/datasets/openai/gsm8k/parquet/main/test/0.parquet"
MATH_FILES = "https://huggingface.co/api/datasets/EleutherAI/hendrycks_math/parquet"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unresolved(*args: object, **options: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("source", ["hub:openai/gsm8k/main:test", "tfds:huggingface:a__b:test"])
def test_without_network_a_source_fails_fast(source: str):
    if source.startswith("tfds:"):
        pytest.importorskip("tensorflow_datasets")
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        rows_of(source)
    assert time.monotonic() - start < 5
    problem = "https://huggingface.co does not answer, and no copy is cached"
    assert str(error.value).startswith(f"{source}: cannot be read ({problem}); ")


@pytest.mark.usefixtures("no_network")
def test_without_network_the_error_names_the_files_to_download():
    with pytest.raises(UserError) as error:
        Gsm8kTask().questions("test")
    assert str(error.value).endswith(
        "; download this file elsewhere, copy it here, and name it with task.test=FILE:"
        f"\n  {GSM8K_FILE}"
    )
    with pytest.raises(UserError) as error:
        MathTask().questions("train")
    assert "copy them into one directory, and name them with task.train='DIRECTORY/*.parquet':" in (
        str(error.value)
    )
    assert str(error.value).count("/train/0.parquet") == 7
    assert str(error.value).endswith(f"\n  {MATH_FILES}/precalculus/train/0.parquet")


@pytest.mark.usefixtures("no_network")
def test_without_network_a_cached_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_parquet(tmp_path / "rows.parquet", ROWS)
    builder = datasets.load_dataset_builder("parquet", data_files={"test": file})
    builder.info.config_name, builder.info.dataset_name = "main", "sums"
    folder = tmp_path / "someone___sums" / "main" / "0.0.0" / "hash"
    folder.mkdir(parents=True)
    builder.info.splits = datasets.SplitDict({"test": datasets.SplitInfo("test", 1, len(ROWS))})
    builder.info.write_to_directory(str(folder))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.rename(folder / "sums-test.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert rows_of("hub:someone/sums/main:test") == ROWS


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:gsm8k:test", "write hub:OWNER/NAME:SPLIT"),
        ("hub:openai/gsm8k", "write hub:OWNER/NAME:SPLIT"),
        ("tfds:mnist", "write tfds:NAME:SPLIT"),
        ("{tmp}", "neither `datasets` nor TensorFlow Datasets saved a data set there"),
        ("{tmp}/x*.jsonl", "no file matches; put the questions there"),
        ("{tmp}/x.parquet", "x.parquet: cannot be read (No such file or directory); put the q"),
        ("{tmp}/bad.parquet", "bad.parquet: cannot be read (Parquet file size is 2 bytes"),
        ("{tmp}/text.parquet", "text.parquet: cannot be read ('utf-8' codec can't decode"),
        ("{tmp}/saved", "saved: cannot be read ("),
    ],
)
def test_sources_that_are_none(source: str, message: str, tmp_path: Path):
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    column = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"question": column}), tmp_path / "text.parquet")
    with pytest.raises(UserError) as error:
        rows_of(source.format(tmp=tmp_path))
    assert message in str(error.value)


def test_the_libraries_of_data_sets_are_imported_only_for_them(tmp_path: Path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    program = (
        "import sys; from malt_jax.tasks.__main__ import main; main(sys.argv[1:]);"
        " sys.exit(not {'datasets', 'tensorflow_datasets', 'jax'}.isdisjoint(sys.modules))"
    )
    options = ["task.name=gsm8k", f"task.train={file}", f"task.test={file}"]
    subprocess.run([sys.executable, "-c", program, *options], check=True, timeout=60)
