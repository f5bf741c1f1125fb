"""`vla-rl runs`: a table for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.reporting.run_state import RunLife
from vla_rl.reporting.text import age


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["runs", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """One run that was interrupted and one that is broken."""
    for name in ("good", "bad"):
        with MetricsWriter(tmp_path / name, tensorboard=False, resume_at=None) as writer:
            writer.write(Clocks(optimizer_steps=1200, env_steps=34_567, seconds=61.0), {"rollout/success_rate": 0.25})
    (tmp_path / "good" / "manifest.json").write_text(json.dumps({"recipe": {"budget": {"optimizer_steps": 2000}}}))
    (tmp_path / "bad" / "manifest.json").write_text("{")
    with RunLife(tmp_path / "good") as life:
        life.begin()
        life.interrupted = True
    return tmp_path


def test_the_table_has_a_row_for_each_run_and_the_reason_of_a_broken_one(runs: Path) -> None:
    lines = shown(str(runs)).splitlines()
    assert lines[0].split()[:3] == ["run", "state", "success"]
    (good,) = [line for line in lines if line.startswith("good")]
    assert " ".join(good.split()).startswith("good interrupted 25 % - 1,200 of 2,000 34,567 0:01:01 - ")
    (bad,) = [number for number, line in enumerate(lines) if line.startswith("bad")]
    assert "broken" in lines[bad]
    assert str(runs / "bad" / "manifest.json") in lines[bad + 1]


def test_the_json_has_an_object_for_each_run(runs: Path) -> None:
    rows = {Path(row["path"]).name: row for row in json.loads(shown(str(runs), "--json"))}
    assert rows["bad"]["state"] == "broken"
    good = rows["good"]
    assert good["age_seconds"] >= 0
    assert (good["state"], good["optimizer_steps"], good["budget_optimizer_steps"]) == ("interrupted", 1200, 2000)
    assert (good["success_rate"], good["mean_return"], good["env_steps"]) == (0.25, None, 34_567)


def test_a_name_cannot_write_to_the_terminal_and_any_bytes_are_json(tmp_path: Path) -> None:
    name = "a\x1b[31m\udcff\n"
    (tmp_path / name).mkdir()
    (tmp_path / name / "recipe.yaml").touch()
    assert r"a\x1b[31m\udcff\n" in shown(str(tmp_path))
    assert "\x1b" not in shown(str(tmp_path))
    assert json.loads(shown(str(tmp_path), "--json"))[0]["path"].endswith(name)


def test_a_folder_without_runs_is_told_and_one_that_is_missing_is_the_user_s_mistake(tmp_path: Path) -> None:
    assert shown(str(tmp_path)) == f"no runs in {tmp_path}\n"
    assert shown(str(tmp_path), "--json") == "[]\n"
    result = CliRunner().invoke(app, ["runs", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert f"{tmp_path / 'none'}: expected a folder of runs, found no such folder" in result.output


@pytest.mark.parametrize(
    ("seconds", "words"), [(-3, "0 s ago"), (59.9, "59 s ago"), (60, "1 min ago"), (7199, "1 h ago"), (2e5, "2 d ago")]
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert age(seconds) == words
