"""Whole evaluations of a toy policy, in one process: which episodes are played, and what is written."""

import csv
import json
import os
import shutil
from dataclasses import replace

import pytest

from vla_rl.envs.libero.protocol import Protocol
from vla_rl.envs.toy import ToySection
from vla_rl.errors import UserError
from vla_rl.evaluation.episode_log import EPISODES_FILE, read_episodes
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.suite_plans import make_suite_plans
from vla_rl.ipc import memory_check
from vla_rl.learner.checkpoint import CheckpointError, held_policy
from vla_rl.run.folder_lock import claim_folder


def evaluated(policy, *, progress=None, **choices):
    return evaluate(policy, EvalOptions(**choices), progress=progress)


class PulledPlugError(Exception):
    """Ends an evaluation in the middle."""


def stop_after(episodes):
    def progress(done, _total, _successes):
        if done >= episodes:
            raise PulledPlugError

    return progress


def outcomes(folder):
    return {
        (it.task_id, it.init_state, it.seed): (it.success, it.env_steps, it.episode_return)
        for it in read_episodes(folder / EPISODES_FILE)
    }


def test_exactly_the_asked_episodes_are_played(trained, tmp_path):
    report = evaluated(trained, episodes_per_task=3, seeds=(0, 5), out=tmp_path)
    played = [(it.task_id, it.seed, it.init_state) for it in read_episodes(tmp_path / EPISODES_FILE)]
    assert sorted(played) == [(task, seed, state) for task in (0, 1) for seed in (0, 5) for state in range(3)]
    (suite,) = report.summary.suites
    assert (suite.episodes, suite.tasks, suite.seeds) == (12, 2, 2)


def test_the_same_evaluation_gives_the_same_episodes_whatever_the_number_of_slots(trained, tmp_path):
    for name, workers in (("one", 1), ("again", 1), ("three", 3)):
        evaluated(trained, episodes_per_task=4, workers=workers, out=tmp_path / name)
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "again")
    assert outcomes(tmp_path / "one").keys() == outcomes(tmp_path / "three").keys()


def test_a_serial_evaluation_repeats_bit_by_bit(trained, tmp_path):
    for name in ("one", "other"):
        evaluated(trained, episodes_per_task=4, serial=True, out=tmp_path / name)
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "other")


def test_another_seed_plays_other_episodes(trained, tmp_path):
    for seed in (0, 1):
        evaluated(trained, tasks=(0,), episodes_per_task=4, seeds=(seed,), out=tmp_path / str(seed))
    returns = [[it.episode_return for it in read_episodes(tmp_path / name / EPISODES_FILE)] for name in ("0", "1")]
    assert sorted(returns[0]) != sorted(returns[1])


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_result(trained, tmp_path):
    evaluated(trained, episodes_per_task=5, out=tmp_path / "whole")
    with pytest.raises(PulledPlugError):
        evaluated(trained, episodes_per_task=5, out=tmp_path / "halves", progress=stop_after(4))
    before = (tmp_path / "halves" / EPISODES_FILE).read_bytes()
    assert before.count(b"\n") >= 4
    told = []
    evaluated(trained, episodes_per_task=5, out=tmp_path / "halves", progress=lambda *counts: told.append(counts))
    assert (tmp_path / "halves" / EPISODES_FILE).read_bytes().startswith(before)
    assert told[0][:2] == (before.count(b"\n"), 10)
    assert told[-1][:2] == (10, 10)
    assert outcomes(tmp_path / "halves") == outcomes(tmp_path / "whole")


def test_sampled_actions_depend_on_neither_an_interruption_nor_the_number_of_workers(trained, tmp_path):
    """Nor on the order of the episodes: a part of them is played first."""
    sampled = {"temperature": 1.0, "seeds": (0, 3), "episodes_per_task": 5}
    evaluated(trained, **sampled, serial=True, out=tmp_path / "whole")
    with pytest.raises(PulledPlugError):
        evaluated(trained, **sampled, serial=True, out=tmp_path / "halves", progress=stop_after(7))
    evaluated(trained, **sampled, serial=True, out=tmp_path / "halves")
    evaluated(trained, **{**sampled, "episodes_per_task": 1}, workers=1, out=tmp_path / "parts")
    evaluated(trained, **sampled, workers=3, out=tmp_path / "parts")
    whole = outcomes(tmp_path / "whole")
    assert len(whole) == 20
    assert outcomes(tmp_path / "halves") == outcomes(tmp_path / "parts") == whole


def test_every_episode_draws_random_numbers_of_its_own(trained):
    source, options = find_policy(str(trained), profile="auto"), EvalOptions(episodes_per_task=4, seeds=(0, 5))
    (suite,) = make_suite_plans(source, options)
    assert len({job.sampling_seed for job in suite.jobs}) == len(suite.jobs) == 16


def test_a_finished_evaluation_is_not_played_again_and_a_longer_one_only_the_rest(trained, tmp_path):
    evaluated(trained, episodes_per_task=2, out=tmp_path)
    first = (tmp_path / EPISODES_FILE).read_bytes()
    evaluated(trained, episodes_per_task=2, out=tmp_path)
    assert (tmp_path / EPISODES_FILE).read_bytes() == first
    longer = evaluated(trained, episodes_per_task=3, out=tmp_path)
    assert (tmp_path / EPISODES_FILE).read_bytes().startswith(first)
    assert longer.summary.suites[0].episodes == 6


def test_results_are_never_replaced_by_those_of_fewer_or_other_episodes(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    four = evaluated(run, tasks=(0,), episodes_per_task=4).folder
    kept = (four / "results.json").read_bytes()
    two, other = evaluated(run, tasks=(0,), episodes_per_task=2), evaluated(run, tasks=(1,), episodes_per_task=4)
    assert [it.folder.name for it in (two, other)] == ["optimizer_step_30_toy_task0_2", "optimizer_step_30_toy_task1"]
    assert (four / "results.json").read_bytes() == kept
    with pytest.raises(UserError, match="holds 2 episodes besides the asked ones, toy task 0 sampled init state 2 "):
        evaluated(run, tasks=(0,), episodes_per_task=2, out=four)
    five = evaluated(run, tasks=(0,), episodes_per_task=5)
    assert five.folder == four
    assert [task["episodes"] for task in json.loads((four / "results.json").read_text())["tasks"]] == [5]


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_that_its_run_removes_meanwhile_is_played_to_the_end(trained, tmp_path, monkeypatch, links):
    expected = evaluated(trained, episodes_per_task=1, out=tmp_path / "expected")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another file system")))

    def remove(_done, _total, _successes):
        shutil.rmtree(run / "checkpoints", ignore_errors=True)

    report = evaluated(run, episodes_per_task=1, out=tmp_path / "out", progress=remove)
    assert not (run / "checkpoints").exists()
    assert outcomes(report.folder) == outcomes(expected.folder)
    assert not [path for path in report.folder.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_that_is_removed_before_is_told_with_the_way_on(trained, tmp_path):
    checkpoint = tmp_path / "checkpoints" / "optimizer_step_30"
    with (
        pytest.raises(CheckpointError, match=r"optimizer_step_30 was removed meanwhile, .* give the run instead, "),
        held_policy(checkpoint, within=tmp_path),
    ):
        pass


@pytest.mark.parametrize("other", [{"seeds": (1,)}, {"temperature": 1.0}, {"horizon": 4}])
def test_two_evaluations_are_never_mixed(trained, tmp_path, other):
    evaluated(trained, episodes_per_task=1, out=tmp_path)
    with pytest.raises(UserError, match=rf"holds another evaluation.*{next(iter(other))}"):
        evaluated(trained, episodes_per_task=1, out=tmp_path, **other)


def test_an_evaluation_that_is_refused_leaves_the_running_one_s_files_alone(trained, tmp_path):
    evaluated(trained, episodes_per_task=1, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with claim_folder(tmp_path, option="--out"), pytest.raises(UserError, match="another process is writing to"):
        evaluated(trained, episodes_per_task=2, out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_keeps_its_manifest(trained):
    before = (trained / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="is the folder of a run"):
        evaluated(trained, episodes_per_task=1, out=trained)
    assert (trained / "manifest.json").read_bytes() == before
    assert not (trained / "evaluation.json").exists()


def test_what_an_evaluation_writes_says_under_which_conditions_it_was_made(trained, tmp_path):
    evaluated(trained / "checkpoints" / "optimizer_step_30", tasks=(1,), episodes_per_task=2, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["evaluation"]["trained_on"] == "toy (tasks: 0,1), sampled initial states"
    assert results["evaluation"]["seeds"] == [0]
    assert results["controls"] == []
    assert [task["language"] for task in results["tasks"]] == ["move the point into the disc"]
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["task_id"] for row in rows] == ["1", "all"]
    assert {(row["init_states"], row["trained_on"]) for row in rows} == {
        ("sampled", "toy (tasks: 0,1), sampled initial states")
    }
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["assets"]["checkpoint"].endswith("optimizer_step_30")
    assert manifest["extra"]["episodes_per_task"] == 2
    assert set(manifest["recipe"]) == {"seed", "env", "policy", "rollout", "runtime", "precision"}  # nothing is learned


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, []),  # every seed draws its own states
        (3, ["the policy was trained on the sampled initial states of toy", "2 seeds play the same initial states"]),
    ],
)
def test_states_that_are_the_same_in_training_and_with_every_seed_are_told(
    trained, tmp_path, monkeypatch, count, words
):
    plan = ToySection.plan
    monkeypatch.setattr(
        ToySection, "plan", lambda self, **size: replace(plan(self, **size), num_init_states=(count,) * 2)
    )
    notes = evaluated(trained, episodes_per_task=3, seeds=(0, 1), out=tmp_path).summary.notes
    found = [note for note in notes if "trained on" in note or "the same initial states," in note]
    assert [part in note for part, note in zip(words, found, strict=True)] == [True] * len(words)


def test_results_lie_in_the_run_under_a_name_that_says_what_is_special(trained):
    plain = evaluated(trained, tasks=(0,), episodes_per_task=1)
    other = evaluated(trained, tasks=(0,), episodes_per_task=1, seeds=(3, 4), horizon=2)
    assert plain.folder == trained / "eval" / "optimizer_step_30_toy_task0"
    assert other.folder == trained / "eval" / "optimizer_step_30_toy_task0_horizon2_seed3-4"


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"suites": ("libero_goal",)}, "--suite: the policy was trained on toy, found libero_goal"),
        ({"init_states": "standard"}, "--init-states: toy samples"),
        ({"protocol": Protocol("long")}, "--protocol: a protocol is LIBERO's"),
        ({"assets": "proxy"}, "--assets: toy has none"),
        ({"controls": ("blind",)}, "--control blind: the policy sees no frames"),
        ({"controls": ("instruction",)}, "--control instruction: the policy reads no instruction"),
        ({"video": "all"}, "--video: the environment 'toy' has no cameras"),
        ({"seeds": (1, 1)}, "--seed: .* every seed stands once"),
        ({"temperature": 0.0}, "--temperature"),
        ({"serial": True, "workers": 3}, "--workers: found 3, but --serial has one"),
        ({"profile": "rlinf"}, "--profile: .* belongs to a run, whose recipe says it"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(trained, tmp_path, choices, complaint):
    with pytest.raises(UserError, match=complaint):
        evaluated(trained, out=tmp_path / "out", **choices)
    assert not (tmp_path / "out").exists()


def test_too_little_shared_memory_is_told_in_the_options_of_an_evaluation(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda: 16)
    with pytest.raises(UserError, match=r"only 16 B of memory.*Free memory.*or lower --workers\.$"):
        evaluated(trained, episodes_per_task=1, workers=3, out=tmp_path)


def test_a_greedy_policy_fails_or_succeeds_by_its_weights_alone_and_a_sampled_one_says_so(trained, tmp_path):
    greedy = evaluated(trained, tasks=(0,), episodes_per_task=6, out=tmp_path / "greedy")
    sampled = evaluated(trained, tasks=(0,), episodes_per_task=6, temperature=50.0, out=tmp_path / "sampled")
    assert greedy.summary.tasks != sampled.summary.tasks
    assert outcomes(tmp_path / "greedy") != outcomes(tmp_path / "sampled")
