"""The plan of the LIBERO study and its jobs: complete, in order, resumable, on states that never meet."""

import importlib.util
import itertools
import json
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.envs.seeds import reset_seed
from vla_rl.errors import UserError
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.recipe import RecipeError, find_recipe
from vla_rl.recipe.loading import load_supervised_recipe
from vla_rl.studies import jobs as study_jobs
from vla_rl.studies.held_out import HELD_OUT_SEED
from vla_rl.studies.jobs import run_study
from vla_rl.studies.libero.plan import CHOICE_SEED, PRESETS, RING_SIZES, UNCHANGED, choose_start
from vla_rl.studies.libero.runner import read_study, work_of
from vla_rl.studies.libero.stages import JOB_FILE, chosen_step, jobs_of
from vla_rl.workers.episodes import training_schedule

PLAN = replace(
    PRESETS["small"],
    init_states="widened",
    sft_steps=(300, 600, 900, 1200, 1500),
    arms=("gipo", "ppo", UNCHANGED),
    regimes=("fresh", "stale"),
    seeds=2,
)


def arguments(jobs, out, name):
    """The command of a job, with the values of its options by name."""
    told = next(job for job in jobs if job.name == name).arguments(out / "jobs" / f"{name}.unfinished")
    options = {first: second for first, second in itertools.pairwise(told) if first.startswith("--")}
    return told, options


# --- the grid --------------------------------------------------------------------------------------------------------


def test_the_full_study_has_every_surrogate_and_a_policy_that_never_changes_fresh_and_stale_in_three_seeds():
    runs = PRESETS["full"].runs()
    assert len(runs) == len({run.name for run in runs}) == 4 * 2 * 3
    assert {run.arm for run in runs} == {"gipo", "ppo", "sapo", "lr0"}


def test_all_runs_have_the_same_replay_ratio_batch_and_budget_and_differ_in_their_axes_alone():
    recipes = [PLAN.recipe_of(run) for run in PLAN.runs()]
    dumps = [recipe.model_dump() for recipe in recipes]
    for other in dumps:
        differing = {key for key in dumps[0] if dumps[0][key] != other[key]}
        assert differing <= {"name", "seed", "surrogate", "optimizer", "replay"}
    for recipe in recipes:
        assert recipe.replay.model_copy(update={"capacity": 1}) == recipes[0].replay.model_copy(update={"capacity": 1})


def test_a_policy_that_never_changes_has_learning_rates_of_zero_and_the_others_those_of_the_recipe():
    rates = {
        run.arm: (recipe.optimizer.policy_lr, recipe.optimizer.value_lr)
        for run in PLAN.runs()
        for recipe in [PLAN.recipe_of(run)]
    }
    assert rates == {"gipo": (2e-4, 1e-3), "ppo": (2e-4, 1e-3), "lr0": (0.0, 0.0)}


def test_a_stale_run_remembers_four_times_as_much_as_a_fresh_one():
    fresh, stale = (PLAN.recipe_of(run).replay.capacity for run in PLAN.runs()[:4] if run.arm == "gipo" for _ in [0])
    assert RING_SIZES == {"fresh": 1, "stale": 4}
    assert (fresh, stale) == (1200, 4800)


def test_warm_ups_of_a_recipe_end_before_a_study_that_is_shorter():
    plan = replace(PLAN, recipe="libero_spatial_gipo", optimizer_steps=400)  # 500 steps of warm-up for both
    recipe = plan.recipe_of(plan.runs()[0])
    assert (recipe.optimizer.policy_warmup, recipe.optimizer.value_warmup) == (399, 399)


def test_all_runs_end_by_their_updates_whatever_else_ends_the_recipes_run(tmp_path):
    own = tmp_path / "own.yaml"
    ends = "{minutes: 5, env_steps: 900, stop_at_success: 0.9, stop_after_evaluations_without_gain: 2}"
    evaluation = "{episodes_per_task: 4, every_optimizer_steps: 10, tasks: [0]}"  # not one of the study's
    own.write_text(f"base: libero_tiny_gipo\nname: own\nbudget: {ends}\nevaluation: {evaluation}\n", encoding="utf-8")
    plan = replace(PLAN, recipe=str(own), optimizer_steps=7)
    budget = plan.recipe_of(plan.runs()[0]).budget.model_dump(exclude_none=True)
    assert budget == {"optimizer_steps": 7}


def test_no_run_plays_an_evaluation_of_its_own_beside_those_of_the_study(tmp_path):
    own = tmp_path / "own.yaml"
    evaluation = "evaluation: {episodes_per_task: 4, every_optimizer_steps: 10}\ncheckpoint: {keep_best: true}\n"
    own.write_text(f"base: libero_tiny_gipo\nname: own\n{evaluation}", encoding="utf-8")
    plan = replace(PLAN, recipe=str(own))
    assert plan.base().evaluation.episodes_per_task == 4
    for run in plan.runs():
        recipe = plan.recipe_of(run)
        assert (recipe.evaluation.episodes_per_task, recipe.evaluation.every_optimizer_steps) == (0, None)


def test_a_regime_of_the_recipe_changes_no_replay_ratio_between_rings_or_budgets(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "base: libero_tiny_gipo\nname: own\nregime: fresh\nreplay:\n  replay_ratio: 9.12\n", encoding="utf-8"
    )
    plan = replace(PLAN, recipe=str(own), optimizer_steps=100)  # half of the recipe's
    assert plan.base().replay.replay_ratio == 9.12
    assert {plan.recipe_of(run).replay.replay_ratio for run in plan.runs()} == {9.12}


def test_every_task_has_an_environment_of_its_own():
    recipe = replace(PLAN, tasks=(1, 4)).recipe_of(PLAN.runs()[0])
    assert (recipe.env.tasks, recipe.rollout.envs_per_worker) == ([1, 4], 2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arms": ("lr0",)}, "--surrogates: found lr0; at least one surrogate"),
        ({"arms": ("gipo", "lr0", "lr0")}, "--surrogates: .*lr0 once at most"),
        ({"arms": ("gipo", "gipo:1.0")}, "--surrogates: .*every surrogate stands once"),
        ({"arms": ("gippo",)}, "--surrogates: found 'gippo'; allowed are gipo, .*, ppo, .*, lr0$"),
        ({"regimes": ("old",)}, "--regimes: found 'old'; allowed are fresh, stale"),
        ({"tasks": (10,)}, "--tasks: found '10'; allowed are 0, 1, 2"),
        ({"tasks": (1, 1)}, "--tasks: found 1,1"),
        ({"init_states": "standard"}, "--init-states: found 'standard'; allowed are sampled, widened"),
    ],
)
def test_what_is_not_part_of_the_study_is_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        replace(PLAN, **changes)


def test_a_recipe_of_another_environment_is_refused():
    plan = replace(PLAN, recipe="metaworld_stale")
    with pytest.raises(UserError, match=r"--recipe: env\.name is metaworld in metaworld_stale; .* env\.name libero"):
        plan.recipe_of(plan.runs()[0])


# --- the start -------------------------------------------------------------------------------------------------------


def test_the_start_is_the_earliest_candidate_that_succeeds_sometimes():
    assert choose_start({100: 0.1, 200: 0.3, 300: 0.5, 400: 0.8}, (0.2, 0.5)) == 200
    assert choose_start({100: 0.5, 200: 0.3}, (0.2, 0.5)) == 100  # the ends belong to it


def test_without_such_a_candidate_the_best_below_is_taken_and_never_one_that_succeeds_mostly():
    assert choose_start({100: 0.0, 200: 0.15, 300: 0.1, 400: 0.8}, (0.2, 0.5)) == 200
    assert choose_start({100: 0.0, 200: 0.0, 300: 0.9}, (0.2, 0.5)) == 100
    assert choose_start({100: 0.7, 200: 0.6}, (0.2, 0.5)) == 100  # all succeed mostly


# --- initial states --------------------------------------------------------------------------------------------------


def test_states_of_training_choice_and_evaluation_never_meet():
    """Training draws (seed, state) pairs; the seeds of the choice and of the evaluation are none of them."""
    slots, episodes = 3, 400
    training = {
        (job.seed, job.init_state)
        for seed in range(3)
        for slot in range(slots)
        for job in itertools.islice(
            training_schedule(seed=seed, env_index=slot, num_envs=slots, num_init_states=[None] * 3), episodes
        )
    }
    assert len({seed for seed, _ in training}) > 3000
    largest = 2**31 - 2  # training draws below the largest 32-bit integer
    assert max(seed for seed, _ in training) <= largest < CHOICE_SEED
    assert len({CHOICE_SEED, HELD_OUT_SEED}) == 2
    of_training = {reset_seed(seed, task, state) for seed, state in training for task in range(3)}
    choice, held_out = (
        {reset_seed(seed, task, state) for task in range(3) for state in range(50)}
        for seed in (CHOICE_SEED, HELD_OUT_SEED)
    )
    assert not of_training & choice
    assert not of_training & held_out
    assert not choice & held_out


def test_evaluation_plays_the_stored_states_or_other_draws_of_the_widened_sampler(tmp_path):
    sampled = replace(PLAN, init_states="sampled")
    stored = arguments(jobs_of(sampled, tmp_path), tmp_path, "gipo_fresh_seed0_greedy")[1]
    assert stored["--init-states"] == "standard"
    assert "--seed" not in stored
    drawn = arguments(jobs_of(PLAN, tmp_path), tmp_path, "gipo_fresh_seed0_greedy")[1]
    assert (drawn["--init-states"], drawn["--seed"]) == ("widened", str(HELD_OUT_SEED))


@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")
@pytest.mark.parametrize("states", ["sampled", "widened"])
def test_demonstrations_training_and_choice_draw_from_the_same_sampler(tmp_path, states):
    plan = replace(PLAN, init_states=states)
    assert {plan.recipe_of(run).env.init_states for run in plan.runs()} == {states}
    jobs = jobs_of(plan, tmp_path)
    assert arguments(jobs, tmp_path, "demos")[1]["--init-states"] == states
    assert arguments(jobs, tmp_path, "start_300")[1]["--init-states"] == states
    assert arguments(jobs, tmp_path, "start_300")[1]["--seed"] == str(CHOICE_SEED)


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_every_job_comes_after_those_that_it_needs_and_has_a_name_of_its_own(tmp_path):
    for plan in PRESETS.values():
        names = [job.name for job in jobs_of(plan, tmp_path)]
        assert len(set(names)) == len(names)
        for place, job in enumerate(jobs_of(plan, tmp_path)):
            assert set(job.needs) <= set(names[:place])


def test_every_run_is_evaluated_with_sampled_and_greedy_actions_on_equal_states(tmp_path):
    jobs = jobs_of(PLAN, tmp_path)
    for run in PLAN.runs():
        told = {actions: arguments(jobs, tmp_path, f"{run.name}_{actions}") for actions in ("sampled", "greedy")}
        assert told["sampled"][1]["--temperature"] == "1.0"
        assert "--temperature" not in told["greedy"][1]
        for command, options in told.values():
            assert command[:2] == ["eval", str(tmp_path / "jobs" / run.name)]
            assert (options["--episodes-per-task"], options["--horizon"], options["--tasks"]) == ("20", "160", "2,7")


def test_controls_are_played_before_and_by_one_trained_policy(tmp_path):
    jobs = [job for job in jobs_of(PLAN, tmp_path) if job.record["stage"] == "evaluation"]
    misled = [job.name for job in jobs if job.name.startswith("before") is False and "--control" in told(job, tmp_path)]
    assert misled == ["gipo_fresh_seed0_sampled"]


def told(job, out):
    return list(job.arguments(out)) if job.record["subject"] != "before" else []


def candidates(out, rates):
    """Finished evaluations of the candidates, ten states of one task each."""
    for step, rate in rates.items():
        with EpisodeLog(out / "jobs" / f"start_{step}" / "episodes.jsonl") as log:
            for state in range(10):
                log.append(
                    EpisodeResult(
                        suite="libero_spatial", task_id=0, init_state=state, seed=CHOICE_SEED,
                        success=state < 10 * rate, env_steps=9, episode_return=0.0, seconds=1.0,
                        init_states="sampled",
                    )
                )  # fmt: skip


def test_runs_and_the_evaluation_before_start_from_the_chosen_candidate(tmp_path):
    candidates(tmp_path, {300: 0.0, 600: 0.1, 900: 0.4, 1200: 0.5, 1500: 0.9})
    assert chosen_step(PLAN, tmp_path / "jobs") == 900
    jobs = jobs_of(PLAN, tmp_path)
    checkpoint = arguments(jobs, tmp_path, "before_greedy")[0][1]
    assert checkpoint == str(tmp_path / "jobs" / "sft_900" / "policy")
    assert f"policy.checkpoint={checkpoint}" in arguments(jobs, tmp_path, "ppo_stale_seed1")[0]


def test_jobs_that_run_beside_each_other_take_one_core_each(tmp_path):
    """A recipe's 0 means all cores, and two clones at once were then several times as slow as one after the other."""
    candidates(tmp_path, {300: 0.0, 600: 0.1, 900: 0.4, 1200: 0.5, 1500: 0.9})
    jobs = jobs_of(PLAN, tmp_path)
    for step in PLAN.sft_steps:
        command = arguments(jobs, tmp_path, f"sft_{step}")[0]
        overrides = [it for it in command if it.partition("=")[1] and not it.startswith("--")]
        cloning = load_supervised_recipe(find_recipe("libero_sft_tiny"), overrides)
        assert (cloning.runtime.threads_per_process, cloning.runtime.loader_threads) == (1, 1)
    for run in PLAN.runs():
        assert "runtime.threads_per_process=1" in arguments(jobs, tmp_path, run.name)[0]


def test_an_interrupted_run_is_resumed_and_one_that_never_began_is_not(tmp_path):
    candidates(tmp_path, dict.fromkeys(PLAN.sft_steps, 0.4))
    jobs = jobs_of(PLAN, tmp_path)
    assert "--resume" not in arguments(jobs, tmp_path, "gipo_fresh_seed0")[0]
    folder = tmp_path / "jobs" / "gipo_fresh_seed0.unfinished"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    assert "--resume" in arguments(jobs, tmp_path, "gipo_fresh_seed0")[0]


# --- running it ------------------------------------------------------------------------------------------------------

# Stands in for `vla-rl`: writes what the next stages read; every fifth episode succeeds more from step to step.
FAKE = """
import json, sys
from pathlib import Path
verb, told = sys.argv[3], sys.argv[3:]
option = {a: b for a, b in zip(told, told[1:])}
folder = Path(option["--out"] if "--out" in option else option["--run-dir"])
root = folder.parent.parent if folder.name == "data" else folder.parent
with (root.parent / "journal").open("a") as journal:
    journal.write(f"{folder.name if folder.name != 'data' else 'demos'}\\n")
if (root.parent / "broken").exists() and verb == "sft":
    sys.exit(1)
if verb == "eval":
    step = Path(told[1]).parent.name.rpartition("_")[2]
    rate = int(step) / 1500 if step.isdigit() else 0.5
    with (folder / "episodes.jsonl").open("w") as log:
        for state in range(10):
            log.write(json.dumps(dict(
                suite="libero_spatial", task_id=0, init_state=state, seed=0, success=state < 10 * rate,
                env_steps=9, episode_return=0.0, seconds=1.0, init_states="standard")) + "\\n")
"""


@pytest.fixture
def out(stand_in, tmp_path):
    stand_in(FAKE)
    return tmp_path / "study"


def run(out, plan):
    return run_study(work_of(plan, out), at_once=2, say=lambda _: None)


TINY = replace(PRESETS["tiny"], arms=("gipo",), sft_steps=(300, 600, 900))


def test_the_stages_run_one_after_the_other_and_never_again(out):
    progress = run(out, TINY)
    assert not progress.failed
    journal = (out / "journal").read_text().splitlines()
    order = [line.removesuffix(".unfinished") for line in journal]
    assert order[0] == "demos"
    assert set(order[1:7]) == {f"{stage}_{steps}" for stage in ("sft", "start") for steps in (300, 600, 900)}
    assert all(order.index(f"sft_{steps}") < order.index(f"start_{steps}") for steps in (300, 600, 900))
    assert order.index("gipo_fresh_seed0") < order.index("gipo_fresh_seed0_greedy")
    assert all((out / "jobs" / name / JOB_FILE).exists() for name in order)
    progress = run(out, TINY)
    assert (progress.kept, progress.finished) == (len(order), [])
    assert (out / "journal").read_text().splitlines() == journal


def test_a_study_may_gain_arms_and_seeds_and_keeps_what_it_has(out):
    run(out, TINY)
    progress = run(out, replace(TINY, arms=("ppo",), seeds=2))
    plan, _ = read_study(out)
    assert (plan.arms, plan.seeds) == (("gipo", "ppo"), 2)
    assert {job.record["stage"] for job in progress.finished} == {"run", "evaluation", "videos"}


@pytest.mark.parametrize("changes", [{"states": 7}, {"tasks": (2, 3)}, {"optimizer_steps": 9}, {"demonstrations": 2}])
def test_a_study_that_has_begun_does_not_change(out, changes):
    run(out, TINY)
    with pytest.raises(UserError, match=f"holds a study with {next(iter(changes))} "):
        run(out, replace(TINY, **changes))


def test_the_same_recipe_under_another_path_continues_the_study(out, tmp_path):
    kept = len(run(out, TINY).finished)
    (tmp_path / "own.yaml").write_text(find_recipe("libero_tiny_gipo").read_text(encoding="utf-8"), encoding="utf-8")
    assert run(out, replace(TINY, recipe=str(tmp_path / "own.yaml"))).kept == kept


def test_a_stage_that_fails_holds_up_what_needs_it_and_is_tried_again(out):
    out.mkdir()
    (out / "broken").touch()
    progress = run(out, TINY)
    assert {job.name for job in progress.failed} == {"sft_300", "sft_600", "sft_900"}
    assert len(progress.blocked) == progress.total - 4
    (out / "broken").unlink()
    progress = run(out, TINY)
    assert (progress.kept, progress.failed, progress.blocked) == (1, [], [])


@pytest.mark.parametrize("content", ["{}", '{"study": "libero"}', '{"study": "libero", "plan": {}, "base": ""}', "["])
def test_a_file_that_is_no_study_is_refused_by_name(tmp_path, content):
    (tmp_path / "study.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"study\.json: expected"):
        read_study(tmp_path)


def test_a_recipe_that_was_changed_since_is_refused(out):
    run(out, TINY)
    path = out / "study.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base": settings["base"].replace("gae_lambda: 1.0", "gae_lambda: 0.9")}))
    with pytest.raises(
        UserError, match=r"began with another recipe than .* is now; they differ in targets\.gae_lambda: "
    ):
        run(out, TINY)


def test_a_study_whose_first_stages_fail_names_their_logs(out):
    out.mkdir()
    (out / "broken").touch()
    done = CliRunner().invoke(app, ["study", "libero", "--preset", "tiny", "--out", str(out), "--jobs", "2"])
    assert done.exit_code == 1
    assert "2 jobs failed; 12 others wait for them; run the study again to retry them" in done.output
    assert f"sft_24: see {out}/jobs/sft_24.failed/output.log" in done.output


# --- a start that is there already -----------------------------------------------------------------------------------


def write_start(folder):
    section = OpenVLAOFTSection(name="openvla_oft", image_size=28, lora=None, train_backbone=True)
    context = PolicyContext(seed=0, suite="libero_spatial", tasks=("pick up the bowl",), num_images=1)
    write_checkpoint(build_openvla_oft(section, context, device="cpu", empty=False), folder, step=1)


def test_a_study_from_a_given_checkpoint_clones_nothing_and_begins_there(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    write_start(start)
    plan = replace(PLAN, start=str(start))
    jobs = jobs_of(plan, tmp_path)
    assert {str(job.record["stage"]) for job in jobs} == {"evaluation", "videos", "run"}
    assert all(set(job.needs) <= {other.name for other in jobs} for job in jobs)
    assert next(job for job in jobs if job.name == "before_sampled").needs == ()
    told, _ = arguments(jobs, tmp_path, "before_sampled")
    assert told[:2] == ["eval", str(start)]
    told, _ = arguments(jobs, tmp_path, "gipo_fresh_seed0")
    assert f"policy.checkpoint={start}" in told


def test_the_suite_of_all_runs_is_that_of_the_recipe(tmp_path):
    (tmp_path / "start").mkdir()
    write_start(tmp_path / "start")
    options = ["--recipe", "libero_object_gipo", "--start", str(tmp_path / "start"), "--tasks", "3", "--dry-run"]
    done = CliRunner().invoke(app, ["study", "libero", *options])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("libero_object, tasks 3 × gipo, ppo, sapo, lr0 × fresh × seed 0\n")


def test_a_recipe_of_another_policy_than_is_cloned_asks_for_a_start_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(study_jobs, "run_study", None)  # nothing calls it
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["study", "libero", "--recipe", "libero_goal_gipo", "--out", str(out)])
    assert done.exit_code == 2, done.output
    assert "policy.checkpoint is ./checkpoints/openvla-oft-libero-goal in libero_goal_gipo" in done.output
    assert "Add --start DIR" in done.output
    assert not out.exists()


def test_a_recipe_that_contradicts_its_start_is_refused_before_anything_starts(tmp_path):
    """The start was cloned with proprioception, and the recipe turns it off."""
    start = tmp_path / "start"
    start.mkdir()
    write_start(start)
    recipe = tmp_path / "own.yaml"
    text = find_recipe(PLAN.recipe).read_text(encoding="utf-8")
    recipe.write_text(text.replace("  checkpoint: tiny\n", "  checkpoint: tiny\n  proprio: false\n"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"policy\.proprio: a checkpoint .* is always fed it"):
        jobs_of(replace(PLAN, start=str(start), recipe=str(recipe)), tmp_path / "out")


def test_a_start_that_is_no_checkpoint_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match="missing model"):
        jobs_of(replace(PLAN, start=str(tmp_path)), tmp_path / "out")


def test_a_study_of_another_kind_is_not_read_as_this_one(tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    settings = {"study": "groups", "plan": json.loads(json.dumps(PLAN.settings())), "base": "name: toy"}
    (out / "study.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match="expected a study of libero"):
        read_study(out)
    (out / "study.json").write_text(json.dumps(settings | {"study": "libero"}), encoding="utf-8")
    assert read_study(out) == (PLAN, "name: toy")
