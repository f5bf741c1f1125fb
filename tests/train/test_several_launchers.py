"""Runs over several machines, played by several launchers on this one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launchers import DEADLINE_S, ROOT, launched, wait_until
from ports import free_port
from toy_runs import run, toy_recipe

from vla_rl.reporting.run_state import read_state

pytestmark = pytest.mark.slow

ENDLESS = 1_000_000


def recipe_file(folder: Path, *, strategy: str, steps: int, episodes: int = 0) -> Path:
    path = folder / "recipe.yaml"
    recipe = toy_recipe(
        learner={"strategy": strategy},
        budget={"optimizer_steps": steps},
        env={"step_seconds": 0.001},
        runtime={"mode": "async"},
        rollout={"num_workers": 1, "envs_per_worker": 1},
        evaluation={"episodes_per_task": episodes},
    )
    path.write_text(recipe.dump_yaml(), encoding="utf-8")
    return path


def points(run_dir: Path) -> list[dict[str, float]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_machines_with_folders_of_their_own_train_evaluate_once_and_resume_under_another_strategy(
    tmp_path: Path,
) -> None:
    recipe = recipe_file(tmp_path, strategy="ddp", steps=6, episodes=3)
    runs = [tmp_path / "a", tmp_path / "b"]
    with launched(
        tmp_path, "torchrun", [["train", str(recipe), "--run-dir", str(run_dir), "--resume"] for run_dir in runs]
    ) as nodes:
        assert nodes.codes() == [0, 0], nodes.said(0) + nodes.said(1)
        assert "finished after 6 optimizer steps" in nodes.printed(0)
        assert nodes.printed(1) == ""  # only rank 0 talks
        assert nodes.printed(0).count("evaluating") == 1
    # The closing evaluation: a second rank that played it too would leave its results in its own folder.
    (played,) = tmp_path.rglob("episodes.jsonl")
    assert played.is_relative_to(runs[0])
    assert len(played.read_text(encoding="utf-8").splitlines()) == 3
    assert [point["optimizer_steps"] for point in points(runs[0])] == [1, 2, 3, 4, 5, 6]
    assert "metrics.jsonl" not in names(runs[1])
    for rank, run_dir in enumerate(runs):
        assert {"recipe.yaml", "manifest.json", "state.json", "checkpoints", "logs"} <= names(run_dir)
        assert names(run_dir / "logs") == {f"rank_{rank}"}
        checkpoint = run_dir / "checkpoints" / "optimizer_step_6"
        assert names(checkpoint) >= {"policy.safetensors", "optimizer.safetensors", f"rank_{rank}"}
        assert f"rank_{1 - rank}" not in names(checkpoint)
    weights = [(run_dir / "checkpoints" / "optimizer_step_6" / "policy.safetensors").read_bytes() for run_dir in runs]
    assert weights[0] == weights[1]
    before = points(runs[0])[-1]

    changes = ["learner.strategy=deepspeed", "budget.optimizer_steps=8", "evaluation.episodes_per_task=0"]
    with launched(tmp_path, "none", [["train", str(run_dir), "--resume", *changes] for run_dir in runs]) as nodes:
        assert nodes.codes() == [0, 0], nodes.said(0) + nodes.said(1)
        assert "no replay" not in nodes.said(0)
    assert [point["optimizer_steps"] for point in points(runs[0])] == [*range(1, 9)]
    assert points(runs[0])[-1]["decisions"] > before["decisions"]


def test_a_killed_rank_ends_all_machines_with_the_cause_and_one_machine_goes_on(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, strategy="ddp", steps=ENDLESS)
    run_dir = tmp_path / "run"
    with launched(tmp_path, "accelerate", [["train", str(recipe), "--run-dir", str(run_dir)]] * 2) as nodes:
        wait_until(lambda: (run_dir / "checkpoints" / "optimizer_step_3").is_dir(), "the first checkpoint")
        nodes.rank(1).kill()
        assert nodes.codes() == [1, 1]
        wait_until(lambda: not nodes.living(), "the end of all processes")
        told = [line for line in nodes.said(0).splitlines() if line.startswith("error: rank 1 (")]
        assert len(told) == 1, nodes.said(0)
        assert "node 1) is gone without a word" in told[0]
        assert "Traceback" not in nodes.said(0).split("error: rank 1")[0]
    state = read_state(run_dir, is_spent=False)
    assert state.state == "failed"
    assert state.reason.startswith("rank 1 (")

    saved = max(int(path.name.rsplit("_", 1)[1]) for path in (run_dir / "checkpoints").glob("optimizer_step_*"))
    changes = ["learner.strategy=single", f"budget.optimizer_steps={saved + 2}"]
    done = subprocess.run(
        [sys.executable, "-m", "vla_rl", "train", str(run_dir), "--resume", *changes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the checkpoint has 2 ranks, the run continues with 1" in done.stdout
    assert "the replay of rank 1 is left out" in done.stdout
    assert [point["optimizer_steps"] for point in points(run_dir)] == [*range(1, saved + 3)]
    for clock in ("env_steps", "decisions", "episodes", "seconds"):
        values = [point[clock] for point in points(run_dir)]
        assert values == sorted(values), clock


def test_a_run_of_one_rank_goes_on_with_two_and_a_signal_to_one_ends_both_with_a_checkpoint(tmp_path: Path) -> None:
    """Ranks without a launcher, as a batch system starts them."""
    run_dir = tmp_path / "run"
    run(toy_recipe(), run_dir)
    recipe = recipe_file(tmp_path, strategy="ddp", steps=ENDLESS)
    with launched(tmp_path, "none", [["train", str(recipe), "--run-dir", str(run_dir), "--resume"]] * 2) as nodes:
        wait_until(lambda: len(points(run_dir)) >= 8, "the second update")
        nodes.rank(1).send_signal(signal.SIGUSR1)
        assert nodes.codes() == [0, 0]
        assert "the checkpoint has 1 ranks, the run continues with 2" in nodes.said(0)
        assert "1 of 2 ranks have no replay in the checkpoint" in nodes.said(0)
        assert "interrupted after" in nodes.printed(0)
        assert nodes.printed(1) == ""
    assert read_state(run_dir, is_spent=False).state == "interrupted"
    steps = int(points(run_dir)[-1]["optimizer_steps"])
    assert [point["optimizer_steps"] for point in points(run_dir)] == [*range(1, steps + 1)]
    assert (run_dir / "checkpoints" / f"optimizer_step_{steps}" / "rank_1").is_dir()


def test_recipes_that_differ_between_machines_are_refused_by_both_before_anything_starts(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, strategy="ddp", steps=4)
    starts = [["train", str(recipe), "--run-dir", str(tmp_path / "run")], []]
    starts[1] = [*starts[0], "surrogate.sigma=2"]
    with launched(tmp_path, "none", starts) as nodes:
        assert nodes.codes() == [2, 2]
        for node in (0, 1):
            assert nodes.said(node).startswith("error: recipes differ between rank 0 (")
            assert "surrogate.sigma: 1.0 on rank 0, 2.0 on rank 1" in nodes.said(node)
    assert not (tmp_path / "run").exists()


SLURM = {  # stand-ins for Slurm's commands: two tasks on this machine
    "scontrol": '[ "$1" = requeue ] && echo "$2" > requeued; [ "$1" = show ] && echo 127.0.0.1; exit 0',
    "scancel": 'kill -"${1#--signal=}" $(cat tasks)',
    "srun": """while [ "${1#--}" != "$1" ]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" > task_$task.txt 2>&1 & echo $! >> tasks
done
for task in $(cat tasks); do wait $task || exit $?; done""",
    "vla-rl": f'exec {sys.executable} -m vla_rl "$@"',
}


def test_the_documented_slurm_script_saves_before_its_time_is_up_and_queues_again(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
    scripts = re.findall(r"^```bash\n(#!.*?)^```", page, re.MULTILINE | re.DOTALL)
    (script,) = [text for text in scripts if "torchrun" not in text]
    recipe = recipe_file(tmp_path, strategy="ddp", steps=ENDLESS)
    script = re.sub(r"vla-rl train .*? --resume", f"vla-rl train {recipe} --run-dir run --resume", script, flags=re.S)
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, body in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    port = free_port()  # the script reckons it from the job's number
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"SLURM_JOB_ID": str(port - 20000), "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "here"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        wait_until(lambda: len(points(tmp_path / "run")) >= 2, "the second update")
        job.send_signal(signal.SIGUSR1)
        assert job.wait(DEADLINE_S) == 0
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "requeued").read_text().strip() == str(port - 20000)
    assert read_state(tmp_path / "run", is_spent=False).state == "interrupted"
    assert "interrupted after" in (tmp_path / "task_0.txt").read_text()
    steps = int(points(tmp_path / "run")[-1]["optimizer_steps"])
    assert (tmp_path / "run" / "checkpoints" / f"optimizer_step_{steps}" / "rank_1").is_dir()


def test_a_rank_whose_launcher_is_killed_saves_and_ends(tmp_path: Path) -> None:
    """torchrun starts ranks in sessions of their own, so that nothing else would end them."""
    recipe, run_dir = recipe_file(tmp_path, strategy="ddp", steps=ENDLESS), tmp_path / "run"
    rank = [sys.executable, "-m", "vla_rl", "train", str(recipe), "--run-dir", str(run_dir)]
    launcher = f"import subprocess; subprocess.run({rank!r}, start_new_session=True)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with (tmp_path / "output.txt").open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", launcher], env=environment, stdout=output)
    wait_until(lambda: len(points(run_dir)) >= 2, "the second update")
    process.kill()
    process.wait(10)
    wait_until(lambda: read_state(run_dir, is_spent=False).state != "running", "the end of the rank")
    assert read_state(run_dir, is_spent=False).state == "interrupted"
    assert (run_dir / "checkpoints" / "latest").is_file()
