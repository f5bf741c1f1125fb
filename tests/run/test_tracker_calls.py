"""What trackers say and ask for, with stand-ins for their libraries."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vla_rl.tracking import TrackedRun
from vla_rl.tracking.mlflow import Mlflow
from vla_rl.tracking.wandb import Wandb


def run_in(folder: Path, recipe: dict[str, Any]) -> TrackedRun:
    folder.mkdir(parents=True)
    return TrackedRun(name="a-run", folder=folder, recipe=recipe, identity=None)


def test_the_command_of_wandb_takes_a_folder_with_spaces_and_both_sessions_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path / "my runs" / "it's", {})
    folders = [run.folder / "wandb" / f"offline-run-{day}-7" for day in (1, 2)]
    for folder in folders:
        folder.mkdir(parents=True)
    opened = SimpleNamespace(
        url=None, dir=str(folders[1] / "files"), id="7", define_metric=lambda *_args, **_options: None
    )
    wandb: Any = ModuleType("wandb")
    wandb.Error, wandb.Settings, wandb.init = RuntimeError, dict, lambda **_options: opened
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_SILENT", "")  # is set by the tracker, and set back after the test
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")
    place = Wandb(mode="offline").begin(run).place
    assert place.startswith("wandb sync ")
    shown = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {place.removeprefix('wandb sync ')}"], check=True, capture_output=True, text=True
    )
    assert shown.stdout.splitlines() == [str(folder) for folder in folders]


class FakeMlflow:
    """A client without a server: it notes what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.batches: list[dict[str, str]] = []
        tracking: Any = ModuleType("mlflow.tracking")
        tracking.MlflowClient = lambda tracking_uri: self
        entities: Any = ModuleType("mlflow.entities")
        entities.Param = lambda key, value: (key, value)
        for module in (ModuleType("mlflow"), tracking, entities):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for name in ("HTTP_REQUEST_TIMEOUT", "HTTP_REQUEST_MAX_RETRIES", "DISABLE_TELEMETRY"):
            monkeypatch.setenv(f"MLFLOW_{name}", "1")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def __getattr__(self, name: str) -> Any:
        def call(*_args: object, **_options: object) -> Any:
            self.calls.append(name)
            return SimpleNamespace(experiment_id="1", info=SimpleNamespace(run_id="2"))

        return call

    def log_batch(self, run_id: str, *, params: list[tuple[str, str]]) -> None:
        assert run_id == "2"
        self.calls.append("log_batch")
        self.batches.append(dict(params))


def test_the_command_of_mlflow_takes_a_folder_with_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMlflow(monkeypatch)
    place = Mlflow().begin(run_in(tmp_path / "my runs" / "one", {})).place
    assert shlex.split(place) == ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{tmp_path}/my runs/mlflow.db"]


def test_mlflow_gets_a_recipe_in_as_few_calls_as_it_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeMlflow(monkeypatch)
    recipe = {"seed": 3, "env": {f"field_{number}": number for number in range(249)}, "notes": {}, "name": "n" * 501}
    Mlflow().begin(run_in(tmp_path / "run", recipe))
    assert client.calls == ["get_experiment_by_name", "create_run", "log_batch", "log_batch", "log_batch"]
    assert [len(batch) for batch in client.batches] == [100, 100, 52]
    assert client.batches[0].items() >= {"seed": "3", "env.field_0": "0"}.items()
    assert client.batches[2].items() >= {"env.field_248": "248", "notes": "{}", "name": "n" * 500}.items()
