"""The grid of the Meta-World study and what runs it: complete, resumable, undeterred by a failed run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from vla_rl.errors import UserError
from vla_rl.learner.checkpoint_folder import problem_of, write_manifest
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.rl.surrogates import KINDS
from vla_rl.studies import jobs as study_jobs
from vla_rl.studies.metaworld.grid import PRESETS, SWEEP_TASKS, Grid, StudyRun
from vla_rl.studies.metaworld.runner import RUN_FILE, work_of
from vla_rl.studies.surrogate_labels import PLAIN_SURROGATES, StudySurrogate

PYTHON = sys.executable
GRID = Grid(tasks=("door-open-v3",), surrogates=("gipo:0.5", "ppo"), regimes=("stale",), seeds=2, optimizer_steps=6000)

# Stands in for `vla-rl train`: notes its call in the run's folder; seed 1 of ppo fails.
FAKE = """
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--run-dir") + 1])
(folder / "calls").write_text(" ".join(sys.argv))
fails = {"surrogate.name=ppo", "seed=1"} <= set(sys.argv) and not (folder.parent / "mended").exists()
if (folder.parent / "slow").exists():
    import time
    time.sleep(60)
    (folder / "slept").touch()
sys.exit(1 if fails else 0)
"""


def run_grid(grid, out, *, jobs=1, say=lambda _: None):
    return study_jobs.run_study(work_of(grid, out), at_once=jobs, say=say)


@pytest.fixture
def fake_train(stand_in, tmp_path):
    stand_in(FAKE)
    return tmp_path / "study"


def test_the_full_grid_is_the_authors_400_runs_and_the_small_one_30():
    assert len(PRESETS["full"].runs()) == 8 * 10 * 5 == 400
    assert len(SWEEP_TASKS) == 10
    assert len(PRESETS["small"].runs()) == 3 * 2 * 5


def test_a_whole_recipe_as_it_is_shown_makes_the_same_runs_as_the_one_that_comes_with_the_program(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(load_recipe(find_recipe("metaworld_stale")).dump_yaml(), encoding="utf-8")
    for regime, ratio in {"stale": 55.17, "fresh": 5.472}.items():
        run = StudyRun("push-v3", "ppo", regime, 1)
        shipped = replace(GRID, optimizer_steps=5000).recipe_of(run)
        assert (shipped.replay.replay_ratio, shipped.replay.old_threshold) == (ratio, 500)
        assert replace(GRID, optimizer_steps=5000, recipe=str(own)).recipe_of(run) == shipped


def test_the_paper_s_grid_has_every_surrogate_on_both_regimes_at_its_length():
    grid = PRESETS["paper"]
    assert len(grid.runs()) == 8 * 9 * 2 * 5 == 720
    assert {run.surrogate for run in grid.runs()} == {
        *("gipo:0.2:0.5", "gipo:0.2", "gipo:0.5:0.5", "gipo:0.5", "gipo:1:0.5", "gipo"),
        *("ppo", "sapo", "no_clip"),
    }
    stale, fresh = (grid.recipe_of(StudyRun("push-v3", "gipo:0.2:0.5", regime, 4)) for regime in ("stale", "fresh"))
    assert (stale.surrogate.sigma, stale.surrogate.negative_sigma_scale) == (0.2, 0.5)
    for recipe in (stale, fresh):
        assert recipe.budget.optimizer_steps == 100_000
        assert recipe.learner.batch_segments * recipe.replay.segment_length == 2048
        assert recipe.replay.capacity == 50_000 * 64
        assert recipe.replay.old_threshold == 10_000
    # A full ring spans 2 x 4,273 versions fresh, of 2,048 decisions each: 17.5 million, 5.47 times what it holds.
    assert fresh.replay.replay_ratio == pytest.approx(2 * 4273 * 2048 / 3_200_000, rel=1e-3)
    assert stale.replay.replay_ratio == pytest.approx(10_000 / (1 - 0.884) * 2048 / 3_200_000, rel=1e-3)


def test_warm_ups_and_checkpoints_of_a_short_study_are_a_long_one_s_in_proportion():
    run = StudyRun("push-v3", "ppo", "stale", 0)
    short = replace(PRESETS["paper"], optimizer_steps=10_000).recipe_of(run)
    assert (short.optimizer.policy_warmup, short.optimizer.value_warmup) == (100, 100)
    assert short.optimizer.critic_only_steps == 50
    assert (short.checkpoint.every_optimizer_steps, short.replay.capacity) == (1000, 320_000)
    small = PRESETS["small"].recipe_of(PRESETS["small"].runs()[0])
    assert small.checkpoint.every_optimizer_steps == small.budget.optimizer_steps == 5000
    assert small.optimizer.policy_warmup == 0


def test_a_short_study_logs_often_enough_for_its_closing_values():
    def every(preset, optimizer_steps):
        grid = replace(PRESETS[preset], optimizer_steps=optimizer_steps, regimes=("stale",))
        return grid.recipe_of(grid.runs()[0]).logging.every_optimizer_steps

    assert [every("paper", steps) for steps in (100_000, 10_000, 400)] == [250, 40, 1]
    assert [every("small", steps) for steps in (16_000, 5000, 3000)] == [20, 20, 12]


@pytest.mark.parametrize("regime", ["stale", "fresh"])
def test_a_study_with_gaussian_actions_has_both_regimes(regime):
    grid = Grid(("push-v3",), ("gipo",), (regime,), 1, 3000, "metaworld_gaussian_stale")
    recipe = grid.recipe_of(grid.runs()[0])
    assert recipe.policy.distribution == "gaussian"
    # Half the updates of the recipe, half its ring; each update uses 16 segments of 50.
    assert (recipe.replay.capacity, recipe.replay.old_threshold) == (26_000, 300)
    span = {"stale": 300 / (1 - 0.884), "fresh": 0.0855 * 3000}[regime]
    assert recipe.replay.replay_ratio == pytest.approx(span * 800 / 26_000, rel=1e-3)


def test_every_run_has_a_name_and_a_recipe_of_its_own():
    for grid in PRESETS.values():
        runs = grid.runs()
        assert len({run.name for run in runs}) == len(runs)
        recipe = grid.recipe_of(runs[-1])
        assert (recipe.name, recipe.seed, recipe.regime) == (runs[-1].name, runs[-1].seed, runs[-1].regime)
        assert recipe.env.tasks == [runs[-1].task]


def test_the_ring_grows_with_the_budget_so_that_a_decision_is_used_as_often():
    recipes = [replace(GRID, optimizer_steps=n).recipe_of(GRID.runs()[0]) for n in (4000, 8000, 16000)]
    assert [recipe.replay.capacity for recipe in recipes] == [25_000, 50_000, 100_000]
    assert {recipe.replay.replay_ratio for recipe in recipes} == {55.17}
    assert [recipe.replay.old_threshold for recipe in recipes] == [400, 800, 1600]
    # 4 envs: 500 decisions of each, half of the rows that two episodes of 501 leave: 2 * 500 + 1,001.
    assert replace(GRID, optimizer_steps=1000).recipe_of(GRID.runs()[0]).replay.capacity == 4 * 2001


def test_a_run_ends_by_its_updates_alone(tmp_path):
    own = tmp_path / "own.yaml"
    text = find_recipe("metaworld_stale").read_text(encoding="utf-8")
    own.write_text(text.replace("  optimizer_steps: 8000", "  optimizer_steps: 8000\n  minutes: 1\n  env_steps: 9000"))
    budget = replace(GRID, recipe=str(own)).recipe_of(GRID.runs()[0]).budget
    assert (budget.optimizer_steps, budget.minutes, budget.env_steps) == (6000, None, None)


def test_a_run_plays_no_evaluation_that_the_study_would_not_read(tmp_path):
    own = tmp_path / "own.yaml"
    evaluation = "evaluation: {episodes_per_task: 4, every_optimizer_steps: 10}\ncheckpoint: {keep_best: true}\n"
    own.write_text(f"base: metaworld_stale\nname: own\n{evaluation}", encoding="utf-8")
    grid = replace(GRID, recipe=str(own))
    assert grid.base().evaluation.episodes_per_task == 4
    for run in grid.runs():
        recipe = grid.recipe_of(run)
        assert (recipe.evaluation.episodes_per_task, recipe.evaluation.every_optimizer_steps) == (0, None)


def test_episodes_that_are_cut_short_are_refused(tmp_path):
    own = tmp_path / "own.yaml"
    text = find_recipe("metaworld_stale").read_text(encoding="utf-8")
    own.write_text(text.replace("  reward_scale", "  horizon: 100\n  reward_scale"))
    with pytest.raises(UserError, match=r"env\.horizon is 100 in .*own\.yaml; .* must be 500"):
        replace(GRID, recipe=str(own)).recipe_of(GRID.runs()[0])


def test_a_recipe_of_another_environment_is_refused():
    with pytest.raises(UserError, match=r"--recipe: env\.name is libero in libero_tiny_gipo; .* env\.name metaworld$"):
        run_grid(replace(GRID, recipe="libero_tiny_gipo"), Path("unused"))


def test_runs_differ_in_their_axes_alone():
    first, *others = (PRESETS["small"].recipe_of(run).model_dump() for run in PRESETS["small"].runs())
    for other in others:
        differing = {key for key in first if first[key] != other[key]}
        assert differing <= {"name", "seed", "surrogate", "env"}


def test_a_surrogate_is_written_with_its_sigma_and_the_factor_for_bad_actions():
    assert StudySurrogate("gipo").sigma == (1.0, 1.0)
    assert StudySurrogate("gipo:0.5").sigma == (0.5, 1.0)
    assert StudySurrogate("gipo:0.2:0.5").sigma == (0.2, 0.5)
    assert StudySurrogate("ppo").sigma is None


def test_every_surrogate_is_one_of_the_study():
    assert {"gipo", *PLAIN_SURROGATES} == set(KINDS)


def test_a_surrogate_has_one_label_however_its_numbers_are_written():
    grid = replace(GRID, surrogates=("gipo:1.0:1", "gipo:.50", "gipo:1e0:0.5", "gipo:0.123456789"))
    assert grid.surrogates == ("gipo", "gipo:0.5", "gipo:1:0.5", "gipo:0.123456789")


def test_a_surrogate_that_stands_twice_is_refused():
    with pytest.raises(UserError, match=r"--surrogates: found gipo,ppo,gipo:1\.0; every surrogate stands once"):
        replace(GRID, surrogates=("gipo", "ppo", "gipo:1.0"))


@pytest.mark.parametrize("label", ["gippo", "ppo:1", "gipo:0", "gipo:inf", "gipo:a", "gipo:1:1:1", ""])
def test_another_surrogate_is_refused(label):
    with pytest.raises(UserError, match="--surrogates"):
        StudySurrogate(label)


def test_unknown_tasks_and_regimes_are_refused_with_what_may_have_been_meant():
    with pytest.raises(UserError, match=r"--tasks: found 'door-open' \(did you mean 'door-open-v3'\?\)$"):
        replace(GRID, tasks=("push-v3", "door-open"))
    with pytest.raises(UserError, match=r"found 'psh-v3' \(did you mean 'push-v3'\?\), 'x'; allowed are assembly-v3, "):
        replace(GRID, tasks=("psh-v3", "x"))
    with pytest.raises(UserError, match="--tasks: found push-v3,push-v3; at least one name, and none twice"):
        replace(GRID, tasks=("push-v3", "push-v3"))
    with pytest.raises(UserError, match="--tasks: found nothing; "):
        replace(GRID, tasks=())
    with pytest.raises(UserError, match="--regimes"):
        replace(GRID, regimes=("old",))


def test_a_failed_run_does_not_end_the_grid_and_is_tried_again(fake_train):
    said = []
    progress = run_grid(GRID, fake_train, jobs=2, say=said.append)
    assert [run.name for run in progress.failed] == ["door-open-v3_ppo_stale_seed1"]
    assert len(progress.finished) == 3
    folders = {path.name for path in (fake_train / "runs").iterdir()}
    assert folders == {
        "door-open-v3_gipo-0.5_stale_seed0",
        "door-open-v3_gipo-0.5_stale_seed1",
        "door-open-v3_ppo_stale_seed0",
        "door-open-v3_ppo_stale_seed1.failed",
    }
    assert any("FAILED with exit code 1" in line for line in said)
    assert "about 0 min left" in said[-1]

    (fake_train / "runs" / "mended").touch()
    progress = run_grid(GRID, fake_train, jobs=1, say=said.append)
    assert (progress.kept, [run.name for run in progress.finished]) == (3, ["door-open-v3_ppo_stale_seed1"])
    assert not (fake_train / "runs" / "door-open-v3_ppo_stale_seed1.failed").exists()


def test_a_study_says_now_and_then_how_far_its_runs_are(fake_train, monkeypatch):
    monkeypatch.setattr(study_jobs, "HEARTBEAT_S", 0.3)
    (fake_train / "runs").mkdir(parents=True)
    (fake_train / "runs" / "slow").touch()
    said = []

    def stop_when_half_is_done(line):
        said.append(line)
        if "ppo_stale_seed0 50 %" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    def write_half():
        folder = fake_train / "runs" / "door-open-v3_ppo_stale_seed0.unfinished"
        wait_until((folder / "calls").exists)
        with MetricsWriter(folder, tensorboard=False, resume_at=None) as writer:
            writer.write(Clocks(optimizer_steps=3000), {})

    threading.Thread(target=write_half, daemon=True).start()
    assert run_grid(replace(GRID, surrogates=("ppo",)), fake_train, jobs=1, say=stop_when_half_is_done).interrupted
    assert "[0/2] going on; running: door-open-v3_ppo_stale_seed0 50 %; 1 waiting, about " in said[-1]


def test_an_interrupted_run_is_begun_again(fake_train):
    leftover = fake_train / "runs" / "door-open-v3_ppo_stale_seed0.unfinished"
    leftover.mkdir(parents=True)
    (leftover / "metrics.jsonl").touch()
    run_grid(replace(GRID, seeds=1), fake_train)
    finished = fake_train / "runs" / "door-open-v3_ppo_stale_seed0"
    assert {path.name for path in finished.iterdir()} == {"calls", "output.log", RUN_FILE}
    assert not leftover.exists()
    assert "surrogate.name=ppo" in (finished / "calls").read_text()


def test_a_run_that_keeps_its_ring_is_continued_and_loses_the_ring_when_it_has_finished(fake_train, tmp_path):
    own = tmp_path / "own.yaml"
    text = find_recipe("metaworld_stale").read_text(encoding="utf-8")
    own.write_text(text.replace("save_replay: false", "save_replay: true"))
    begun = fake_train / "runs" / "door-open-v3_ppo_stale_seed0.unfinished"
    checkpoint = begun / "checkpoints" / "optimizer_step_3000"
    (checkpoint / "rank_0" / "replay").mkdir(parents=True)
    for path in (begun / "recipe.yaml", checkpoint / "policy", checkpoint / "rank_0" / "replay" / "ring"):
        path.touch()
    write_manifest(checkpoint)
    run_grid(replace(GRID, seeds=1, recipe=str(own)), fake_train)
    first, second = (fake_train / "runs" / f"door-open-v3_{name}_stale_seed0" for name in ("gipo-0.5", "ppo"))
    assert "--resume" not in (first / "calls").read_text()
    assert "--resume" in (second / "calls").read_text()
    checkpoint = second / "checkpoints" / "optimizer_step_3000"
    assert (problem_of(checkpoint), (checkpoint / "policy").exists()) == (None, True)
    assert not (checkpoint / "rank_0" / "replay").exists()


def test_the_time_of_a_continued_run_counts_what_it_took_before(fake_train, tmp_path):
    own = tmp_path / "own.yaml"
    text = find_recipe("metaworld_stale").read_text(encoding="utf-8")
    own.write_text(text.replace("save_replay: false", "save_replay: true"))
    begun = fake_train / "runs" / "door-open-v3_ppo_stale_seed0.unfinished"
    begun.mkdir(parents=True)
    with MetricsWriter(begun, tensorboard=False, resume_at=None) as writer:
        writer.write(Clocks(optimizer_steps=3000, seconds=5000.0), {})
    grid = replace(GRID, seeds=1, surrogates=("ppo", "sapo"), recipe=str(own))
    run_grid(grid, fake_train)
    seconds = [
        json.loads((fake_train / "runs" / f"door-open-v3_{name}_stale_seed0" / RUN_FILE).read_text())["seconds"]
        for name in ("ppo", "sapo")
    ]
    assert seconds[0] == 5000.0
    assert seconds[1] < 1000.0


def test_a_study_may_grow_but_not_change_its_budget(fake_train):
    run_grid(replace(GRID, seeds=1), fake_train, jobs=2)
    run_grid(replace(GRID, surrogates=("sapo",), seeds=1), fake_train, jobs=2)
    assert json.loads((fake_train / "study.json").read_text())["surrogates"] == ["gipo:0.5", "ppo", "sapo"]
    with pytest.raises(UserError, match="optimizer_steps 6000"):
        run_grid(replace(GRID, optimizer_steps=7000), fake_train, jobs=2)


def test_the_same_recipe_under_another_path_continues_the_study(fake_train, tmp_path):
    run_grid(replace(GRID, seeds=1), fake_train, jobs=2)
    (tmp_path / "own.yaml").write_text(find_recipe("metaworld_stale").read_text(encoding="utf-8"), encoding="utf-8")
    assert run_grid(replace(GRID, seeds=1, recipe=str(tmp_path / "own.yaml")), fake_train, jobs=2).kept == 2
    with pytest.raises(UserError, match=r"than metaworld_gaussian_stale is now; they differ in .*policy\.distribution"):
        run_grid(replace(GRID, seeds=1, recipe="metaworld_gaussian_stale"), fake_train, jobs=2)


def test_a_recipe_that_was_changed_since_is_refused(fake_train):
    run_grid(replace(GRID, seeds=1), fake_train, jobs=2)
    path = fake_train / "study.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base": settings["base"].replace("hidden_dim: 128", "hidden_dim: 64")}))
    with pytest.raises(UserError, match=r"than metaworld_stale is now; they differ in policy\.hidden_dim: "):
        run_grid(GRID, fake_train, jobs=2)


def test_a_study_begun_before_the_program_had_a_field_goes_on(fake_train):
    run_grid(replace(GRID, seeds=1), fake_train, jobs=2)
    path = fake_train / "study.json"
    settings = json.loads(path.read_text())
    assert "  compile: false\n" in settings["base"]
    path.write_text(json.dumps(settings | {"base": settings["base"].replace("  compile: false\n", "")}))
    assert run_grid(replace(GRID, seeds=1), fake_train, jobs=2).kept == 2


def test_two_studies_cannot_run_in_one_folder(fake_train):
    def second(_line):
        with pytest.raises(UserError, match="another process is writing"):
            run_grid(GRID, fake_train)
        refused.append(True)

    refused = []
    run_grid(replace(GRID, seeds=1), fake_train, jobs=1, say=second)
    assert refused


STUDY_IN_A_PROCESS = """
import sys
from pathlib import Path
from vla_rl.studies import jobs as study_jobs
from vla_rl.studies.metaworld.grid import Grid
from vla_rl.studies.metaworld.runner import work_of
script, out = sys.argv[1:]
study_jobs.sys.executable = script
grid = Grid(tasks=("door-open-v3",), surrogates=("ppo",), regimes=("stale",), seeds=1, optimizer_steps=6000)
study_jobs.run_study(work_of(grid, Path(out)), at_once=1, say=lambda _: None)
"""


def test_runs_end_with_a_study_that_is_killed(fake_train):
    """The kernel sees to it: nothing of the study is left that could."""
    (fake_train / "runs").mkdir(parents=True)
    (fake_train / "runs" / "slow").touch()
    command = [PYTHON, "-c", STUDY_IN_A_PROCESS, study_jobs.sys.executable, str(fake_train)]
    study = subprocess.Popen(command)
    calls = fake_train / "runs" / "door-open-v3_ppo_stale_seed0.unfinished" / "calls"
    wait_until(calls.exists)
    (run,) = psutil.Process(study.pid).children()
    study.kill()
    study.wait(10)
    run.wait(30)  # it sleeps for longer


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_recipe_that_does_not_fit_starts_nothing(fake_train):
    with pytest.raises(UserError, match="regime"):
        run_grid(replace(GRID, optimizer_steps=100), fake_train, jobs=2)
    assert not fake_train.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_ends_the_runs_and_finished_ones_stay(fake_train, number):
    run_grid(replace(GRID, seeds=1, surrogates=("ppo",)), fake_train)
    (fake_train / "runs" / "slow").touch()
    slow = fake_train / "runs" / "door-open-v3_gipo-0.5_stale_seed0.unfinished" / "calls"

    def stop_when_it_runs():
        wait_until(slow.exists)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop_when_it_runs, daemon=True).start()
    assert run_grid(replace(GRID, seeds=1), fake_train, jobs=2).interrupted
    assert not slow.with_name("slept").exists()  # after a minute
    assert (fake_train / "runs" / "door-open-v3_ppo_stale_seed0" / RUN_FILE).exists()
    assert (fake_train / "runs" / "door-open-v3_gipo-0.5_stale_seed0.unfinished").exists()
