"""MLflow: a server, or a database file beside the run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from vla_rl.section import Problem, RulesError, Text
from vla_rl.tracking.base import Ending, Session, TrackedRun, Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_DATABASE = "mlflow.db"
_LONGEST_VALUE = 500  # characters of a parameter that every version of the server takes
_MOST_PARAMS = 100  # that a server takes at once
_STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class Mlflow(Tracker):
    """MLflow tracking (https://mlflow.org/docs/latest/tracking)."""

    extra: ClassVar[str] = "mlflow"
    packages: ClassVar[tuple[str, ...]] = ("mlflow", "mlflow-skinny")  # the latter knows servers only

    experiment: Annotated[Text, Field(min_length=1, max_length=128)] = Field(
        "vla-rl", description="experiment in MLflow"
    )
    tracking_uri: Annotated[Text, Field(min_length=1, max_length=1024)] | None = Field(
        None,
        description="server, as https://host, or database, as sqlite:///path; null: what MLFLOW_TRACKING_URI says, or "
        "else mlflow.db beside the run's folder",
    )

    @model_validator(mode="after")
    def _names_no_password(self) -> Self:
        if self.tracking_uri is not None and "@" in urlsplit(self.tracking_uri).netloc:
            rule = "a recipe is stored and shared, and must not hold a user's name or password"
            allowed = "an address without them; MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise RulesError([Problem("tracking_uri", rule, "an address with '@'", allowed)])
        return self

    def begin(self, run: TrackedRun) -> Session:
        """Open a run. A server that does not answer fails within `timeout_s`, where MLflow would try for minutes."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, int(self.timeout_s / 8))))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        beside = run.folder.parent
        local = f"sqlite:///{beside / _DATABASE}"
        uri = self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
        client = MlflowClient(tracking_uri=uri)
        if run.identity is not None:
            client.update_run(run.identity, status="RUNNING")
            return _MlflowSession(client, run.identity, uri)
        found = client.get_experiment_by_name(self.experiment)
        artifacts = (beside / "mlflow_artifacts").as_uri() if uri == local else None
        experiment = (
            client.create_experiment(self.experiment, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        identity = str(client.create_run(experiment, run_name=run.name).info.run_id)
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in _flattened(run.recipe, "")]
        for first in range(0, len(params), _MOST_PARAMS):
            client.log_batch(identity, params=params[first : first + _MOST_PARAMS])
        return _MlflowSession(client, identity, uri)


class _MlflowSession:
    """Run of MLflow."""

    warning = None

    def __init__(self, client: MlflowClient, identity: str, uri: str) -> None:
        self._client, self.identity = client, identity
        self.place = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def log(self, values: Mapping[str, float], *, optimizer_steps: int, time: float) -> None:
        from mlflow.entities import Metric

        stamp = int(1000 * time)
        metrics = [Metric(name, value, stamp, optimizer_steps) for name, value in values.items()]
        self._client.log_batch(self.identity, metrics)

    def attach(self, file: Path, *, name: str) -> None:
        folder = name.rpartition("/")[0]
        self._client.log_artifact(self.identity, str(file), folder or None)

    def end(self, ending: Ending) -> None:
        self._client.set_terminated(self.identity, _STATUS[ending])


def _flattened(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings with dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
