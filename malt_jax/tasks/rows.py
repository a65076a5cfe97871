"""Tasks whose questions are rows of a data set."""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.tasks import sources
from malt_jax.tasks.base import Question, Split, Task
from malt_jax.tasks.duplicates import duplicates
from malt_jax.tasks.row import Row
from malt_jax.tasks.sources import array_records

logger = logging.getLogger(__name__)


class Published:
    """A split as it is published.

    Attributes:
        questions: how many it has.
        sources:   where they are, see malt_jax.tasks.sources; read one after another.
        split:     its name there, and in a saved copy.
    """

    def __init__(self, questions: int, *sources: str) -> None:
        self.questions = questions
        self.sources = sources
        self.split = sources[0].rpartition(":")[2]


@dataclass(frozen=True)
class Data:
    """Where a task's rows are, as the configuration says it under `task`.

    Attributes:
        train, test:     sources (see malt_jax.tasks.sources); None is the task's own on the hub.
        array_records:   directory to write the rows into once and to read them from; None for none.
        drop_duplicates: whether training questions that the test asks too are left out.
    """

    train: str | None = None
    test: str | None = None
    array_records: str | None = None
    drop_duplicates: bool = True


class RowsTask(Task):
    """A task that reads rows from files, saved data sets, the hub or TensorFlow Datasets.

    Attributes:
        train, test: the splits as they are published; None where only the user's own are read.
    """

    train: Published | None = None
    test: Published | None = None

    def __init__(self, data: Data | None = None) -> None:
        self.data = data or Data()
        self._questions: dict[Split, Sequence[Question]] = {}

    @abstractmethod
    def question(self, index: int, row: Row) -> Question:
        """The question that a row holds. Raises UserError, by `row.error`, for a bad row."""

    def questions(self, split: Split) -> Sequence[Question]:
        if split not in self._questions:
            questions = self.all_questions(split)
            if split == "train" and self.data.drop_duplicates and self._sources("test"):
                questions = self._without_duplicates(questions)
            self._questions[split] = questions
        return self._questions[split]

    def all_questions(self, split: Split) -> list[Question]:
        """The questions of a split, with those of the training that the test asks too.

        Raises UserError as `questions` does.
        """
        named = self._sources(split)
        if not named:
            raise UserError(
                f"the task {self.name!r} has no {split} questions of its own; name a file (JSON"
                f" Lines or Parquet) with task.{split}=FILE"
            )
        rows = self._recorded(split) if self.data.array_records else self._rows(split)
        questions = [self.question(index, row) for index, row in enumerate(rows)]
        if not questions:
            raise UserError(f"{named[0]}: no questions; task.{split} needs some")
        published = self._published(split)
        if published and named == published.sources and len(questions) != published.questions:
            raise UserError(
                f"{', '.join(named)}: {len(questions)} rows, but {self.name} has"
                f" {published.questions} {split} questions; remove the cached copy, or name a file"
                f" with task.{split}=FILE"
            )
        return questions

    def _published(self, split: Split) -> Published | None:
        return self.train if split == "train" else self.test

    def _sources(self, split: Split) -> tuple[str, ...]:
        own = self.data.train if split == "train" else self.data.test
        if own is not None:
            return (own,)
        published = self._published(split)
        return published.sources if published else ()

    def _rows(self, split: Split) -> Iterator[Row]:
        published = self._published(split)
        for source in self._sources(split):
            yield from sources.read(
                source, f"task.{split}", published.split if published else split
            )

    def _recorded(self, split: Split) -> Iterator[Row]:
        """The rows as array_records, which are written when there are none of these sources."""
        data_dir = Path(str(self.data.array_records))
        config = f"{split}_{sources.fingerprint(self._sources(split))[:16]}"
        directory = array_records.written(data_dir, self.name, config)
        if not array_records.is_data_set(directory):
            rows = list(self._rows(split))
            for index, row in enumerate(rows):
                self.question(index, row)  # what is wrong is said with the file and the line
            if not rows:
                return iter(())
            fields = [row.fields for row in rows]
            array_records.write_once(data_dir, self.name, config, split, fields)
        return array_records.read_directory(directory, split)

    def _without_duplicates(self, questions: list[Question]) -> list[Question]:
        found = duplicates(questions, self.questions("test"))
        if not found:
            return questions
        first = [
            f"{id} as test question {other}" for id, other in itertools.islice(found.items(), 5)
        ]
        logger.info(
            "%s: left out %d of %d training questions, as the test asks them too: %s",
            *(self.name, len(found), len(questions)),
            ", ".join([*first, "..."] if len(found) > len(first) else first),
        )
        left = [question for question in questions if question.id not in found]
        if not left:
            raise UserError(
                f"the test asks all {len(questions)} training questions of {self.name}; give other"
                " ones with task.train, or keep them with task.drop_duplicates=false"
            )
        return left
