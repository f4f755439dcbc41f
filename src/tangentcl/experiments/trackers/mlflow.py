"""MLflow: runs in a database file or on a server, read by ``mlflow ui``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tangentcl.errors import import_extra
from tangentcl.experiments.trackers.curves import Curves
from tangentcl.experiments.trackers.flat import flat

ENDS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MOST_PARAMETERS = 100  # in one message
LONGEST_PARAMETER = 6000  # characters; MLflow refuses more, and the whole value is in the record


class MLflowTracker:
    """One MLflow run for every run, in the MLflow experiment of the experiment's name.

    Curves are metrics, settings parameters, the end a status: FINISHED, FAILED or KILLED. A run that is repeated is
    another MLflow run. MLflow's own current run and tracking address stay as they are. Each event is one message, which
    is waited for.

    Args:
        folder: holds the database, ``mlflow.db``, unless there is a ``tracking_uri``.
        tracking_uri: where MLflow keeps runs instead, as ``"http://localhost:5000"``.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, folder: Path, *, tracking_uri: str | None = None) -> None:
        purpose = "the tracker 'mlflow'"
        self.mlflow = import_extra("mlflow", extra="mlflow", purpose=purpose)
        if tracking_uri is None:
            for package in ("sqlalchemy", "alembic"):  # mlflow-skinny comes without
                import_extra(package, extra="mlflow", purpose=f"{purpose}, which keeps its runs in a database file,")
        self.folder, self.tracking_uri = folder, tracking_uri
        self.curves = Curves()

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        """Create the run, and the experiment when it is the first."""
        place = None
        if self.tracking_uri is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = (self.folder / "artifacts").resolve().as_uri()
        uri = self.tracking_uri or f"sqlite:///{self.folder.resolve() / 'mlflow.db'}"
        self.client = self.mlflow.MlflowClient(tracking_uri=uri)
        title = str(settings["name"])
        known = self.client.get_experiment_by_name(title)
        experiment = known.experiment_id if known else self.client.create_experiment(title, artifact_location=place)
        tags = {"tangentcl.run": name}
        self.run = self.client.create_run(experiment, run_name=name.partition("/")[2], tags=tags).info.run_id
        parameters = [
            self.mlflow.entities.Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in flat(settings).items()
        ]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self.client.log_batch(self.run, params=parameters[first : first + MOST_PARAMETERS])

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """One message with a point on each curve."""
        reading = self.curves.read(event, fields)
        self._log(reading.values, reading.at)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Final metrics, and the end of the run."""
        self._log({f"metrics/{key}": value for key, value in metrics.items()}, self.curves.task)
        self.client.set_terminated(self.run, ENDS[status])

    def _log(self, values: Mapping[str, float], at: int) -> None:
        if values:
            now = int(1000 * time.time())
            metrics = [self.mlflow.entities.Metric(key, value, now, at) for key, value in values.items()]
            self.client.log_batch(self.run, metrics=metrics)
