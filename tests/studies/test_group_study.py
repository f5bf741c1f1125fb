"""The study of groups: its plan, and numbers worked out by hand from made-up runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.errors import UserError
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.recipe import RecipeError, find_recipe, load_recipe
from vla_rl.studies.grouped.outputs import write_study
from vla_rl.studies.grouped.plan import METHODS, PRESET, STARTS, GroupPlan, GroupRun, Start, own_start, starts_named
from vla_rl.studies.grouped.results import GroupResult, comparisons, mixed_share, read_gains, says_something, summaries
from vla_rl.studies.grouped.runner import RUN_FILE, jobs_of, open_study, read_study
from vla_rl.studies.grouped.words import GroupStudy, cautions, parts
from vla_rl.workers.episodes import SAMPLED_STATES

SMALL = replace(PRESET, starts=starts_named(["0.1"]), seeds=1)
START = Start("easy", 0.5, target=0.8, env_steps=400, window=20)
PLAN = replace(PRESET, methods=("ppo", "grpo"), starts=(START,), seeds=2)


def result(method: str, seed: int, success: list[float], **others: float) -> GroupResult:
    """A run that logs after 10, 20, 30 ... episodes of 4 env steps; its budget is 100 episodes."""
    records = [
        {
            "episodes": 10 * (place + 1),
            "env_steps": 40 * (place + 1),
            "optimizer_steps": place + 1,
            "rollout/success_rate": rate,
            **others,
        }
        for place, rate in enumerate(success)
    ]
    return GroupResult(GroupRun("easy", method, seed), START, records, budget=100, seconds=1.0, ended_early="")


RUNS = [
    result("ppo", 0, [0.9, 0.5, 0.8, 0.7]),  # 0.9 is of half a window
    result("ppo", 1, [0.5, 0.6, 0.6, 0.9]),
    result("grpo", 0, [0.5, 0.6, 0.6, 0.7], **{"groups/all_success": 0.25, "groups/all_fail": 0.5}),
    result("grpo", 1, [0.5, 0.5, 0.6, 0.7, 0.8], **{"groups/episodes_per_useful": 16.0}),
]


def test_the_untrained_policy_succeeds_as_often_as_a_start_says():
    for start in STARTS.values():
        recipe = replace(SMALL, starts=(start,)).recipe_of(GroupRun(start.name, "ppo", 0))
        assert recipe.env.open**recipe.env.gates == pytest.approx(start.success, abs=1e-5)
        assert recipe.budget.env_steps == start.env_steps
        assert start.target > start.success


def test_every_run_has_a_name_and_a_recipe_of_its_own():
    runs = PRESET.runs()
    assert len(runs) == len({run.name for run in runs}) == 5 * 3 * 5
    recipe = PRESET.recipe_of(runs[-1])
    assert (recipe.name, recipe.seed) == (runs[-1].name, runs[-1].seed)


def test_methods_are_what_their_titles_say():
    recipes = {method: SMALL.recipe_of(GroupRun("0.1", method, 0)) for method in METHODS}
    for name, method in METHODS.items():
        recipe = recipes[name]
        assert recipe.targets.needs_values == method.has_critic == (recipe.policy.value_head == "mlp")
        assert recipe.surrogate.name == ("gipo" if method.over_replay else "ppo")
        assert recipe.replay.replay_ratio == (8.0 if method.over_replay else 1.0)
        assert recipe.optimizer == recipes["ppo"].optimizer
        assert recipe.learner == recipes["ppo"].learner
    assert recipes["grpo"].targets.keep is None
    assert recipes["grpo"].targets.uses == 1
    assert recipes["grpo_dynamic"].targets.keep == [0.1, 0.9]
    assert recipes["gipo_groups"].targets.uses is None
    assert [recipes[name].replay.max_policy_lag for name in ("ppo", "gipo", "gipo_groups")] == [1, 128, 128]


def test_a_recipe_that_names_its_critic_loses_it_where_groups_take_its_place(tmp_path):
    own = tmp_path / "own.yaml"
    text = find_recipe("gates").read_text(encoding="utf-8")
    own.write_text(text.replace("  num_bins: 256", "  num_bins: 256\n  value_head: mlp"), encoding="utf-8")
    plan = replace(SMALL, recipe=str(own))
    heads = [plan.recipe_of(GroupRun("0.1", method, 0)).policy.value_head for method in ("ppo", "grpo")]
    assert heads == ["mlp", "none"]


def test_a_recipe_with_a_regime_and_evaluations_of_its_own_has_those_of_the_study(tmp_path):
    own = tmp_path / "own.yaml"
    text = "base: gates\nname: own\nbudget: {stop_at_success: 0.9}\ncheckpoint: {keep_best: true}\n"
    own.write_text(
        text + "evaluation: {every_optimizer_steps: 10}\nregime: fresh\nreplay: {replay_ratio: 0.1336}\n", "utf-8"
    )
    plan = replace(SMALL, recipe=str(own))
    for method, ratio in {"ppo": 1.0, "gipo": 8.0, "gipo_groups": 8.0}.items():
        recipe = plan.recipe_of(GroupRun("0.1", method, 0))
        assert recipe.replay.replay_ratio == ratio
        assert recipe.evaluation.every_optimizer_steps is None
        assert recipe.budget.stop_at_success is None


def test_a_run_ends_by_its_env_steps_whatever_its_replay_ratio_is():
    for method in METHODS:
        budget = SMALL.recipe_of(GroupRun("0.1", method, 0)).budget
        assert budget.optimizer_steps > 8 * budget.env_steps
        assert budget.minutes is None


def test_the_share_of_mixed_groups_is_that_of_independent_episodes():
    """The fact sheet's numbers: 0.992 at 0.5, 0.832 at 0.8, 0.570 at 0.9, 0.077 at 0.99."""
    assert [round(mixed_share(success), 3) for success in (0.5, 0.8, 0.9, 0.99)] == [0.992, 0.832, 0.57, 0.077]


def test_a_target_is_reached_at_the_first_whole_window_that_has_it():
    assert [run.reached for run in RUNS] == [30, 40, None, 50]
    assert [run.episodes_until for run in RUNS] == [30, 40, 100, 50]
    assert RUNS[0].curve() == ([20.0, 30.0, 40.0], [0.5, 0.8, 0.7])


def test_a_method_that_fails_in_long_episodes_is_not_faster_for_the_fewer_that_its_budget_has():
    """The budget is in env steps: 48 long episodes for a policy that fails, 65 for one that comes near."""
    failing = [replace(result("ppo", seed, [0.1, 0.2, 0.2]), budget=48 + seed) for seed in (0, 1)]
    near = [replace(result("grpo", seed, [0.5, 0.7, 0.7]), budget=65) for seed in (0, 1)]
    assert comparisons(PLAN, failing + near)[0].probability == 0.5
    assert [summary.episodes for summary in summaries(PLAN, failing + near)] == [48.0, 48.0]
    arrived = [near[0], replace(result("grpo", 1, [0.5, 0.6, 0.7, 0.7, 0.7, 0.8]), budget=65)]
    assert (
        comparisons(PLAN, failing + arrived)[0].probability == 0.25
    )  # ties with one run, later than the budget of one
    assert [summary.episodes for summary in summaries(PLAN, failing + arrived)] == [48.0, 48.0]


def test_summaries_count_a_run_that_never_arrived_with_its_budget():
    ppo, grpo = summaries(PLAN, RUNS)
    assert (ppo.reached, ppo.episodes, grpo.reached, grpo.episodes) == (2, 35.0, 1, 75.0)
    assert ppo.interval is not None
    assert (ppo.interval.low, ppo.interval.high) == (30.0, 40.0)
    assert (grpo.mixed_at_first, grpo.episodes_per_useful) == (0.25, 16.0)
    assert ppo.mixed_at_first is None


def test_a_run_that_needs_fewer_episodes_is_the_faster_one():
    (pair,) = comparisons(PLAN, RUNS)
    assert (pair.first, pair.second, pair.probability) == ("ppo", "grpo", 1.0)
    tied = [RUNS[0], RUNS[1], result("grpo", 0, [0.5, 0.5, 0.8]), result("grpo", 1, [0.5, 0.8])]
    assert comparisons(PLAN, tied)[0].probability == 0.125  # of 30, 40 against 30, 20: one tie in four


def study_of(plan, runs) -> GroupStudy:
    return GroupStudy(plan, runs, [], summaries(plan, runs), comparisons(plan, runs))


def test_the_page_says_what_is_missing():
    study = study_of(PLAN, RUNS[:3])
    assert "PARTIAL: 1 of 4 runs are missing" in " ".join(cautions(study))
    words = " ".join(parts(study)[0].sentences)
    assert "episodes until 80.0 %: PPO with a critic, fresh 35 (30 to 40); GRPO, fresh, every group 100" in words
    assert "reached by 0 of 1" in words


def test_evaluations_that_cannot_be_read_are_not_taken_for_runs():
    plan = replace(PLAN, starts=(replace(START, states=3),))
    study = replace(study_of(plan, RUNS), unread=[f"{number}: broken" for number in range(3)])
    told = " ".join(cautions(study))
    assert "runs are missing" not in told
    assert "LEFT OUT: 2: broken" in told
    assert "PARTIAL: 1 finished runs have not been evaluated." in told


def test_the_page_tells_methods_apart_from_five_seeds_on_and_not_before():
    few = study_of(PLAN, RUNS)
    assert "Start easy: 2 seeds of some method; intervals over fewer than 5 say nothing" in " ".join(cautions(few))
    assert "told apart" not in " ".join(parts(few)[0].sentences)
    runs = [replace(run, run=replace(run.run, seed=seed)) for seed in range(5) for run in (RUNS[0], RUNS[2])]
    enough = study_of(replace(PLAN, seeds=5), runs)
    assert "fewer" not in " ".join(cautions(enough))
    words = " ".join(parts(enough)[0].sentences)
    assert "told apart by these seeds: PPO with a critic, fresh before GRPO, fresh, every group." in words


# --- a recipe of LIBERO ----------------------------------------------------------------------------------------------

LIBERO = "libero_tiny_gipo"  # batches of 4 x 8 episodes, each a segment of 20 decisions; replay ratio 4


def libero_plan(checkpoint: Path, states: int = 0) -> GroupPlan:
    start = own_start(
        LIBERO, target=0.75, env_steps=3200, window=100, tasks=[2, 7], checkpoint=checkpoint, states=states
    )
    return replace(PRESET, recipe=LIBERO, starts=(start,), seeds=1)


def test_over_a_recipe_that_replays_every_method_updates_after_as_many_new_episodes():
    plan = libero_plan(checkpoint=Path("/somewhere"))
    for name, method in METHODS.items():
        recipe = plan.recipe_of(GroupRun("own", name, 0))
        assert recipe.learner.batch_segments == (32 if method.over_replay else 8)
        assert recipe.learner.batch_segments / recipe.replay.replay_ratio == 8
        assert recipe.replay.min_decisions == (480 if method.over_replay else 8 * 20)
        assert recipe.optimizer.critic_only_steps == (8 if method.has_critic else 0)
        assert (recipe.env.tasks, recipe.rollout.envs_per_worker, recipe.policy.checkpoint) == ([2, 7], 2, "/somewhere")
        assert (recipe.logging.recent_episodes, recipe.logging.every_optimizer_steps) == (100, 1)
        assert recipe.checkpoint.every_optimizer_steps == 20  # the recipe's: an interrupted run is continued


def test_every_run_holds_the_recipe_s_learning_rates_constant_and_the_page_says_so():
    base, plan = load_recipe(find_recipe(LIBERO)).optimizer, libero_plan(checkpoint=Path("/somewhere"))
    assert base.schedule == "cosine"
    for run in plan.runs():
        own = plan.recipe_of(run).optimizer
        assert own.schedule == "constant"
        assert (own.policy_lr, own.value_lr) == (base.policy_lr, base.value_lr)
        assert (own.policy_warmup, own.value_warmup) == (base.policy_warmup, base.value_warmup)
    methods = next(part for part in parts(study_of(plan, [])) if part.title == "Methods")
    assert "learning rates, held constant after its warm-up whatever its schedule is" in methods.sentences[0]


def test_a_fresh_batch_is_rounded_up_to_whole_groups(tmp_path):
    own = tmp_path / "own.yaml"
    text = find_recipe(LIBERO).read_text(encoding="utf-8")
    own.write_text(text.replace("  accumulation: 4", "  accumulation: 5"), encoding="utf-8")  # 40 / 4 = 10 episodes
    assert own_start(str(own), target=0.5, env_steps=100).fresh_batch == 16


def test_the_ring_of_all_methods_grows_where_groups_need_more_than_the_recipe_s():
    """Three environments play 8 members in 8 turns: 3 · 21 decisions · (8 · (2 groups of a team + 2 ahead) + 1)."""
    start = own_start(LIBERO, target=0.75, env_steps=3200)  # the recipe's three tasks
    assert start.capacity == 63 * 33
    plan = replace(PRESET, recipe=LIBERO, starts=(start,), seeds=1)
    assert {plan.recipe_of(run).replay.capacity for run in plan.runs()} == {63 * 33}
    told = " ".join(parts(study_of(replace(PLAN, starts=(replace(START, capacity=2079),)), RUNS))[-1].sentences)
    assert "The ring of all methods holds 2,079 decisions" in told
    two = own_start(LIBERO, target=0.75, env_steps=3200, tasks=[2, 7])  # 42 · (4 · (4 + 2) + 1) = 1,050
    assert two.capacity is None
    assert {replace(plan, starts=(two,)).recipe_of(run).replay.capacity for run in plan.runs()} == {1200}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    section = OpenVLAOFTSection(name="openvla_oft", image_size=28, lora=None, train_backbone=True)
    context = PolicyContext(seed=0, suite="libero_spatial", tasks=("pick up the bowl",), num_images=1)
    write_checkpoint(build_openvla_oft(section, context, device="cpu", empty=False), folder, step=1)
    return folder


def test_the_start_is_evaluated_first_and_every_run_after_it_on_the_same_stored_states(tmp_path, checkpoint):
    plan = libero_plan(checkpoint=checkpoint, states=25)
    jobs = {job.name: job for job in jobs_of(plan, tmp_path)}
    order = ["own_before", "own_ppo_seed0", "own_ppo_seed0_after", "own_grpo_seed0", "own_grpo_seed0_after"]
    assert list(jobs)[:5] == order
    assert (jobs["own_before"].needs, jobs["own_ppo_seed0_after"].needs) == ((), ("own_ppo_seed0",))
    before, after = ([*jobs[name].arguments(tmp_path / "x")] for name in ("own_before", "own_ppo_seed0_after"))
    assert (before[:2], after[:2]) == (["eval", str(checkpoint)], ["eval", str(tmp_path / "runs" / "own_ppo_seed0")])
    assert before[2:] == after[2:]
    told = " ".join(after)
    for option in ("--suite libero_spatial", "--tasks 2,7", "--horizon 160", "--episodes-per-task 25",
                   "--init-states standard", "--temperature 1.0"):  # fmt: skip
        assert option in told


def test_a_recipe_that_trains_on_the_stored_states_is_evaluated_on_drawn_ones(tmp_path, checkpoint):
    recipe = tmp_path / "own.yaml"
    text = "base: libero_tiny_gipo\nname: own\nenv: {init_states: standard}\nevaluation: {tasks: [0]}\n"
    recipe.write_text(text, encoding="utf-8")
    start = own_start(str(recipe), target=0.75, env_steps=3200, tasks=[2, 7], checkpoint=checkpoint, states=25)
    jobs = {job.name: job for job in jobs_of(replace(PRESET, recipe=str(recipe), starts=(start,), seeds=1), tmp_path)}
    for name in ("own_before", "own_ppo_seed0_after"):
        told = " ".join(jobs[name].arguments(tmp_path / "x"))
        assert f"--init-states sampled --seed {SAMPLED_STATES + 2}" in told


def test_an_interrupted_run_in_libero_is_continued_and_one_of_the_toy_starts_again(tmp_path, checkpoint):
    (tmp_path / "recipe.yaml").touch()
    (first, *_) = jobs_of(libero_plan(checkpoint=checkpoint), tmp_path)
    (toy, *_) = jobs_of(SMALL, tmp_path)
    assert first.continues
    assert not toy.continues
    assert "--resume" in first.arguments(tmp_path)
    assert "--resume" not in first.arguments(tmp_path / "new")
    assert "--resume" not in toy.arguments(tmp_path)


def finished_evaluation(out, name, successes):
    """A finished evaluation of ten states of one task, of which the first ones succeeded."""
    folder = out / "runs" / name
    with EpisodeLog(folder / "episodes.jsonl") as log:
        for state in range(10):
            log.append(
                EpisodeResult(
                    suite="libero_spatial", task_id=2, init_state=state, seed=0, success=state < successes,
                    env_steps=9, episode_return=0.0, seconds=1.0, init_states="standard",
                )
            )  # fmt: skip
    (folder / RUN_FILE).write_text('{"stage": "evaluation", "seconds": 1.0}', encoding="utf-8")


def test_gains_are_those_of_the_same_states_and_say_nothing_of_runs_that_were_not_evaluated(tmp_path):
    finished_evaluation(tmp_path, "easy_before", 5)
    finished_evaluation(tmp_path, "easy_ppo_seed1_after", 8)
    assert not says_something(tmp_path)  # no run has finished
    (gain,), broken = read_gains(RUNS, tmp_path)
    assert (gain.run, broken) == (RUNS[1].run, [])
    assert (gain.comparison.second_rate, gain.comparison.first_rate) == (0.5, 0.8)
    assert (gain.comparison.test.only_first, gain.comparison.test.only_second) == (3, 0)
    study = replace(study_of(PLAN, RUNS), gains=[gain])
    words = " ".join(parts(study)[0].sentences)
    assert "On 10 held-out episodes, with sampled actions, the start succeeds in 50 %" in words
    assert "PPO with a critic, fresh, seed 1, 80 % (" in words
    (tmp_path / "runs" / "easy_ppo_seed1_after" / "episodes.jsonl").write_text("{", encoding="utf-8")
    gains, (sentence,) = read_gains(RUNS, tmp_path)
    assert not gains
    assert "easy_ppo_seed1_after: " in sentence


def test_the_page_says_which_finished_runs_were_not_evaluated():
    evaluated = replace(START, states=5)
    study = study_of(replace(PLAN, starts=(evaluated,)), RUNS)
    assert "PARTIAL: 4 finished runs have not been evaluated." in cautions(study)
    assert not any("evaluated" in text for text in cautions(study_of(PLAN, RUNS)))


def test_the_page_states_the_noise_of_measured_success():
    """At 80 % over 20 episodes: the root of 0.8 · 0.2 / 20 is 0.0894."""
    part = next(part for part in parts(study_of(PLAN, RUNS)) if part.title == "Episodes until the target")
    assert "easy: ±8.9 % at 80.0 % over 20 episodes" in " ".join(part.sentences)


def test_a_start_of_unknown_success_is_named_by_where_it_is_from():
    for checkpoint, name in ((None, "the recipe's own policy"), ("/clone", "the given checkpoint")):
        start = replace(START, success=None, checkpoint=checkpoint)
        words = " ".join(parts(study_of(replace(PLAN, starts=(start,)), RUNS))[0].sentences)
        assert f"From {name}, episodes until 80.0 %: PPO" in words


def test_a_checkpoint_that_cannot_be_trained_from_is_refused_before_anything_starts(tmp_path):
    command = ["study", "groups", "--recipe", LIBERO, "--target", "0.7", "--budget", "800", "--dry-run"]
    done = CliRunner().invoke(app, [*command, "--start", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "missing model" in done.output


def test_a_recipe_that_contradicts_the_checkpoint_is_refused_before_anything_starts(tmp_path, checkpoint):
    """The checkpoint has proprioception, and the recipe turns it off."""
    recipe = tmp_path / "own.yaml"
    text = find_recipe(LIBERO).read_text(encoding="utf-8")
    recipe.write_text(text.replace("  checkpoint: tiny\n", "  checkpoint: tiny\n  proprio: false\n"), encoding="utf-8")
    start = own_start(str(recipe), target=0.75, env_steps=3200, window=100, tasks=[2, 7], checkpoint=checkpoint)
    with pytest.raises(RecipeError, match=r"policy\.proprio: a checkpoint .* is always fed it"):
        jobs_of(replace(PRESET, recipe=str(recipe), starts=(start,), seeds=1), tmp_path / "out")


def test_a_dry_run_in_libero_prices_runs_and_evaluations(tmp_path, checkpoint):
    """Starts of 15 s, 3,200 env steps at 165 a second, 400 samples at 225 a second: four times as many over replay."""
    command = ["study", "groups", "--recipe", LIBERO, "--target", "0.7", "--budget", "3200", "--seeds", "1"]
    command += ["--start", str(checkpoint), "--tasks", "2,7", "--states", "5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--jobs", "1", "--dry-run"])
    assert done.exit_code == 0, done.output
    fresh, replayed = 15 + 3200 / 165 + 400 / 225, 15 + 3200 / 165 + 1600 / 225
    assert f"run            5 jobs  about {(3 * fresh + 2 * replayed) / 60:.1f} core minutes" in done.output
    assert "evaluation     6 jobs" in done.output
    assert not (tmp_path / "out").exists()


# --- the study as a whole --------------------------------------------------------------------------------------------


def test_a_study_may_grow_and_keeps_its_targets(tmp_path):
    open_study(SMALL, tmp_path)
    open_study(replace(PRESET, methods=("ppo",), starts=starts_named(["0.9"]), seeds=3), tmp_path)
    plan, _ = read_study(tmp_path)
    assert [start.name for start in plan.starts] == ["0.1", "0.9"]
    assert (plan.methods, plan.seeds) == (tuple(METHODS), 3)
    other = replace(STARTS["0.9"], target=0.95)
    with pytest.raises(UserError, match=r"start 0\.9 has another target: "):
        open_study(replace(SMALL, starts=(other,)), tmp_path)


def test_a_recipe_without_a_critic_is_refused():
    plan = replace(SMALL, recipe="toy_grpo", starts=(own_start("toy_grpo", target=0.5, env_steps=100),))
    with pytest.raises(UserError, match=r"--recipe: targets\.name is group in toy_grpo; .* needs one"):
        plan.recipe_of(plan.runs()[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "ppo,gippo"], "--methods: found 'gippo' (did you mean 'gipo'?)"),
        (["--starts", "0.5"], "--starts: found '0.5'; allowed are 0.1, 0.9, 0.99"),
        (["--recipe", "toy"], "needs --target and --budget"),
        (["--recipe", "toy", "--target", "0.9", "--budget", "10", "--starts", "0.1"], "not --starts"),
        (["--target", "0.9", "--window", "9"], "--target and --window: only with --recipe"),
        (["--states", "2"], "--states: only with --recipe"),
        (["--recipe", "toy", "--target", "0.9", "--budget", "10", "--states", "2"], "found 2 with env.name toy and no"),
        (["--recipe", "toy", "--target", "0.9", "--budget", "10", "--tasks", "0,0"], "--tasks: an id is repeated"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_starts(tmp_path, options, said):
    done = CliRunner().invoke(app, ["study", "groups", "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == 2
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prices_the_preset_and_starts_nothing(tmp_path):
    done = CliRunner().invoke(app, ["study", "groups", "--out", str(tmp_path / "out"), "--jobs", "1", "--dry-run"])
    assert done.exit_code == 0
    assert "75 jobs, " in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_study_runs_with_a_recipe_of_one_s_own_and_is_reported_again(tmp_path):
    out = tmp_path / "out"
    options = ["--recipe", "gates", "--target", "0.05", "--budget", "2400", "--seeds", "1", "--jobs", "1"]
    command = ["study", "groups", "--out", str(out), "--methods", "ppo,gipo_groups", *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    data = json.loads((out / "results" / "groups.json").read_text(encoding="utf-8"))
    assert [(run["method"], run["reached"]) for run in data["runs"]] == [("ppo", True), ("gipo_groups", True)]
    assert (out / "results" / "episodes.png").stat().st_size > 1000
    assert (out / "runs" / "own_ppo_seed0" / RUN_FILE).is_file()
    page = (out / "results" / "summary.md").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, command)
    assert "2 of them finished before" in again.output
    assert write_study(out).files
    assert (out / "results" / "summary.md").read_text(encoding="utf-8") == page
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
