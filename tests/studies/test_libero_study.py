"""The whole LIBERO study in its smallest size: every stage is a command that works."""

import csv
import importlib.util

import pytest

pytest.importorskip("matplotlib")

from vla_rl.recipe import find_recipe
from vla_rl.studies.jobs import run_study
from vla_rl.studies.libero.outputs import write_study
from vla_rl.studies.libero.plan import Plan
from vla_rl.studies.libero.runner import work_of

# Episodes of five decisions, updates of ten.
SMALLER = {
    "horizon: 160": "horizon: 40",
    "capacity: 1200": "capacity: 120",
    "min_decisions: 480": "min_decisions: 10",
    "segment_length: 20": "segment_length: 5",
    "micro_batch: 8": "micro_batch: 2",
    "accumulation: 4": "accumulation: 1",
}


@pytest.mark.libero
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")
def test_the_smallest_study_goes_from_nothing_to_a_report(tmp_path):
    text = find_recipe("libero_tiny_gipo").read_text(encoding="utf-8")
    for long, short in SMALLER.items():
        assert long in text
        text = text.replace(long, short)
    (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
    out = tmp_path / "study"
    plan = Plan(
        tasks=(0, 1), demonstrations=1, sft_steps=(24,), choice_states=1, arms=("gipo",), regimes=("fresh",), seeds=1,
        optimizer_steps=1, states=1, recipe=str(tmp_path / "small.yaml"),
    )  # fmt: skip
    progress = run_study(work_of(plan, out), at_once=2, say=print)
    assert not progress.failed
    write_study(out)
    with (out / "results" / "gains.csv").open(encoding="utf-8") as file:
        rows = [(row["arm"], row["actions"], row["pairs"]) for row in csv.DictReader(file)]
    assert rows == [("gipo", "sampled", "2"), ("gipo", "greedy", "2")]
    with (out / "results" / "controls.csv").open(encoding="utf-8") as file:
        controls = [(row["policy"], row["control"]) for row in csv.DictReader(file)]
    assert controls == [
        (policy, control) for policy in ("before", "gipo_fresh_seed0") for control in ("blind", "instruction")
    ]
    assert run_study(work_of(plan, out), at_once=2, say=print).kept == progress.total
