"""A study on several machines: shares of its runs, and folders brought together."""

import json
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner
from written_runs import write_run

from vla_rl.cli.main import app
from vla_rl.errors import UserError
from vla_rl.files import ASIDE
from vla_rl.studies.jobs import run_study
from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld.grid import PRESETS, WHOLE, Grid, Share
from vla_rl.studies.metaworld.merging import merge_studies
from vla_rl.studies.metaworld.results import read_results
from vla_rl.studies.metaworld.runner import open_study, read_study, work_of

GRID = Grid(
    tasks=("door-open-v3", "push-v3"), surrogates=("gipo", "ppo"), regimes=("stale",), seeds=2, optimizer_steps=6000
)
BOTH = "door-open-v3_ppo_stale_seed0"  # a run that two machines made


def make_run(folder, run, *, grid=GRID, end=1.0, seconds=1.0):
    """Write a finished run that ended with a return."""
    records = [
        {"optimizer_steps": step, "env_steps": 10 * step, "decisions": 10 * step, "episodes": step,
         "policy_version": step, "seconds": seconds * step, "perf/env_steps_per_s": 100 / seconds,
         "rollout/return": end, "policy_lag/mean": 50.0, "policy_lag/p95": 95.0, "policy_lag/old_fraction": 0.9}
        for step in (50, 100)
    ]  # fmt: skip
    write_run(folder, run, grid=grid, records=records, manifest={"source": {}, "versions": {}}, seconds=seconds)


def write_folder(out, runs, *, grid=GRID, **how):
    """Write a study whose finished runs are these."""
    open_study(grid, out)
    for run in runs:
        make_run(out / "runs" / run.name, run, grid=grid, **how)
    return out


def names(out):
    return sorted(path.name for path in (out / "runs").iterdir())


@pytest.fixture(autouse=True)
def no_simulator(monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "random_return", lambda _: 0.0)


@pytest.fixture
def halves(tmp_path):
    """Folders of two machines, with every run in one of them."""
    return [
        write_folder(tmp_path / name, GRID.share_of(Share(number, 2)))
        for number, name in enumerate(("a", "b"), start=1)
    ]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 32])
def test_every_run_is_in_one_share_and_shares_are_alike(of):
    grid = replace(PRESETS["paper"], seeds=2)  # 16 comparisons of 9 surrogates in each regime
    shares = [grid.share_of(Share(number, of)) for number in range(1, of + 1)]
    assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in grid.runs())
    for regime in grid.regimes:
        sizes = [sum(run.regime == regime for run in share) for share in shares]
        assert max(sizes) - min(sizes) <= 9


@pytest.mark.parametrize("of", [2, 3, 5])
@pytest.mark.parametrize(
    "gain", [{"seeds": 5}, {"regimes": ("fresh", "stale")}, {"seeds": 6, "surrogates": ("gipo", "ppo", "sapo")}]
)
def test_what_a_study_gains_moves_no_run_to_another_share(gain, of):
    for regimes in [("stale",), ("stale", "fresh")]:
        before = replace(GRID, seeds=3, regimes=regimes)
        after = replace(before, **gain)
        for share in [Share(number, of) for number in range(1, of + 1)]:
            assert set(before.share_of(share)) <= set(after.share_of(share))


def test_runs_that_differ_in_their_surrogate_alone_are_made_by_one_machine():
    for share in (Share(1, 3), Share(2, 3), Share(3, 3)):
        places = {(run.task, run.regime, run.seed) for run in PRESETS["paper"].share_of(share)}
        assert len(PRESETS["paper"].share_of(share)) == 9 * len(places)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/2/3", "", "1/0"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(UserError, match="--share: found"):
        Share.parse(text)


def test_a_share_that_would_be_empty_is_refused_with_the_largest_number_of_shares():
    assert len(GRID.share_of(Share(4, 100))) == 2
    with pytest.raises(UserError, match=r"--share: 5/100 has no runs: .* at most 4 shares, 1/4 to 4/4"):
        GRID.share_of(Share(5, 100))


def test_a_share_is_written_as_a_fraction():
    assert Share.parse("2/4") == Share(2, 4)
    assert Share.parse("1/1") == WHOLE


def test_a_machine_makes_its_share_and_its_folder_knows_the_whole_study(tmp_path, stand_in):
    stand_in("")
    progress = run_study(work_of(GRID, tmp_path / "a", share=Share(2, 2)), at_once=1, say=lambda _: None)
    assert progress.total == 4
    assert names(tmp_path / "a") == sorted(run.name for run in GRID.share_of(Share(2, 2)))
    assert read_study(tmp_path / "a")[0] == GRID


def test_merged_folders_are_one_study_that_goes_on(halves, tmp_path):
    out = tmp_path / "all"
    merged = merge_studies(halves, out)
    assert (merged.copied, merged.kept, merged.planned) == (8, 0, 8)
    assert names(out) == sorted(run.name for run in GRID.runs())
    assert len(read_results(out)[0]) == 8
    assert run_study(work_of(GRID, out), at_once=1, say=lambda _: None).kept == 8


def test_an_interrupted_merge_is_finished_by_the_same_command(halves, tmp_path):
    out = tmp_path / "all"
    merge_studies(halves[:1], out)
    half_a_copy = out / "runs" / f"{ASIDE}{names(halves[1])[0]}"
    half_a_copy.mkdir()
    shutil.copy(halves[1] / "runs" / names(halves[1])[0] / "study_run.json", half_a_copy)
    assert len(read_results(out)[0]) == 4
    merged = merge_studies(halves, out)
    assert (merged.copied, merged.kept) == (4, 4)
    assert names(out) == sorted(run.name for run in GRID.runs())
    assert merge_studies(halves, out).copied == 0


def test_one_of_the_folders_may_be_the_one_that_gets_all(halves):
    first = (halves[0] / "runs" / names(halves[0])[0]).stat().st_mtime_ns
    merged = merge_studies(halves, halves[0])
    assert (merged.copied, merged.kept) == (4, 4)
    assert len(names(halves[0])) == 8
    assert (halves[0] / "runs" / names(halves[0])[0]).stat().st_mtime_ns == first


def test_a_study_has_the_tasks_surrogates_and_seeds_of_all_its_folders(tmp_path):
    ours = replace(GRID, tasks=("door-open-v3",), seeds=1)
    theirs = replace(GRID, tasks=("push-v3",), surrogates=("sapo", "gipo"), regimes=("fresh",), seeds=3)
    merge_studies(
        [write_folder(tmp_path / name, grid.runs(), grid=grid) for name, grid in (("a", ours), ("b", theirs))],
        tmp_path / "all",
    )
    grid, _ = read_study(tmp_path / "all")
    assert grid == replace(GRID, surrogates=("gipo", "ppo", "sapo"), regimes=("stale", "fresh"), seeds=3)


def test_two_results_for_one_run_are_refused_and_nothing_is_copied(halves, tmp_path):
    for half, end in zip(halves, (1.0, 2.0), strict=True):
        shutil.rmtree(half / "runs" / BOTH, ignore_errors=True)
        make_run(half / "runs" / BOTH, next(run for run in GRID.runs() if run.name == BOTH), end=end)
    with pytest.raises(UserError) as refused:
        merge_studies(halves, tmp_path / "all")
    told = f"{halves[0] / 'runs' / BOTH} and {halves[1] / 'runs' / BOTH} have different results"
    assert told in str(refused.value)
    assert list((tmp_path / "all").iterdir()) == []
    shutil.rmtree(halves[1] / "runs" / BOTH)
    assert merge_studies(halves, tmp_path / "all").copied == 8


def test_a_run_that_two_machines_made_alike_is_one_run_whatever_time_it_took(halves, tmp_path):
    for half, seconds in zip(halves, (3.0, 7.0), strict=True):
        shutil.rmtree(half / "runs" / BOTH, ignore_errors=True)
        make_run(half / "runs" / BOTH, next(run for run in GRID.runs() if run.name == BOTH), seconds=seconds)
    assert merge_studies(halves, tmp_path / "all").copied == 8
    assert json.loads((tmp_path / "all" / "runs" / BOTH / "study_run.json").read_text())["seconds"] == 3.0


def test_runs_that_have_not_finished_stay_where_they_are(halves, tmp_path):
    owner = next(half for half in halves if (half / "runs" / BOTH).exists())
    (owner / "runs" / BOTH).rename(owner / "runs" / f"{BOTH}.unfinished")
    merged = merge_studies(halves, tmp_path / "all")
    assert merged.unfinished == {owner: [BOTH]}
    assert merged.copied == 7
    assert BOTH not in {name.partition(".")[0] for name in names(tmp_path / "all")}
    assert (owner / "runs" / f"{BOTH}.unfinished" / "metrics.jsonl").exists()


def cut_off(metrics):
    metrics.write_bytes(metrics.read_bytes()[:-10])


@pytest.mark.parametrize("half_copied", [cut_off, lambda metrics: metrics.unlink()])
def test_half_a_copy_of_a_run_is_left_and_told_until_it_is_whole(halves, tmp_path, half_copied):
    name = names(halves[1])[0]
    whole = tmp_path / "whole"
    shutil.copytree(halves[1] / "runs" / name, whole)
    half_copied(halves[1] / "runs" / name / "metrics.jsonl")
    called = CliRunner().invoke(app, ["study", "merge", *map(str, halves), "--out", str(tmp_path / "all")])
    assert called.exit_code == 0, called.output
    assert f"left, not whole: {name}: " in called.output
    assert "7 runs copied" in called.output
    assert name not in names(tmp_path / "all")
    shutil.copytree(whole, halves[1] / "runs" / name, dirs_exist_ok=True)
    assert merge_studies(halves, tmp_path / "all").copied == 1


def test_half_a_copy_in_the_folder_that_gets_all_is_refused(halves):
    metrics = halves[0] / "runs" / names(halves[0])[0] / "metrics.jsonl"
    cut_off(metrics)
    with pytest.raises(UserError, match="move these folders elsewhere") as refused:
        merge_studies(halves, halves[0])
    assert str(metrics) in str(refused.value)
    assert len(names(halves[0])) == 4


def test_studies_with_another_budget_or_recipe_are_refused_together(halves, tmp_path):
    longer = write_folder(tmp_path / "c", [], grid=replace(GRID, optimizer_steps=7000))
    other = write_folder(tmp_path / "d", [])
    settings = json.loads((other / "study.json").read_text())
    base = settings["base"].replace("hidden_dim: 128", "hidden_dim: 64")
    (other / "study.json").write_text(json.dumps(settings | {"base": base}))
    with pytest.raises(UserError) as refused:
        merge_studies([halves[0], longer, other], tmp_path / "all")
    assert f"{halves[0]} has 6000 optimizer steps per run, {longer} 7000" in str(refused.value)
    assert f"{halves[0]} and {other} began with recipes that differ in policy.hidden_dim" in str(refused.value)
    assert list((tmp_path / "all").iterdir()) == []


def test_a_study_of_another_kind_is_refused(halves, tmp_path):
    other = tmp_path / "libero"
    other.mkdir()
    (other / "study.json").write_text('{"study": "libero", "plan": {}, "base": ""}')
    with pytest.raises(UserError, match=r"libero/study\.json: expected a study of metaworld, found one of libero"):
        merge_studies([halves[0], other], tmp_path / "all")
    with pytest.raises(UserError, match=r"nothing: expected the folder of a study of metaworld, found no study\.json"):
        merge_studies([halves[0], tmp_path / "nothing"], tmp_path / "all")


def test_returns_of_random_actions_that_a_machine_has_measured_are_kept(halves, tmp_path):
    for half, returns in zip(halves, ({"door-open-v3": 1.0}, {"door-open-v3": 2.0, "push-v3": 3.0}), strict=True):
        (half / "random_returns.json").write_text(json.dumps(returns))
    merge_studies(halves, tmp_path / "all")
    found = json.loads((tmp_path / "all" / "random_returns.json").read_text())
    assert found == {"door-open-v3": 1.0, "push-v3": 3.0}


def test_the_command_copies_reports_and_says_what_it_left(halves, tmp_path):
    shutil.move(halves[1] / "runs" / names(halves[1])[0], halves[1] / "runs" / f"{names(halves[1])[0]}.failed")
    called = CliRunner().invoke(app, ["study", "merge", *map(str, halves), "--out", str(tmp_path / "all")])
    assert called.exit_code == 0, called.output
    assert f"7 runs copied to {tmp_path / 'all'}, 0 were there; 7 of 8 are finished" in called.output
    assert f"left in {halves[1]}, not finished: " in called.output
    assert "PARTIAL: 1 of 8 runs are missing" in (tmp_path / "all" / "results" / "summary.md").read_text()


TINY = """
name: tiny
env: {name: metaworld, tasks: [door-open-v3], reward_scale: 0.01}
policy: {name: mlp, hidden_dim: 16, num_bins: 16}
surrogate: {name: gipo, sigma: 1.0}
regime: stale
replay: {capacity: 2001, min_decisions: 500, segment_length: 50}
learner: {micro_batch: 8}
rollout: {num_workers: 1, envs_per_worker: 1, max_batch: 1}
runtime: {mode: serial, threads_per_process: 1}
budget: {optimizer_steps: 120}
checkpoint: {every_optimizer_steps: 120, save_replay: true}
logging: {every_optimizer_steps: 20, recent_episodes: 2, tensorboard: false}
"""


@pytest.mark.slow
def test_two_machines_make_a_study_and_a_third_folder_has_it_all(tmp_path):
    pytest.importorskip("metaworld", reason="the extra metaworld is not installed")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY, encoding="utf-8")
    study = ["study", "metaworld", "--recipe", str(recipe), "--budget", "120", "--surrogates", "ppo"]
    study += ["--tasks", "door-open-v3,reach-v3", "--seeds", "1", "--jobs", "1"]
    for share, folder in (("1/2", "a"), ("2/2", "b")):
        called = CliRunner().invoke(app, [*study, "--out", str(tmp_path / folder), "--share", share])
        assert called.exit_code == 0, called.output
        assert len(names(tmp_path / folder)) == 1
    out = tmp_path / "all"
    called = CliRunner().invoke(app, ["study", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)])
    assert called.exit_code == 0, called.output
    summary = (out / "results" / "summary.md").read_text(encoding="utf-8")
    assert "2 of 2 runs: ppo on door-open-v3, reach-v3" in summary
    assert not list(out.glob("runs/*/checkpoints/*/rank_*/replay"))
    called = CliRunner().invoke(app, [*study, "--out", str(out)])
    assert "2 of them finished before" in called.output
