"""Sources of rows: files, saved data sets, the Hugging Face hub, TensorFlow Datasets.

`task.train` and `task.test` name a source as one text:

    questions.jsonl, questions.parquet      a file; with * in its name, all matching files by name
    DIRECTORY or DIRECTORY:SPLIT            saved by `datasets` or written by TensorFlow Datasets
    hub:OWNER/NAME[/CONFIG]:SPLIT           a data set on the Hugging Face hub
    tfds:NAME[/CONFIG]:SPLIT                a data set that TensorFlow Datasets knows by name

`datasets` and TensorFlow Datasets are imported only where a source needs them.
"""

from __future__ import annotations

import glob
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from malt_jax.errors import UserError, import_extra
from malt_jax.files import read_json_lines, read_json_object

NamedRow = tuple[str, Mapping[str, Any]]
"""A row's place, for error messages, and its fields."""

SECONDS_TO_ANSWER = 5.0
"""A site that gives no answer in this time counts as unreachable."""
STORAGE = "https://storage.googleapis.com"
"""Serves TensorFlow Datasets' copies; its downloader retries for minutes without a network."""
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
"""Keys of features.json whose value names a Python class."""


def read(sources: Sequence[str], field: str, default_split: str) -> Iterator[NamedRow]:
    """The rows of some sources, one source after another.

    field:         the configuration's field that names the sources, for error messages.
    default_split: split of a directory whose source names none.

    Raises UserError for a source that cannot be read; it says which file to put where.
    """
    for source in [file for named in sources for file in _matching(named, field)]:
        try:
            yield from _read(source, field, default_split)
        except UserError:
            raise
        except Exception as error:  # of many libraries; they share no base class
            line = str(getattr(error, "strerror", None) or error).strip().partition("\n")[0]
            reason = line.removesuffix(".") or type(error).__name__
            raise UserError(
                f"{source}: cannot be read ({reason}); {_advice(source, sources, field)}"
            ) from error


def _matching(source: str, field: str) -> list[str]:
    """The files that a pattern matches, by name; the source itself if it is no pattern."""
    if source.startswith(("hub:", "tfds:")) or Path(source).exists() or not glob.has_magic(source):
        return [source]
    files = sorted(glob.glob(source, recursive=True))
    if not files:
        raise UserError(f"{field}={source}: no file matches; put the questions there")
    return files


def _read(source: str, field: str, default_split: str) -> Iterator[NamedRow]:
    name, _, split = source.rpartition(":")
    directory = Path(name or source)
    rows: Iterable[Mapping[str, Any]]
    if source.startswith("hub:"):
        rows = _read_hub(*_hub_parts(source, field))
    elif source.startswith("tfds:"):
        rows = _read_tfds(source, field)
    elif directory.is_dir():
        rows = _read_directory(directory, split if name else default_split, field)
    elif source.endswith(".parquet"):
        with open(source, "rb") as opened:
            rows = pyarrow.parquet.ParquetFile(opened).read().to_pylist()
    else:
        yield from read_json_lines(Path(source))
        return
    for number, fields in enumerate(rows, start=1):
        yield f"{source}, row {number}", fields


def _read_directory(directory: Path, split: str, field: str) -> Iterator[Mapping[str, Any]]:
    """A data set that `datasets` saved, or that TensorFlow Datasets wrote as array_records."""
    if (directory / "features.json").is_file():
        tfds = import_extra("tensorflow_datasets", "tfds")
        _check_features(directory / "features.json")
        builder = tfds.builder_from_directory(directory)
        splits = {name: builder.as_data_source(name) for name in builder.info.splits}
    elif any((directory / name).is_file() for name in ("state.json", "dataset_dict.json")):
        import datasets

        saved = datasets.load_from_disk(str(directory))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {split: saved}
    else:
        raise UserError(
            f"{directory} is a directory, but neither `datasets` nor TensorFlow Datasets saved a"
            f" data set there; name the files in it with {field}='{directory}/*.jsonl'"
        )
    if split not in splits:
        raise UserError(
            f"{directory} has no split {split!r}; name one of its splits, {', '.join(splits)}, as"
            f" {directory}:SPLIT"
        )
    return map(_plain, splits[split])


def _read_hub(dataset: str, config: str | None, split: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    unreachable = _go_offline_unless_reachable()
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:
        if unreachable:
            raise ConnectionError(unreachable) from error
        raise
    return rows


def _read_tfds(source: str, field: str) -> Iterator[Mapping[str, Any]]:
    path, colon, split = source.removeprefix("tfds:").rpartition(":")
    if not (colon and path and split):
        raise UserError(f"{field}={source}: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
    tfds = import_extra("tensorflow_datasets", "tfds")
    on_hub = path.startswith("huggingface:")
    unreachable = _go_offline_unless_reachable() if on_hub else _unreachable(STORAGE)
    try:
        examples = tfds.data_source(path, split=split, download=unreachable is None)
    except Exception as error:
        if unreachable:
            raise ConnectionError(unreachable) from error
        raise
    return map(_plain, examples)


def _plain(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example with text for bytes, lists for arrays, and Python's numbers for NumPy's.

    Bytes that are not UTF-8 become lone surrogates, which a question must not hold.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode(errors="surrogateescape")
        return value.tolist() if hasattr(value, "tolist") else str(value)

    plain: dict[str, Any] = json.loads(json.dumps(example, default=convert))
    return plain


def _check_features(path: Path) -> None:
    """Raises UserError for features of classes that are not TensorFlow Datasets' own.

    TensorFlow Datasets imports the module of every class that is named, which runs its code.
    """
    values: list[Any] = [read_json_object(path)]
    while values:
        value = values.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, (dict, list)):
                values.append(item)
            elif key in CLASS_KEYS and not str(item).startswith("tensorflow_datasets."):
                raise UserError(f"{path}: {key} {item!r} is no class of TensorFlow Datasets")


def _hub_parts(source: str, field: str) -> tuple[str, str | None, str]:
    """Data set, configuration and split of a source on the hub."""
    match = re.fullmatch(r"hub:([^/:]+/[^/:]+)(?:/([^/:]+))?:(.+)", source)
    if match is None:
        raise UserError(f"{field}={source}: write hub:OWNER/NAME:SPLIT, with /CONFIG after NAME")
    dataset, config, split = match.groups()
    return dataset, config, split


def _go_offline_unless_reachable() -> str | None:
    """Switches the hub's client to its cache if the hub does not answer; says so, else None.

    Without this the client retries every request for half a minute.
    """
    import datasets
    from huggingface_hub import constants

    problem = None if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if problem:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return problem


def _unreachable(site: str) -> str | None:
    """A sentence for errors if a site gives no answer within SECONDS_TO_ANSWER, else None."""
    try:
        request = urllib.request.Request(site, method="HEAD")
        urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:
        return None  # an answer, though an unfriendly one
    except OSError:
        return f"{site} does not answer, and no copy is cached"
    return None


def _advice(source: str, sources: Sequence[str], field: str) -> str:
    """A remedy for a source that cannot be read: for the hub, the Parquet files to download."""
    if not source.startswith("hub:"):
        return f"put the questions into a JSON Lines or Parquet file and name it with {field}=FILE"
    from huggingface_hub import constants

    files = []
    for each in sources:
        dataset, config, split = _hub_parts(each, field)
        parquet = f"parquet/{config or 'default'}/{split}/0.parquet"
        files.append(f"{constants.ENDPOINT}/api/datasets/{dataset}/{parquet}")
    advice = f"download this file elsewhere, copy it here, and name it with {field}=FILE:"
    if len(files) > 1:
        advice = (
            "download these files elsewhere, copy them into one directory, and name them with"
            f" {field}='DIRECTORY/*.parquet':"
        )
    return "\n  ".join([advice, *files])
