"""Rows of data sets on the Hugging Face hub, and of those that `datasets` saved to a disk."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from malt_jax.errors import UserError
from malt_jax.tasks.row import Row

SECONDS_TO_ANSWER = 5.0
"""After this time without an answer the hub counts as out of reach."""


def read(name: str, field: str) -> Iterator[Row]:
    """The rows of OWNER/NAME[/CONFIG]:SPLIT, from the hub or from what is cached of it.

    Raises UserError, with the file to give instead, when they cannot be had.
    """
    instead = instead_of_network(field)
    dataset, config, split = _parts(name, field)
    datasets = _datasets(f"hub:{name}", instead)
    try:
        with within_reach():
            rows = datasets.load_dataset(dataset, config, split=split)
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"hub:{name} cannot be had: {reason}; {instead}") from error
    for number, fields in enumerate(rows, start=1):
        yield Row(f"hub:{name}, row {number}", fields)


def instead_of_network(field: str) -> str:
    """What to do where a data set cannot be downloaded."""
    return (
        "put its rows, with its own names of the fields, into a JSON Lines or Parquet file and"
        f" name that with {field}=FILE"
    )


def is_saved(directory: Path) -> bool:
    """Whether `datasets` saved a data set, or one with several splits, into a directory."""
    return any((directory / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(directory: Path, split: str) -> Iterator[Row]:
    """The rows of a saved data set; `split` picks one where there are several.

    Raises UserError when it cannot be read or has no such split.
    """
    datasets = _datasets(str(directory), "name a JSON Lines or Parquet file")
    try:
        rows = datasets.load_from_disk(str(directory))
    except Exception as error:  # of Arrow, JSON or the file system
        raise UserError(f"{directory}: cannot be read as a saved data set: {error}") from error
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise UserError(
                f"{directory} has no split {split!r}; name one of its splits, {', '.join(rows)},"
                f" as {directory}:SPLIT"
            )
        rows = rows[split]
    for number, fields in enumerate(rows, start=1):
        yield Row(f"{directory}, row {number} of {split}", fields)


@contextlib.contextmanager
def within_reach() -> Iterator[None]:
    """Inside, a hub out of reach is not asked again and again: only what is cached is used."""
    import datasets
    from huggingface_hub import constants

    if _offline() or answers(constants.ENDPOINT):
        yield
        return
    switches = [(constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    except Exception as error:
        raise ConnectionError(
            f"{constants.ENDPOINT} is out of reach, and there is no cached copy"
        ) from error
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def answers(endpoint: str) -> bool:
    """Whether a site gives any answer within SECONDS_TO_ANSWER."""
    try:
        urllib.request.urlopen(
            urllib.request.Request(endpoint, method="HEAD"), timeout=SECONDS_TO_ANSWER
        ).close()
    except urllib.error.HTTPError:
        return True  # an answer, if an unfriendly one
    except OSError:
        return False
    return True


def _parts(name: str, field: str) -> tuple[str, str | None, str]:
    path, colon, split = name.rpartition(":")
    owner, *rest = path.split("/")
    if not (colon and split and owner and 1 <= len(rest) <= 2 and all(rest)):
        raise UserError(f"{field}=hub:{name}: write hub:OWNER/NAME:SPLIT or /CONFIG behind NAME")
    return f"{owner}/{rest[0]}", rest[1] if len(rest) == 2 else None, split


def _datasets(source: str, instead: str) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{source} is read with the package `datasets`, which is not installed; install it"
            f" (make install EXTRAS=data), or {instead}"
        ) from error
    return datasets
