"""The whole LIBERO study in its smallest size: every stage is a command that works."""

import csv
import importlib.util

import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from vla_rl.cli.main import app


@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")
def test_the_smallest_study_goes_from_nothing_to_a_report(tmp_path):
    arguments = ["study", "libero", "--preset", "tiny", "--out", str(tmp_path), "--jobs", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    with (tmp_path / "results" / "gains.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"], row["actions"], row["pairs"]) for row in rows} == {
        (arm, actions, "2") for arm in ("gipo", "lr0") for actions in ("sampled", "greedy")
    }
    with (tmp_path / "results" / "controls.csv").open(encoding="utf-8") as file:
        controls = [(row["policy"], row["control"]) for row in csv.DictReader(file)]
    assert controls == [
        (policy, control) for policy in ("before", "gipo_fresh_seed0") for control in ("blind", "instruction")
    ]
    assert len(list((tmp_path / "results" / "videos").iterdir())) == 4
    again = CliRunner().invoke(app, arguments)
    assert "jobs, 13 of them finished before" in again.output
