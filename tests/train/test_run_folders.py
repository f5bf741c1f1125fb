"""The folder of a run: damaged checkpoints, full disks, modes of files, and that no run is written over."""

import os
import resource
import shlex
import shutil
import signal

import pytest
from toy_runs import contents, metrics, own_blocks, run, toy_recipe
from typer.testing import CliRunner

from vla_rl import train as training
from vla_rl.cli.main import app
from vla_rl.errors import RunFailureError, UserError
from vla_rl.learner.checkpoint import find_latest
from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.reporting.report import write_report


@pytest.mark.parametrize("content", [b"", b"\x80\xff\x1b[2J\n", b"../elsewhere\n"])
def test_a_latest_that_names_no_checkpoint_is_called_damaged_and_not_repeated(tmp_path, content):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "latest").write_bytes(content)
    assert find_latest(tmp_path).damaged == [f"{folder}/latest: damaged, it names no checkpoint"]


@pytest.mark.parametrize("damage", ["truncated", "removed", "latest alone"])
def test_a_resume_without_a_whole_checkpoint_is_refused_and_everything_is_kept(tmp_path, damage):
    run(toy_recipe(), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    for folder in checkpoints.glob("optimizer_step_*"):
        match damage:
            case "truncated":
                (folder / "policy.safetensors").write_bytes(b"")
            case "removed":
                (folder / "policy.safetensors").unlink()
            case _:
                shutil.rmtree(folder)
    before = contents(tmp_path / "run")
    with pytest.raises(UserError) as refusal:
        run(toy_recipe(budget={"optimizer_steps": 9}), tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before
    message = str(refusal.value)
    if damage == "latest alone":
        assert f"{checkpoints}/latest: it names optimizer_step_6, which is not there" in message
    else:
        assert all(f"{checkpoints}/optimizer_step_{steps}: policy.safetensors" in message for steps in (3, 6))

    advice = shlex.split(message.rpartition("vla-rl ")[2])
    assert CliRunner().invoke(app, [*advice, "runtime.device=cpu"]).exit_code == 0
    assert [point["optimizer_steps"] for point in metrics(tmp_path / "run-anew")] == [1, 2, 3, 4, 5, 6]
    assert contents(tmp_path / "run") == before


def test_damaged_checkpoints_push_no_whole_ones_out(tmp_path):
    """The newest is damaged, so the run goes on from the one before: what it writes is what is kept."""
    more = {"every_optimizer_steps": 4, "keep": 1}
    run(toy_recipe(checkpoint=more | {"keep": 2}, budget={"optimizer_steps": 8}), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "optimizer_step_8" / "policy.safetensors").write_bytes(b"")
    outcome, _ = run(toy_recipe(checkpoint=more, budget={"optimizer_steps": 6}), tmp_path / "run", resume=True)
    assert outcome.checkpoint == checkpoints / "optimizer_step_6"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "optimizer_step_6", "optimizer_step_8"]
    assert find_latest(tmp_path / "run").newest.path == checkpoints / "optimizer_step_6"


def test_after_a_full_disk_the_advice_is_a_command_that_works(tmp_path, monkeypatch):
    def full(*_, **_named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("vla_rl.run.training.save_ring", full)
        with pytest.raises(RunFailureError, match="No other was written, so what was learned is lost") as failure:
            run(toy_recipe(), tmp_path / "run")
    advice = shlex.split(str(failure.value).rpartition("vla-rl ")[2])
    assert CliRunner().invoke(app, [*advice, "budget.optimizer_steps=3"]).exit_code == 0

    with monkeypatch.context() as disk:
        disk.setattr("vla_rl.run.training.save_ring", full)
        with pytest.raises(RunFailureError, match=r"go on from .*/optimizer_step_3: ") as failure:
            run(toy_recipe(), tmp_path / "run", resume=True)
    advice = shlex.split(str(failure.value).rpartition("vla-rl ")[2])
    assert CliRunner().invoke(app, [*advice, "budget.optimizer_steps=6"]).exit_code == 0
    assert [point["optimizer_steps"] for point in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "optimizer_step_6" / "policy.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    _, printed = run(toy_recipe(), tmp_path / "run", resume=True)
    assert "optimizer_step_6" in printed
    assert [point["optimizer_steps"] for point in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_second_run_is_never_written_over_the_first(tmp_path):
    run(toy_recipe(), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="--resume"):
        run(toy_recipe(), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_ranks_started_by_a_foreign_launcher_write_over_no_run_either(tmp_path, monkeypatch):
    run(toy_recipe(), tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--resume"):
        run(toy_recipe(), tmp_path / "run")


def test_a_checkpoint_of_another_architecture_is_refused_before_anything_starts(tmp_path):
    before = own_blocks()
    run(toy_recipe(), tmp_path / "run")
    with pytest.raises(UserError, match="architecture"):
        run(toy_recipe(policy={"hidden_dim": 32}), tmp_path / "run", resume=True)
    assert own_blocks() <= before


def test_a_dry_run_refuses_a_folder_as_the_run_would_and_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    training.dry_run(toy_recipe(), run_dir=folder)
    assert not folder.exists()
    run(toy_recipe(policy={"distribution": "gaussian"}), folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="already holds a run"):
        training.dry_run(toy_recipe(policy={"distribution": "gaussian"}), run_dir=folder)
    training.dry_run(toy_recipe(policy={"distribution": "gaussian"}), run_dir=folder, resume=True)
    for other, fault in (({"hidden_dim": 32}, "architecture"), ({"mean": "tanh"}, r"policy\.mean=linear")):
        recipe = toy_recipe(policy={"distribution": "gaussian", **other})
        with pytest.raises(ValueError, match=fault):
            training.dry_run(recipe, run_dir=folder, resume=True)
    assert contents(folder) == before
    for file in folder.glob("checkpoints/*/policy.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"no checkpoint of .* is whole"):
        training.dry_run(toy_recipe(policy={"distribution": "gaussian"}), run_dir=folder, resume=True)


def test_a_full_disk_costs_log_points_and_checkpoints_but_not_the_run(tmp_path, monkeypatch):
    def full(*_, **_named):
        raise OSError(28, "No space left on device")

    before = own_blocks()
    monkeypatch.setattr("vla_rl.reporting.metrics_file.MetricsWriter._append", full)
    outcome, printed = run(toy_recipe(), tmp_path / "run")
    assert outcome.clocks.optimizer_steps == 6
    assert printed.count("log points are lost from optimizer step 1 on") == 1

    monkeypatch.setattr("vla_rl.run.training.save_ring", full)
    with pytest.raises(RunFailureError, match="--resume"):
        run(toy_recipe(), tmp_path / "other")
    assert own_blocks() <= before


def test_a_log_point_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    recipe = toy_recipe()
    run(recipe, tmp_path / "run")
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with MetricsWriter(tmp_path / "run", tensorboard=False, resume_at=Clocks(optimizer_steps=6)) as writer:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limit[1]))
        try:
            with pytest.raises(OSError, match=r"(space left|too large)"):
                writer.write(Clocks(optimizer_steps=7), {"learner/entropy": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, previous)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o002, 0o664, 0o775), (0o027, 0o640, 0o750)])
def test_everything_that_a_run_writes_has_the_mode_that_the_umask_asks_for(tmp_path, umask, file_mode, folder_mode):
    recipe = toy_recipe(logging={"tensorboard": True}, evaluation={"episodes_per_task": 1})
    before = os.umask(umask)
    try:
        run(recipe, tmp_path / "run")
        write_report([tmp_path / "run"], tmp_path / "run" / "report.html", comparisons=[], studies=[])
    finally:
        os.umask(before)
    written = list((tmp_path / "run").rglob("*"))
    assert len(written) > 20
    modes = {path: path.stat().st_mode & 0o777 for path in written}
    assert {path: mode for path, mode in modes.items() if mode != (folder_mode if path.is_dir() else file_mode)} == {}
