"""Samples come back as they were written, also after an interruption and next to damaged files."""

from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from malt_jax.config import Config
from malt_jax.evaluation.store import Store
from malt_jax.runs.directory import RunDirectory
from malt_jax.sampling.decode import Completions, Finish

CHAIN = ("base", "malt")


def store_at(path: Path) -> Store:
    return Store(RunDirectory(UPath(path), Config()))


def add(store: Store, question: int, numbers: range, seconds: float = 1.0) -> None:
    shape = (1, len(numbers), 1)
    completions = Completions(
        tokens=np.arange(len(numbers) * 4, dtype=np.int32).reshape(*shape, 4) + 100 * question,
        log_probabilities=np.full((*shape, 4), -0.5, np.float32),
        lengths=np.full(shape, 3, np.int32),
        finish=np.full(shape, Finish.STOP, np.int32),
    )
    nodes = [(question, number) for number in numbers]
    texts = np.array([f"text {question} {number}" for number in numbers], object)
    texts = texts.reshape(shape)
    store.add(0, CHAIN, nodes, completions, texts, [7] * len(numbers), seconds)


def test_what_was_added_comes_back(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    add(store, 5, range(0, 2), seconds=4.0)
    add(store, 5, range(2, 3), seconds=1.0)
    add(store, 8, range(0, 1), seconds=9.0)
    for samples in (
        store.samples(0, CHAIN),
        store_at(tmp_path).samples(0, CHAIN),
    ):
        assert [samples.passes(question) for question in (5, 8, 9)] == [3, 1, 0]
        sample = samples.by_node[5, 1]
        assert (sample.text, sample.prompt_tokens) == ("text 5 1", 7)
        assert sample.ids.tolist() == [504, 505, 506]
        assert samples.seconds_per_completion == 2.0  # of 2, 1 and 9
    assert store_at(tmp_path).samples(1, CHAIN).by_node == {}
    assert store.seconds(0) == 14.0


def test_a_damaged_file_is_named_and_its_samples_are_drawn_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_at(tmp_path)
    for question in range(3):
        add(store, question, range(1))
    file = sorted(tmp_path.rglob("*.parquet"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(bytes(content))
    again = store_at(tmp_path)
    assert [again.samples(0, CHAIN).passes(question) for question in range(3)] == [1, 0, 1]
    assert f"{file} is damaged: its checksum is another; it is made again" in caplog.text
    add(again, 1, range(1))
    found = store_at(tmp_path).samples(0, CHAIN)
    assert [found.passes(question) for question in range(3)] == [1, 1, 1]
