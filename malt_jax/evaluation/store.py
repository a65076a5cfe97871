"""The stored completions of an evaluation, which are not sampled again.

A folder `seed-S/POLICY-POLICY-...` holds the completions of the last role of a chain, as Parquet
files of any number of rows. A row is a function of the run, the seed, the chain, the question and
the number of the pass, so files are only added: more questions, passes, seeds or systems extend
them, and an interrupted evaluation resumes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from upath import UPath

from malt_jax.errors import UserError, require_no_machine_problem
from malt_jax.evaluation.systems import Chain
from malt_jax.malt import parquet
from malt_jax.malt.tree import Texts
from malt_jax.runs.directory import RunDirectory
from malt_jax.runs.stage import seen
from malt_jax.sampling.completions import Completions

FOLDER = "evaluation"
"""Below a run's directory."""

_SECONDS = b"seconds"
_SCHEMA = pa.schema(
    [
        ("question", pa.int64()),
        ("pass", pa.int32()),
        *parquet.COLUMNS,
        ("prompt_tokens", pa.int32()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion."""

    text: str
    ids: Int[np.ndarray, " T"]
    prompt_tokens: int


@dataclasses.dataclass
class Samples:
    """All completions of one chain and seed, by question id and pass."""

    by_node: dict[tuple[int, int], Sample]
    seconds: list[tuple[float, int]]
    """Seconds of sampling and completions of every file."""

    def passes(self, question: int) -> int:
        """The number of passes of a question, from pass 0 on."""
        count = 0
        while (question, count) in self.by_node:
            count += 1
        return count

    @property
    def seconds_per_completion(self) -> float | None:
        """The median over files, so that the compilation of the first ones does not count."""
        rates = [seconds / completions for seconds, completions in self.seconds]
        return statistics.median(rates) if rates else None


class Store:
    """The samples of a run, in its folder evaluation/."""

    def __init__(
        self, directory: RunDirectory, folder: str = FOLDER, shared: Shared | None = None
    ) -> None:
        """shared: keeps the samples of its chains, which are read and written there instead."""
        self.folder = folder
        self._directory = directory
        self._shared = shared
        self._stage = directory.growing(folder)
        self._read: dict[tuple[int, Chain], Samples] = {}

    def below(self, folder: str) -> Store:
        """A store of samples of other questions, in a folder below this one's."""
        return Store(self._directory, f"{self.folder}/{folder}")

    def samples(self, seed: int, chain: Chain) -> Samples:
        """The stored samples of a seed and a chain.

        Raises UserError when a file cannot be read.
        """
        if (other := self._other(chain)) is not None:
            return other.samples(seed, chain)
        key = (seed, chain)
        if key not in self._read:
            self._read[key] = Samples({}, [])
            for name in self._files(seed, chain):
                if self._stage.has(name):
                    _take(self._read[key], read_samples(self._stage.path / name))
        return self._read[key]

    def add(
        self,
        seed: int,
        chain: Chain,
        nodes: Iterable[tuple[int, int]],
        completions: Completions,
        texts: Texts,
        prompt_tokens: Sequence[int],
        seconds: float,
    ) -> None:
        """Writes completions, in one file that appears whole.

        nodes: question id and pass of every completion, in row-major order.
        """
        if (other := self._other(chain)) is not None:
            other.add(seed, chain, nodes, completions, texts, prompt_tokens, seconds)
            return
        rows = [
            {"question": question, "pass": number, **row, "prompt_tokens": prompt}
            for (question, number), row, prompt in zip(
                nodes, parquet.completion_rows(completions, texts), prompt_tokens, strict=True
            )
        ]
        content = parquet.encode(rows, _SCHEMA.with_metadata({_SECONDS: str(seconds).encode()}))
        samples, files = self.samples(seed, chain), self._files(seed, chain)
        number = 1 + int(Path(files[-1]).stem.rpartition("-")[2]) if files else 0
        name = f"{folder_of(seed, chain)}/samples-{number:05}.parquet"
        file = self._stage.write(name, content)
        seen(file)
        _take(samples, read_samples(file))

    def seconds(self, seed: int) -> float:
        """Seconds of sampling for a seed, as far as it has been read."""
        return sum(
            seconds
            for (read, _), samples in self._read.items()
            if read == seed
            for seconds, _ in samples.seconds
        )

    def _other(self, chain: Chain) -> Store | None:
        """The store of a chain that is not kept here."""
        if self._shared is not None and self._shared.policies.issuperset(chain):
            return self._shared.store
        return None

    def _files(self, seed: int, chain: Chain) -> list[str]:
        return self._stage.names(f"{folder_of(seed, chain)}/*.parquet")


class Shared(NamedTuple):
    """A store that several runs use for chains of some policies alone.

    The runs must agree in what these chains' samples depend on: the weights under these policies,
    prompts, sampling parameters and seed.
    """

    store: Store
    policies: frozenset[str]


def folder_of(seed: int, chain: Chain) -> str:
    """The folder of a seed's and a chain's samples, below that of the evaluation."""
    return f"seed-{seed}/{'-'.join(chain)}"


def read_samples(file: UPath) -> pa.Table:
    """The rows of a file of samples. Raises UserError when it cannot be read."""
    table = parquet.decode(file, _SCHEMA, "samples")
    try:
        float(table.schema.metadata[_SECONDS])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{file} lacks the seconds of its sampling; delete it, and it is sampled again"
        ) from None
    return table


def count_samples(file: UPath) -> tuple[int, float]:
    """The completions in a file of samples, and the seconds of sampling them. Reads no text.

    Raises UserError when the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            found = pq.read_metadata(opened)
        return found.num_rows, float(found.metadata[_SECONDS])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        require_no_machine_problem(error)
        raise UserError(f"{file} cannot be read as samples: {error}") from None


def _take(samples: Samples, table: pa.Table) -> None:
    ids = table.column("ids").combine_chunks()
    flat, offsets = ids.values.to_numpy(), ids.offsets.to_numpy()
    columns = (table.column(name).to_pylist() for name in ("question", "pass", "text"))
    prompt_tokens = table.column("prompt_tokens").to_pylist()
    for row, (question, number, text) in enumerate(zip(*columns, strict=True)):
        sample = Sample(text, flat[offsets[row] : offsets[row + 1]], prompt_tokens[row])
        samples.by_node[question, number] = sample
    samples.seconds.append((float(table.schema.metadata[_SECONDS]), table.num_rows))
