"""Rows of TensorFlow Datasets, read by index from array_record files, without TensorFlow."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from malt_jax.errors import UserError
from malt_jax.tasks.row import Row
from malt_jax.tasks.sources.hub import answers, instead_of_network, within_reach

VERSION = "1.0.0"
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
"""Keys under which features.json names the class of a feature."""
STORAGE = "https://storage.googleapis.com"
"""Asked first, as downloads are tried for minutes: no answer, no network."""


def write_once(
    data_dir: Path, data_set: str, config: str, split: str, rows: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes rows as the only split of a data set, unless it is there, and returns its directory.

    The result, DATA_DIR/DATA_SET/CONFIG/VERSION, is an ordinary data set for
    `tfds.builder_from_directory`. TensorFlow Datasets renames it when it is whole.

    Raises UserError when the rows do not all have the same fields of the same types.
    """
    directory = written(data_dir, data_set, config)
    if is_data_set(directory):
        return directory
    tfds = _tfds(f"{data_dir}: task.array_records")
    features = _feature(tfds, data_set, rows[0])
    for index, row in enumerate(rows):
        if _shape(row) != _shape(rows[0]):
            raise UserError(
                f"{data_set}: row {index + 1} has other fields than row 1, or other types in them,"
                " and cannot be written as array_records: leave task.array_records out"
            )

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        name = data_set
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=config, version=VERSION),)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, downloads: Any) -> Mapping[str, Any]:
            return {split: self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
            yield from enumerate(rows)

    tfds.disable_progress_bar()
    try:
        builder = Builder(data_dir=data_dir, config=config, file_format="array_record")
        builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"{data_dir}: array_records cannot be written: {error}") from error
    return directory


def written(data_dir: Path, data_set: str, config: str) -> Path:
    """Where `write_once` writes."""
    return data_dir / data_set / config / VERSION


def is_data_set(directory: Path) -> bool:
    """Whether TensorFlow Datasets wrote a data set into a directory."""
    return (directory / "features.json").is_file()


def read_directory(directory: Path, split: str) -> Iterator[Row]:
    """The rows of a data set that TensorFlow Datasets wrote as array_records, in their order.

    Raises UserError when it has no such split or other files than array_records.
    """
    tfds = _tfds(str(directory))
    _check_features(directory / "features.json")
    try:
        builder = tfds.builder_from_directory(directory)
        splits = list(builder.info.splits)
        source = builder.as_data_source(split) if split in splits else None
    except Exception as error:  # of its own checks, of JSON, of the file system
        raise UserError(
            f"{directory}: cannot be read by index ({str(error).splitlines()[0]}); TensorFlow"
            " Datasets must have written it with file_format='array_record'"
        ) from error
    if source is None:
        raise UserError(
            f"{directory} has no split {split!r}; name one of its splits, {', '.join(splits)}, as"
            f" {directory}:SPLIT"
        )
    yield from _rows(source, f"{directory}", split)


def read_named(name: str, field: str) -> Iterator[Row]:
    """The rows of NAME[/CONFIG]:SPLIT, downloaded once into TensorFlow Datasets' own directory.

    Raises UserError, with the file to give instead, when they cannot be had.
    """
    path, colon, split = name.rpartition(":")
    if not (colon and path and split):
        raise UserError(f"{field}=tfds:{name}: write tfds:NAME:SPLIT or tfds:NAME/CONFIG:SPLIT")
    tfds = _tfds(f"tfds:{name}")
    try:
        on_hub = path.startswith("huggingface:")
        with within_reach() if on_hub else contextlib.nullcontext():
            builder = tfds.builder(path, file_format="array_record")
            if not (on_hub or builder.is_prepared() or answers(STORAGE)):
                raise ConnectionError(f"{STORAGE} is out of reach, and there is no prepared copy")
            builder.download_and_prepare()
            source = builder.as_data_source(split)
    except Exception as error:  # of many libraries, as names lead to many sites
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"tfds:{name} cannot be had: {reason}; {instead_of_network(field)}"
        ) from error
    yield from _rows(source, f"tfds:{path}", split)


def _check_features(path: Path) -> None:
    """Raises UserError if features name classes that are not TensorFlow Datasets' own.

    It imports the modules of all that are named, and what is imported is run.
    """
    try:
        values: list[Any] = [[json.loads(path.read_bytes())]]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    while values:
        value = values.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, (dict, list)):
                values.append(item)
            elif key in CLASS_KEYS and not str(item).startswith("tensorflow_datasets."):
                raise UserError(f"{path}: {key} {item!r} is no class of TensorFlow Datasets")


def _rows(source: Any, place: str, split: str) -> Iterator[Row]:
    for index in range(len(source)):
        yield Row(f"{place}, row {index + 1} of {split}", _plain(source[index]))


def _plain(value: Any) -> Any:
    """NumPy's values and UTF-8 bytes, of which records are made, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


def _feature(tfds: ModuleType, name: str, value: Any) -> Any:
    """The feature that stores values like this one."""
    if isinstance(value, str):
        return tfds.features.Text()
    if isinstance(value, (bool, int, float)):
        return np.dtype(type(value)).type
    if isinstance(value, Mapping):
        return tfds.features.FeaturesDict(
            {key: _feature(tfds, name, item) for key, item in value.items()}
        )
    if isinstance(value, list) and value:
        return tfds.features.Sequence(_feature(tfds, name, value[0]))
    raise UserError(
        f"{name}: {value!r} cannot be written as array_records: leave task.array_records out"
    )


def _shape(value: Any) -> Any:
    """What two values must have in common to be stored by one feature."""
    if isinstance(value, Mapping):
        return {key: _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = [_shape(item) for item in value]
        return [shapes[0]] if shapes and all(shape == shapes[0] for shape in shapes) else shapes
    return type(value)


def _tfds(source: str) -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"{source} needs the packages tensorflow-datasets and importlib_resources"
            f" ({error}); install them: make install EXTRAS=data"
        ) from error
    return tensorflow_datasets
