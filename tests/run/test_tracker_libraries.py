"""The real libraries, offline: what they have taken, read with their own means."""

from __future__ import annotations

import json
import math
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vla_rl.reporting.metrics_file import Clocks
from vla_rl.run.couriers import Couriers
from vla_rl.tracking import Tracker
from vla_rl.tracking.mlflow import Mlflow
from vla_rl.tracking.trackio import Trackio
from vla_rl.tracking.wandb import Wandb


def needs(kind: type[Tracker]) -> pytest.MarkDecorator:
    reason = f"{kind.extra} is not installed: pip install 'vla-rl[{kind.extra}]'"
    return pytest.mark.skipif(not kind.is_installed(), reason=reason)


def session(name: str, tracker: Tracker, run_dir: Path, *steps: int, resume: bool = False) -> list[str]:
    """One session with points at these optimizer steps, a page, and a video; returns what was said."""
    said: list[str] = []
    page, video = run_dir / "report.html", run_dir / "eval" / "a" / "one.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("<p>the report</p>", encoding="utf-8")
    video.write_bytes(b"\0\0\0\x18ftypmp42")
    (run_dir / "recipe.yaml").write_text("seed: 3\n", encoding="utf-8")
    with Couriers({name: tracker}, run_dir, say=said.append) as couriers:
        couriers.start("a-run", {"seed": 3, "env": {"name": "toy"}}, resume=resume)
        for step in steps:
            couriers.write(
                Clocks(env_steps=10 * step, optimizer_steps=step), {"learner/kl": step / 2, "learner/loss": math.nan}
            )
        couriers.finish("finished", [run_dir / "recipe.yaml", page, video])
    return said


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # nobody's key, nobody's settings
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    (tmp_path / "home").mkdir()


# --- Weights & Biases ------------------------------------------------------------------------------------------------


def records(file: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file: a log of LevelDB, in blocks of 32 KiB, after 7 bytes of its own."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def history(folder: Path) -> list[dict]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    found = []
    for data in records(file):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return found


@needs(Wandb)
def test_wandb_keeps_both_sessions_of_a_run_under_one_id(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    said = session("wandb", Wandb(mode="offline"), run_dir, 1, 2, 3)
    said += session("wandb", Wandb(mode="offline"), run_dir, 3, 4, resume=True)  # step 3 again, after a crash
    identity = json.loads((run_dir / "trackers/wandb.json").read_text())["identity"]
    folders = sorted((run_dir / "wandb").glob(f"offline-run-*-{identity}"))
    assert said == [f"wandb: wandb sync {shlex.quote(f'{run_dir}/wandb')}/offline-run-*-{identity}"] * 2
    steps = [
        [point["clocks/optimizer_steps"] for point in history(folder) if "learner/kl" in point] for folder in folders
    ]
    assert sorted(steps) == [[1, 2, 3], [3, 4]]
    second = next(point for point in history(folders[0]) if point.get("learner/kl") == 1.0)
    assert (second["clocks/env_steps"], second["clocks/optimizer_steps"]) == (20, 2)
    assert list(folders[0].glob("files/media/html/report*.html"))
    assert list(folders[0].glob("files/media/videos/eval/a/one*.mp4"))
    assert (folders[0] / "files/recipe.yaml").read_text(encoding="utf-8") == "seed: 3\n"


@pytest.mark.slow
@needs(Wandb)
@pytest.mark.parametrize("key", [None, "k" * 40])
def test_wandb_without_a_key_or_a_network_writes_files_and_says_how_to_send_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    said = session("wandb", Wandb(mode="online", timeout_s=8.0), tmp_path / "run", 1, 2)
    assert len(said) == 2
    assert "warning: logging.wandb: not online (" in said[1]
    assert "written to files, to be sent with wandb sync" in said[1]
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert [point["learner/kl"] for point in history(folder) if "learner/kl" in point] == [0.5, 1.0]


# --- MLflow ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs(Mlflow)
def test_mlflow_goes_on_in_the_same_run_of_a_database_beside_it(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "run"
    said = session("mlflow", Mlflow(), run_dir, 1, 2, 3)
    said += session("mlflow", Mlflow(), run_dir, 3, 4, resume=True)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert said == [f"mlflow: mlflow ui --backend-store-uri {shlex.quote(uri)}"] * 2
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("vla-rl")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("a-run", "FINISHED")
    assert run.data.params == {"seed": "3", "env.name": "toy"}
    points = client.get_metric_history(run.info.run_id, "learner/kl")
    assert sorted((point.step, point.value) for point in points) == [(1, 0.5), (2, 1.0), (3, 1.5), (3, 1.5), (4, 2.0)]
    assert math.isnan(run.data.metrics["learner/loss"])
    assert run.data.metrics["clocks/env_steps"] == 40
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"recipe.yaml", "report.html", "eval"}
    assert [item.path for item in client.list_artifacts(run.info.run_id, "eval/a")] == ["eval/a/one.mp4"]


@needs(Mlflow)
def test_a_server_of_mlflow_that_is_not_there_is_one_warning(tmp_path: Path) -> None:
    (warning,) = session("mlflow", Mlflow(tracking_uri="http://127.0.0.1:9"), tmp_path / "run", 1)
    assert warning.startswith("warning: logging.mlflow: MlflowException: ")
    assert "nothing more is sent" in warning


# --- Trackio ---------------------------------------------------------------------------------------------------------


@needs(Trackio)
def test_trackio_goes_on_in_the_same_run_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    run_dir = tmp_path / "run"
    said = session("trackio", Trackio(project="arms"), run_dir, 1, 2, 3)
    said += session("trackio", Trackio(project="arms"), run_dir, 3, 4, resume=True)
    assert said == ["trackio: trackio show --project arms"] * 2
    with sqlite3.connect(tmp_path / "trackio" / "arms.db") as database:
        rows = database.execute("select run_name, run_id, step, metrics from metrics order by id").fetchall()
    assert len({(name, run_id) for name, run_id, _, _ in rows}) == 1
    assert rows[0][0].startswith("a-run-")
    taken = [(step, values) for _, _, step, text in rows for values in [json.loads(text)]]
    kl = [(step, values["learner/kl"]) for step, values in taken if "learner/kl" in values]
    assert kl == [(1, 0.5), (2, 1.0), (3, 1.5), (3, 1.5), (4, 2.0)]
    assert {"report.html", "eval/a/one.mp4", "ended"} <= {name for _, values in taken for name in values}
