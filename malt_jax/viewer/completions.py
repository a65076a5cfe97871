"""Completions of Parquet files as the page shows them: pieces of text with log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from malt_jax.checkpoints.tokenizer import Tokenizer

_LARGEST_COST = 9999


class Completion(TypedDict):
    """A completion. Without a tokenizer its text is one piece."""

    pieces: list[str]
    """Their concatenation is the text."""
    costs: list[int]
    """Of every token: -100 times its natural log-probability, rounded."""
    cut: bool
    """Whether it reached the limit of tokens."""


class Row(TypedDict):
    """A row of a file of completions."""

    fields: dict[str, Any]
    """The columns that are not listed here."""
    text: str
    ids: list[int]
    costs: list[int]
    cut: bool


class Pieces:
    """Texts cut at the borders of tokens."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def split(self, ids: Sequence[int], text: str) -> list[str]:
        """A piece for every id; the whole text as one piece where the ids do not give the text."""
        if self._tokenizer is None:
            return [text]
        # Most ids have the same text everywhere, and a look-up is much faster than decoding.
        pieces = [self._piece(id) for id in ids]
        if "".join(pieces) != text:
            pieces = self._tokenizer.pieces(ids)
            if pieces and text.startswith(joined := "".join(pieces)):
                pieces[-1] += text[len(joined) :]
        return pieces if "".join(pieces) == text else [text]

    def _piece(self, id: int) -> str:
        assert self._tokenizer is not None
        if id not in self._alone:
            self._alone[id] = self._tokenizer.decode([id])
        return self._alone[id]


def rows(table: pa.Table) -> Iterator[Row]:
    """The rows of a table that has the columns of `malt.parquet.COLUMNS` and others."""
    ids, starts = _flat(table, "ids")
    logps, logp_starts = _flat(table, "log_probabilities")
    # An untrusted file may hold NaN and infinities.
    costs = np.nan_to_num(-100.0 * logps, nan=0.0, posinf=_LARGEST_COST, neginf=0.0)
    costs = np.clip(np.rint(costs), 0, _LARGEST_COST).astype(int)
    known = ("ids", "log_probabilities", "text", "finish")
    others = {name: table.column(name).to_pylist() for name in table.column_names}
    texts, finish = others["text"], others["finish"]
    others = {name: column for name, column in others.items() if name not in known}
    for row in range(table.num_rows):
        yield Row(
            fields={name: column[row] for name, column in others.items()},
            text=texts[row] or "",
            ids=ids[starts[row] : starts[row + 1]].tolist(),
            costs=costs[logp_starts[row] : logp_starts[row + 1]].tolist(),
            cut=finish[row] == "length",
        )


def completion(row: Row, pieces: Pieces) -> Completion:
    """A row as the page shows it."""
    return Completion(
        pieces=pieces.split(row["ids"], row["text"]), costs=row["costs"], cut=row["cut"]
    )


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All values of a column of lists, and the row's borders in them."""
    column = table.column(name).combine_chunks()
    return column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
