"""The GridWorld study against the paper's settings: golden numbers, and what its text says of them."""

import csv
import json
from itertools import pairwise
from typing import Literal

import pytest
import torch
from typer.testing import CliRunner

from vla_rl.cli.study import app
from vla_rl.rl.surrogates import KINDS, Surrogate
from vla_rl.studies.gridworld import enumeration as gridworld

GOLDEN = {  # bias, variance
    ("no_clip", None): {"A": (0, 0.016488073058), "B": (0, 0.015799057891), "C": (0, 0.015911759216)},
    ("ppo", None): {"A": (0.086305815592, 0), "B": (0.086305815592, 0), "C": (0.063094606874, 0.012340165532)},
    ("sapo", None): {
        "A": (0.012960907467, 0.014260615922),
        "B": (0.007235203055, 0.014605775721),
        "C": (0.005269017263, 0.014968359795),
    },
    ("gipo", 1.0): {
        "A": (0.012652145898, 0.013823419113),
        "B": (0.005884351577, 0.014593897387),
        "C": (0.003960484501, 0.015058814059),
    },
}
GIPO = [("gipo", sigma) for sigma in (0.1, 0.3, 0.5, 1.0, 2.0)]
METHODS = [*((name, None) for name in KINDS if name != "gipo"), *GIPO]


@pytest.fixture(scope="module")
def records():
    return {(r.case, r.method, r.sigma): r for r in gridworld.study()}


def gipo_path(records, case):
    """From the estimator that is closest to zero to the unbiased one."""
    return [records[case, "gipo", sigma] for sigma in gridworld.SIGMAS] + [records[case, "no_clip", None]]


@pytest.mark.parametrize("case", ["A", "B", "C"])
@pytest.mark.parametrize("method", GOLDEN)
def test_golden_bias_and_variance(records, method, case):
    record = records[case, *method]
    assert (record.bias, record.variance) == pytest.approx(GOLDEN[method][case], abs=1e-9)


def test_every_method_stands_in_every_case(records):
    assert set(records) == {(case, *method) for case in "ABC" for method in METHODS}


def test_the_decision_process_is_the_papers():
    up, down, left, right = gridworld.start_advantages().tolist()
    assert (up, down) == pytest.approx((-0.6418186916, 0.2361119016), abs=1e-10)
    assert (left, right) == pytest.approx((up, down), abs=1e-14)
    assert gridworld.true_gradient(gridworld.start_advantages()).item() == pytest.approx(0.086305815592, abs=1e-12)


@pytest.mark.parametrize(
    ("case", "behavior", "ratios"),
    [
        ("A", (0.25, 0.25), (0.5378828427, 1.4621171573)),
        ("B", (0.2049266, 0.2950734), (0.6561896, 1.2387742)),
        ("C", (0.1899022, 0.3100978), (0.7081052, 1.1787547)),
    ],
)
def test_behaviour_policies_mix_probabilities(case, behavior, ratios):
    mu = gridworld.behavior_probs(case)
    assert mu[[0, 3]].tolist() == pytest.approx(behavior, abs=1e-7)
    assert (gridworld.target_probs() / mu)[[0, 3]].tolist() == pytest.approx(ratios, abs=1e-7)


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_a_wider_gaussian_trades_bias_for_variance(records, case):
    path = gipo_path(records, case)
    assert all(narrow.bias > wide.bias for narrow, wide in pairwise(path))
    assert all(narrow.variance < wide.variance for narrow, wide in pairwise(path))


@pytest.mark.parametrize("method", [("sapo", None), *GIPO])
def test_the_bias_of_soft_surrogates_falls_as_behaviour_comes_closer(records, method):
    assert records["A", *method].bias > records["B", *method].bias > records["C", *method].bias


@pytest.mark.parametrize(
    ("case", "method", "dominated"),
    [("A", "sapo", True), ("B", "sapo", True), ("C", "sapo", False), ("C", "ppo", True)],
)
def test_which_methods_a_gipo_point_dominates(records, case, method, dominated):
    other = records[case, method, None]
    points = gipo_path(records, case)[:-1]
    assert any(p.bias < other.bias and p.variance < other.variance for p in points) is dominated
    papers = {"no_clip", "ppo", "sapo", "gipo"}
    of_case = [r for r in records.values() if r.case == case and r.method in papers]
    assert (other in gridworld.pareto_front(of_case)) is not dominated


class Band(Surrogate):
    """Samples whose ratio left a band are dropped."""

    name: Literal["band"]
    width: float = 0.5

    def objective(self, log_ratio, advantages):
        return torch.where(log_ratio.detach().abs() <= self.width, log_ratio.exp() * advantages, 0.0)

    def log_weight(self, log_ratio, advantages):
        return torch.where(log_ratio.abs() <= self.width, log_ratio, -torch.inf)


def test_a_new_surrogate_is_compared_without_a_change_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "band", Band)
    result = CliRunner().invoke(app, ["gridworld", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = {
        row["case"]: row for row in json.loads((tmp_path / "gridworld.json").read_text()) if row["method"] == "band"
    }
    # In case C every ratio is within e^±0.5; in case A the actions up and left, with log 0.538 = -0.62, are dropped.
    assert rows["C"]["bias"] == pytest.approx(0, abs=1e-12)
    assert rows["C"]["variance"] == pytest.approx(GOLDEN["no_clip", None]["C"][1], abs=1e-9)
    assert rows["A"]["bias"] > 0.01
    for figure in ("gridworld", "weights"):
        assert "<!-- band -->" in (tmp_path / f"{figure}.svg").read_text()  # in its legend


def test_the_command_writes_every_file_and_prints_the_table(tmp_path, records):
    out = tmp_path / "new" / "folder"
    result = CliRunner().invoke(app, ["gridworld", "--out", str(out)])
    assert result.exit_code == 0, result.output
    names = ["csv", "json", "md", "png", "svg"]
    assert {path.name for path in out.iterdir()} == {f"gridworld.{n}" for n in names} | {"weights.png", "weights.svg"}
    written = json.loads((out / "gridworld.json").read_text())
    assert [tuple(row) for row in written] == [("case", "method", "sigma", "bias", "variance")] * 3 * len(METHODS)
    assert {(row["case"], row["method"], row["sigma"]): row["bias"] for row in written} == {
        k: r.bias for k, r in records.items()
    }
    with (out / "gridworld.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["variance"]) for row in rows] == [row["variance"] for row in written]
    assert {row["sigma"] for row in rows} == {"", "0.1", "0.3", "0.5", "1.0", "2.0"}
    assert "0.012652146" in result.output
    assert "gipo σ=1 " in (out / "gridworld.md").read_text()
    assert (out / "weights.png").read_bytes().startswith(b"\x89PNG")
