"""MLflow: a server, or a database in the run's directory."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import ClassVar

from malt_jax.tracking.tracker import Followed, Table, named

DATABASE = "mlflow.db"
"""In a run's directory, where MLFLOW_TRACKING_URI names no server."""
URI = "MLFLOW_TRACKING_URI"
_TABLES = "mlflow.loggedArtifacts"
"""The tag that lists the artifacts that MLflow shows as tables."""
_LONGEST = 500
"""Characters of an option's value."""


class Mlflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or in RUN/mlflow.db."""

    module: ClassVar[str] = "mlflow"
    remote: ClassVar[bool] = True

    def __init__(self, run: Followed) -> None:
        # Every step of making the database's tables would be a line.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # The default waits for a server that is away for four minutes before a run begins.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        from mlflow import MlflowClient

        directory = run.disk.absolute()
        uri = os.environ.get(URI) or f"sqlite:///{directory / DATABASE}"
        self._client = MlflowClient(tracking_uri=uri)
        local = None if os.environ.get(URI) else (directory / "mlartifacts").as_uri()
        self._id = self._resumed(run.identity) or self._created(run, local)
        self.identity: str | None = self._id

    def _resumed(self, identity: str | None) -> str | None:
        """The run of an earlier attempt, running again; None where this server has no such run."""
        from mlflow.exceptions import MlflowException

        try:
            if identity is not None:
                self._client.update_run(identity, status="RUNNING")
            return identity
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _created(self, run: Followed, artifacts: str | None) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(run.project)
        experiment = (
            self._client.create_experiment(run.project, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        identity: str = self._client.create_run(experiment, run_name=run.name).info.run_id
        options = [Param(name, str(value)[:_LONGEST]) for name, value in run.options.items()]
        for first in range(0, len(options), 100):  # the most that one request may have
            self._client.log_batch(identity, params=options[first : first + 100])
        return identity

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in named(stage, values).items()]
        self._client.log_batch(self._id, metrics=metrics)

    def table(self, name: str, step: int, table: Table) -> None:
        # Not log_table, which adds to a table: a resumed run would show its rows twice.
        file = f"{name}.json"
        content = {"columns": [*table.columns], "data": [list(row) for row in table.rows]}
        self._client.log_dict(self._id, content, file)
        listed = json.loads(self._client.get_run(self._id).data.tags.get(_TABLES, "[]"))
        if (entry := {"path": file, "type": "table"}) not in listed:
            self._client.set_tag(self._id, _TABLES, json.dumps([*listed, entry]))

    def flush(self) -> None:
        """Every call is written at once."""

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
