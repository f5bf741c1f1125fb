"""Fields of a supervised recipe change what they are about."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import pytest
from sft_demos import RECIPE, write_demos
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.errors import UserError
from vla_rl.learner.collectives import Collectives
from vla_rl.recipe import build_supervised_recipe
from vla_rl.reporting.run_index import index_run
from vla_rl.sft import stage
from vla_rl.sft.frames import prepare_frames
from vla_rl.sft.plan import SupervisedPlan, make_supervised_plan
from vla_rl.sft.supervised_evaluations import options_of_supervised
from vla_rl.sft.supervised_run import SupervisedRun, np_spread


def planned(path: Path, *overrides: str) -> SupervisedPlan:
    return make_supervised_plan(build_supervised_recipe(RECIPE.format(path=path), overrides))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run's folder, in which prepared frames stay from one test to the next."""
    return tmp_path_factory.mktemp("run")


def test_evaluations_start_from_the_states_that_the_recipe_names(demos: Path) -> None:
    plays = ("demos.suite=libero_spatial", "evaluation={episodes_per_task: 2, init_states: widened}", "seed=3")
    options = options_of_supervised(planned(demos, *plays))
    assert (options.env.init_states, options.seeds) == ("widened", (3,))


def test_a_run_is_resumed_from_another_directory_with_the_demonstrations_and_the_cache_that_it_began_with(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, folder = tmp_path / "start", tmp_path / "start" / "runs" / "t"
    for each in (folder, start / "frames", tmp_path / "other"):
        each.mkdir(parents=True)
    (start / "toys").symlink_to(demos)
    recipe = build_supervised_recipe(RECIPE.format(path="toys"), ["demos.cache=frames"])
    (folder / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps({"directory": str(start)}), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "other")
    resume = ("sft", "../start/runs/t", "--resume", "--dry-run")
    told = CliRunner().invoke(app, resume)
    assert told.exit_code == 0
    assert re.search(rf"on {start / 'toys'} .*in {start / 'frames'}$", told.stdout, re.MULTILINE | re.DOTALL)
    (start / "toys").unlink()
    lost = rf"demos\.path: .* of the name toys .* started in, which was {start}, .* back there"
    refused = CliRunner().invoke(app, resume)
    assert (refused.exit_code, bool(re.search(lost, refused.stderr))) == (2, True)


def test_a_path_that_leads_nowhere_is_told_with_its_field(demos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, wrong in (("none", "does not exist"), ("notes.txt", "unknown format")):
        with pytest.raises(ValueError, match=rf"^demos\.path: {tmp_path / path}: {wrong}"):
            planned(tmp_path / path)
    with pytest.raises(ValueError, match=r"^policy\.checkpoint: .*none' is not a directory"):
        planned(demos, f"policy.checkpoint={tmp_path / 'none'}")


def test_commands_that_a_run_advises_can_be_typed(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.yaml").write_text(RECIPE.format(path=demos), encoding="utf-8")
    done = CliRunner().invoke(app, ["sft", "./t.yaml", "budget.optimizer_steps=1", "--run-dir", "my run"])
    assert done.stdout.endswith("policy.checkpoint='my run/policy', or vla-rl eval 'my run/policy'\n")
    refused = CliRunner().invoke(app, ["train", "./my run", "--resume"])
    advised = re.search("Use `vla-rl (.*)`", refused.stderr)
    assert advised
    assert CliRunner().invoke(app, shlex.split(advised[1])).exit_code == 0


def prepared(plan: SupervisedPlan, folder: Path) -> SupervisedRun:
    run = SupervisedRun(plan, folder, resume_from=None, rank=0, num_ranks=1)
    run.prepare(lambda _done, _total: None)
    return run


def first_loss(demos: Path, folder: Path, *overrides: str) -> float:
    with prepared(planned(demos, "loss.value_coefficient=0.5", *overrides), folder) as run:
        return run.update().loss


@pytest.fixture(scope="module")
def usual_loss(demos: Path, folder: Path) -> float:
    loss = first_loss(demos, folder)
    assert loss == first_loss(demos, folder)
    return loss


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "demos.rotated=true",
        "loss.label_sigma=2",
        "loss.value_coefficient=0",
        "loss.discount=0.5",
        "augmentation.crop=1",
        "augmentation.brightness=0",
        "augmentation.contrast=0",
        "augmentation.saturation=0",
        "augmentation.hue=0",
        "learner.micro_batch=3",
        "learner.accumulation=2",
        "learner.precision=bf16",
    ],
)
def test_a_field_changes_the_loss_of_the_first_update(
    demos: Path, folder: Path, usual_loss: float, override: str
) -> None:
    assert first_loss(demos, folder, override) != usual_loss


def test_statistics_are_stored_under_the_key_the_suite_or_the_name_of_the_path(demos: Path) -> None:
    for overrides, key in (
        ((), "toys"),
        (("demos.suite=libero_goal",), "libero_goal"),
        (("demos.suite=libero_goal", "demos.key=mine"), "mine"),
    ):
        assert planned(demos, *overrides).policy.statistics == key


def test_a_folder_that_is_named_by_its_version_has_the_name_of_the_one_above(tmp_path: Path) -> None:
    assert planned(write_demos(tmp_path / "libero_mine" / "1.0.0", episodes=1)).policy.statistics == "libero_mine"


def test_no_ops_are_left_out_and_gripper_commands_read_as_asked(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "still", episodes=1)
    with h5py.File(next(path.glob("pick_up_the_red*")), "a") as file:
        file["data/demo_0/actions"][3:6, :6] = 0.0
    assert planned(path).samples.rollouts.num_rows == 24
    assert planned(path, "demos.drop_no_ops=true").samples.rollouts.num_rows == 21
    for convention, command in (("signed", 1.0), ("binary", -1.0)):  # every command in the files is 1: close, or open
        actions = planned(path, f"demos.gripper={convention}").samples.rollouts.actions
        assert (actions[:, 6] == command).all()


def test_proprioception_is_added_to_a_checkpoint_without_it(run, demos: Path) -> None:
    done = run("policy.proprio=false", "budget.optimizer_steps=1")
    checkpoint = (f"policy.checkpoint={done.policy}", "policy.image_size=null")
    without, added = planned(demos, *checkpoint), planned(demos, *checkpoint, "demos.add_proprio=true")
    assert without.policy.build(device="cpu").model.proprio_projector is None
    projector = added.policy.build(device="cpu").model.proprio_projector
    width = len(projector.fc2.bias)
    assert projector.fc1.in_features == 8
    new = 8 * width + width + width * width + width  # two layers with biases, all of them trained
    assert added.policy.trainable_parameters - without.policy.trainable_parameters == new


def test_at_most_so_many_held_out_samples_are_measured_evenly_spread(demos: Path, folder: Path) -> None:
    assert np_spread(10, 3).tolist() == [0, 4, 9]
    assert np_spread(3, 10).tolist() == [0, 1, 2]
    found = {}
    for most in (1, 10, 256):  # two episodes are held out, of 12 - 7 samples each
        plan = planned(demos, "demos.held_out=0.5", f"demos.held_out_samples={most}")
        with prepared(plan, folder) as run:
            found[most] = run.measure_held_out()
    assert found[1]["held_out/l1"] != found[10]["held_out/l1"]
    assert found[10] == found[256]


def test_frames_in_a_cache_are_prepared_once_for_all_runs_and_stay(demos: Path, tmp_path: Path) -> None:
    cache, counted = tmp_path / "cache", []
    for name in ("one", "two"):
        with SupervisedRun(
            planned(demos, f"demos.cache={cache}"), tmp_path / name, resume_from=None, rank=0, num_ranks=1
        ) as run:
            run.prepare(lambda done, _total: counted.append(done))
            run.forget_frames()
        assert not (tmp_path / name / "frames").exists()
    assert counted == [1, 2, 3, 4]  # by the first run alone
    with prepared(planned(demos, f"demos.cache={cache}", "demos.cameras=[agentview, wrist]"), tmp_path / "three"):
        assert len(list(cache.glob("*.bin"))) == 2  # other frames have a file of their own


def test_frames_are_known_again_however_the_path_is_written_and_whatever_else_lies_beside_the_data(
    demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demos, tmp_path / "toys")
    frames = "demos.cache=~/toys/frames"
    (tmp_path / "runs").mkdir()
    for path in (Path("toys"), Path("~/toys"), tmp_path / "runs" / ".." / "toys"):
        with prepared(planned(path, frames), tmp_path / "runs"):
            pass
    assert len(list((tmp_path / "toys" / "frames").glob("*.bin"))) == 1
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("below", ["", "/frames"])
def test_a_cache_that_cannot_be_a_folder_is_refused_before_anything_is_written(run, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"demos\.cache: .* found {tmp_path}/file{below}: {tmp_path}/file is a file"):
        run(f"demos.cache={tmp_path}/file{below}")
    assert not (tmp_path / "run").exists()


def test_of_two_runs_that_share_a_cache_one_prepares_the_frames_and_the_other_waits(
    demos: Path, tmp_path: Path
) -> None:
    first_began, second_waits = threading.Event(), threading.Event()
    counted: list[int] = []
    plan = planned(demos, f"demos.cache={tmp_path}")
    prepare = partial(
        prepare_frames,
        plan.frames_file(tmp_path),
        plan.demos,
        plan.samples.rollouts,
        cameras=["agentview"],
        transform=plan.transform,
        threads=1,
        collectives=Collectives(timeout_s=1.0),
    )

    def hold(done: int, _total: int) -> None:
        first_began.set()
        if done == 1:
            assert second_waits.wait(60.0)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(prepare, progress=hold)
        assert first_began.wait(60.0)
        second = prepare(progress=lambda done, _total: counted.append(done), waits=second_waits.set)
    assert counted == []
    found = [[frames.planes(row, 0).mean() for row in range(48)] for frames in (first.result(), second)]
    assert found[0] == found[1]
    assert min(found[1]) > 0


def test_a_run_ends_although_something_else_lies_beside_its_frames(run, tmp_path: Path) -> None:
    beside = tmp_path / "run" / "frames" / ".nfs01"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert run("budget.optimizer_steps=1").policy.is_dir()
    assert list(beside.parent.iterdir()) == [beside]


def test_frames_that_a_killed_run_left_unfinished_are_prepared_again(demos: Path, tmp_path: Path) -> None:
    with prepared(planned(demos), tmp_path) as run:
        file = run.plan.frames_file(tmp_path)
        whole = file.read_bytes()
    file.with_suffix(".json").unlink()
    file.write_bytes(bytes(2 * len(whole)))
    with prepared(planned(demos), tmp_path):
        assert file.read_bytes() == whole


def test_frames_that_find_no_room_say_how_much_they_need_and_leave_none_reserved(demos: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # 48 rows of 3 x 14 x 14 bytes are 28,224
    try:
        with pytest.raises(OSError, match=r"frames take 28 KiB.*demos\.cache=FOLDER.*frames\.bin"):
            prepared(planned(demos), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "frames" / "frames.bin").stat().st_size == 0
    with prepared(planned(demos), tmp_path):
        pass


def test_a_signal_while_frames_are_prepared_ends_the_run_which_can_be_resumed(run, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_counter", lambda *_: lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        stopped = run("budget.optimizer_steps=1")
    assert (stopped.interrupted, stopped.optimizer_steps, stopped.policy) == (True, 0, None)
    assert not (tmp_path / "run" / "frames" / "frames.json").exists()
    resumed = run("budget.optimizer_steps=1", resume=True)
    assert (resumed.interrupted, resumed.optimizer_steps) == (False, 1)


def test_log_points_measurements_and_checkpoints_come_as_often_as_asked(run) -> None:
    done = run(
        "demos.held_out=0.5",
        "logging={every_optimizer_steps: 2, held_out_every_optimizer_steps: 3, tensorboard: true}",
        "checkpoint={every_optimizer_steps: 1, keep: 2}",
    )
    points = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [point["optimizer_steps"] for point in points] == [2, 3, 4]  # 3 for the measurement
    assert ["held_out/loss" in point for point in points] == [False, True, True]
    kept = {path.name for path in (done.run_dir / "checkpoints").glob("optimizer_step_*")}
    assert kept == {"optimizer_step_3", "optimizer_step_4"}
    assert list((done.run_dir / "tensorboard").iterdir())


@pytest.mark.parametrize("ends", ["budget.optimizer_steps=3", "budget.optimizer_steps=1000"])
def test_the_last_update_has_a_log_point_however_rare_they_are(run, monkeypatch, ends: str) -> None:
    monkeypatch.setattr(SupervisedRun, "is_spent", lambda run, _budget=None: run.optimizer_steps == 3)
    done = run("demos.held_out=0", "logging.every_optimizer_steps=2", ends)
    points = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [point["optimizer_steps"] for point in points] == [2, 3]
    assert index_run(done.run_dir).optimizer_steps == 3


def test_a_run_whose_minutes_are_over_after_a_log_point_writes_no_other(run, monkeypatch) -> None:
    monkeypatch.setattr(SupervisedRun, "is_spent", lambda run, _budget=None: run.optimizer_steps == 2)
    done = run("demos.held_out=0", "logging.every_optimizer_steps=2", "budget.optimizer_steps=1000")
    assert len((done.run_dir / "metrics.jsonl").read_text().splitlines()) == 1


def test_what_is_held_out_is_measured_at_the_end_also_of_a_run_whose_minutes_are_over(run, monkeypatch) -> None:
    monkeypatch.setattr(SupervisedRun, "is_spent", lambda run, _budget=None: run.optimizer_steps == 3)
    done = run("demos.held_out=0.3", "budget.optimizer_steps=1000", "checkpoint.every_optimizer_steps=1")
    points = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [point["optimizer_steps"] for point in points if "held_out/loss" in point] == [3]
    assert "held_out/loss" in done.metrics


def test_a_run_ends_when_its_minutes_are_over(run) -> None:
    done = run("budget.minutes=0.000001")
    assert done.optimizer_steps < 4
    assert not done.interrupted
    assert done.policy.is_dir()


def test_threads_are_those_asked_for(demos: Path) -> None:
    plan = planned(demos, "runtime={device: cpu, threads_per_process: 3, loader_threads: 5}")
    assert (plan.threads, plan.loader_threads) == (3, 5)


def test_threads_are_the_cores_of_a_rank(demos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_rl.run.ranks.usable_cores", lambda: 24)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    plan = planned(demos, "runtime={device: cpu, threads_per_process: 0, loader_threads: 0}")
    assert (plan.threads, plan.loader_threads) == (8, 8)
