"""Runs that are resumed: clocks, episodes, versions and experience go on where they were."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from toy_runs import TOY, metrics, run, toy_recipe

from vla_rl.envs.toy import ToyEnv
from vla_rl.evaluation.history import history_of_run
from vla_rl.ipc.mailbox import WeightMailbox
from vla_rl.learner.checkpoint import find_latest
from vla_rl.recipe import Recipe
from vla_rl.reporting.run_summary import manifest_warnings
from vla_rl.run.plan import make_training_plan
from vla_rl.run.rollout_stats import RolloutStats
from vla_rl.run.training import TrainingRun


@pytest.mark.parametrize("save_replay", [True, False])
def test_no_resume_lets_a_batch_run_ahead_of_collection(tmp_path, save_replay):
    """One update for each start: what is consumed before an update never exceeds twice what is collected by then."""
    recipes = [
        toy_recipe(budget={"optimizer_steps": steps}, checkpoint={"save_replay": save_replay}) for steps in range(1, 16)
    ]
    for number, recipe in enumerate(recipes):
        run(recipe, tmp_path / "run", resume=number > 0)
    points = metrics(tmp_path / "run")
    assert len(points) == 15
    consumed = [round(point["replay/ratio"] * point["decisions"]) for point in points]
    collected = [point["decisions"] - points[0]["decisions"] for point in points]
    assert all(before <= 2 * since for before, since in zip(consumed, collected[1:], strict=False))
    if save_replay:  # else every start warms up anew; here collection is never further ahead than in one long run
        batch, slots = 16, 2
        ahead = [since - before / 2 for before, since in zip(consumed, collected[1:], strict=False)]
        assert max(ahead) <= batch / 2 + slots


@pytest.mark.parametrize(
    ("account", "allowed"),
    [
        (
            '{"replay_ratio": 2.0, "collected": 10, "consumed": 32}',
            (32 / 2 - 10) + 16 / 2 + 2,
        ),  # owed, a batch, in flight
        (None, 16 / 2 + 2),  # versions before it wrote none
    ],
)
def test_accounts_of_earlier_versions_are_continued(tmp_path, account, allowed):
    recipe = toy_recipe(budget={"optimizer_steps": 3})
    run(recipe, tmp_path / "run")
    newest = find_latest(tmp_path / "run").newest
    assert newest is not None
    file = newest.path / "rank_0" / "governor" / "account.json"
    assert json.loads(file.read_text(encoding="utf-8")).keys() == {"replay_ratio", "collected", "consumed"}
    file.unlink()
    if account is not None:
        file.write_text(account, encoding="utf-8")
    plan = make_training_plan(recipe)
    with TrainingRun(plan, tmp_path / "run", resume_from=newest, rank=0, num_ranks=1) as resumed:
        resumed.start()
        assert resumed.memory.counters.get("allowed_decisions") == allowed


@pytest.mark.parametrize("publish_every", [4, 3, 1])
def test_no_two_weights_have_one_version_after_a_stop_between_publishes(tmp_path, monkeypatch, publish_every):
    """Six updates and a version every four: what a resumed run begins with was published under no version yet."""
    published, publish = {}, WeightMailbox.publish

    def remember(mailbox, version, tensors):
        weights = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        published.setdefault(version, set()).add(weights)
        publish(mailbox, version, tensors)

    monkeypatch.setattr(WeightMailbox, "publish", remember)
    run(toy_recipe(learner={"publish_every": 4}), tmp_path / "run")
    recipe = toy_recipe(learner={"publish_every": publish_every}, budget={"optimizer_steps": 9})
    run(recipe, tmp_path / "run", resume=True)
    assert [len(weights) for weights in published.values()] == [1] * len(published)
    assert list(published) == sorted(published)
    assert metrics(tmp_path / "run")[6]["policy_lag/max"] >= 1  # decisions of the first part are older than these


def test_running_moments_go_on_after_a_resume_and_log_points_tell_where_the_time_went(tmp_path):
    recipe = {"loss": {"advantage_moments": "running"}, "learner": {"micro_batch": 2, "accumulation": 2}}
    run(toy_recipe(**recipe, budget={"optimizer_steps": 3}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["perf/values_ms"] > 0 for line in lines] == [True, False, False]  # the first has no moments before it
    assert all(line["perf/loss_ms"] > 0 and line["perf/optimizer_ms"] > 0 for line in lines)
    assert lines[0]["ratio/lag0_abs_log_max"] < 1e-4
    run(toy_recipe(**recipe, budget={"optimizer_steps": 5}), tmp_path / "run", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["perf/values_ms"] > 0 for line in lines] == [True, False, False, False, False]


def test_resume_continues_the_clocks_and_keeps_the_experience(tmp_path):
    first, _ = run(toy_recipe(), tmp_path / "run")
    saved = json.loads((first.checkpoint / "state.json").read_text(encoding="utf-8"))["extra"]
    resumed, _ = run(toy_recipe(budget={"optimizer_steps": 9}), tmp_path / "run", resume=True)
    points = metrics(tmp_path / "run")
    assert [point["optimizer_steps"] for point in points] == list(range(1, 10))
    assert [point["policy_version"] for point in points] == list(range(1, 10))
    assert points[6]["decisions"] >= first.clocks.decisions
    assert points[6]["policy_lag/max"] > 0  # decisions of the first part are in the ring
    assert resumed.clocks.optimizer_steps == 9
    assert resumed.clocks.seconds > saved["seconds"] > 0


def test_success_after_a_resume_is_still_that_of_the_recent_episodes(tmp_path):
    """Otherwise one lucky episode after a resume would look like a success rate of 100 %."""
    logging = {"recent_episodes": 1000, "tensorboard": False}
    run(toy_recipe(logging=logging, checkpoint={"every_optimizer_steps": 4}), tmp_path / "run")
    run(toy_recipe(logging=logging, budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)
    before, after = metrics(tmp_path / "run")[-2:]
    new = after["episodes"] - before["episodes"]
    assert 0 < new < before["episodes"] / 2
    # The mean over all episodes of the run: the new ones change it by at most their share.
    successes = [point["rollout/success_rate"] * point["episodes"] for point in (before, after)]
    assert successes == pytest.approx([round(count) for count in successes], abs=1e-6)
    assert 0 <= round(successes[1] - successes[0]) <= new


def test_a_resumed_run_plays_episodes_that_were_not_played_before(tmp_path, monkeypatch):
    played = []
    monkeypatch.setattr(RolloutStats, "add", lambda _, record: played.append(record.job))
    run(toy_recipe(env={"tasks": [0, 1, 2]}), tmp_path / "run")
    first = list(played)
    run(toy_recipe(env={"tasks": [0, 1, 2]}, budget={"optimizer_steps": 12}), tmp_path / "run", resume=True)
    resumed = played[len(first) :]
    assert first
    assert resumed
    assert not set(first) & set(resumed)


@pytest.mark.parametrize("slots", [2, 4])
def test_a_slot_that_was_faster_than_others_repeats_nothing_after_a_resume_either(tmp_path, monkeypatch, slots):
    """Episodes of task 1, which every second slot plays, have one decision; those of task 0 up to four."""
    played, step = [], ToyEnv.step_chunk

    def step_and_end(env, actions):
        result = step(env, actions)
        return replace(result, truncated=not result.terminated) if env.task.task_id == 1 else result

    monkeypatch.setattr(ToyEnv, "step_chunk", step_and_end)
    monkeypatch.setattr(RolloutStats, "add", lambda _, record: played.append(record.job))
    run(toy_recipe(env={"tasks": [0, 1]}), tmp_path / "run")
    first, counts = list(played), Counter(job.task_index for job in played)
    assert counts[1] > 2 * counts[0]
    more = {"env": {"tasks": [0, 1]}, "rollout": {"envs_per_worker": slots}, "budget": {"optimizer_steps": 12}}
    run(toy_recipe(**more), tmp_path / "run", resume=True)
    run(toy_recipe(**more | {"budget": {"optimizer_steps": 18}}), tmp_path / "run", resume=True)
    assert len(played) > 2 * len(first)
    assert len(set(played)) == len(played)


def test_steps_before_a_resume_count_once_however_many_ranks_there_are(tmp_path):
    outcome, _ = run(toy_recipe(), tmp_path / "run")
    newest = find_latest(tmp_path / "run").newest
    with TrainingRun(
        make_training_plan(toy_recipe()), tmp_path / "run", resume_from=newest, rank=0, num_ranks=2
    ) as resumed:
        assert resumed.env_steps_of_all_ranks == outcome.clocks.env_steps
        resumed.memory.counters.add("env_worker_env_steps", 10)
        assert resumed.env_steps_of_all_ranks == outcome.clocks.env_steps + 20


def test_a_run_that_died_before_its_first_checkpoint_begins_anew_on_resume_and_keeps_its_log_points(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    first = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for number in (1, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        _, printed = run(toy_recipe(seed=number), tmp_path / "run", resume=True)
        assert f"metrics.before_restart_{number}.jsonl" in printed
        assert [point["optimizer_steps"] for point in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "metrics.before_restart_1.jsonl").read_bytes() == first


def test_resume_without_saved_replay_starts_with_an_empty_ring(tmp_path):
    recipe = toy_recipe(checkpoint={"save_replay": False})
    run(recipe, tmp_path / "run")
    run(toy_recipe(checkpoint={"save_replay": False}, budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run")[-1]["policy_lag/max"] == 0


def test_the_replay_ratio_counts_both_sides_from_the_first_start(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    before = metrics(tmp_path / "run")[-1]
    run(toy_recipe(budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)
    after = metrics(tmp_path / "run")[-1]
    consumed = before["replay/ratio"] * before["decisions"]
    assert after["replay/ratio"] * after["decisions"] > consumed


def test_a_run_goes_on_with_the_experience_of_the_tasks_that_it_still_has(tmp_path):
    """The prompt of a decision follows from its task's place in the list, so the saved replay must follow the list."""
    run(toy_recipe(env={"name": "toy", "tasks": [0, 1]}), tmp_path / "run")
    recipe = toy_recipe(env={"name": "toy", "tasks": [2, 1]}, budget={"optimizer_steps": 8})
    _, told = run(recipe, tmp_path / "run", resume=True)
    assert re.search(r"left out [1-9][\d,]* decisions of the saved replay: this run does not have their tasks", told)


def test_a_resumed_run_tells_what_trained_its_policy(tmp_path):
    folder, ppo = tmp_path / "run", Recipe.model_validate({**TOY, "surrogate": {"name": "ppo"}})
    more = Recipe.model_validate({**TOY, "surrogate": {"name": "ppo"}, "budget": {"optimizer_steps": 9}})
    run(toy_recipe(), folder)
    files = [folder / "recipe.yaml", folder / "manifest.json"]
    before = [file.read_bytes() for file in files]
    run(ppo, folder, resume=True)  # nothing is left to train
    assert [file.read_bytes() for file in files] == before
    run(more, folder, resume=True)
    found = {
        step: history_of_run(folder, folder / "checkpoints" / f"optimizer_step_{step}", stage="train")
        for step in (6, 9)
    }
    assert {step: history.recipe["surrogate"]["name"] for step, history in found.items()} == {6: "gipo", 9: "ppo"}
    assert found[6].changes == ()
    (change,) = found[9].changes
    assert change.startswith("From optimizer step 7 on: ")
    assert "surrogate.name ppo instead of gipo" in change
    assert change in manifest_warnings(json.loads((folder / "manifest.json").read_text()))
