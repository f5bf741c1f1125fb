"""What happens to a run when a part of it is killed, hangs or is interrupted: whole runs in processes of their own."""

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from toy_runs import assert_pure, groups_in_ring, toy_recipe

from vla_rl.reporting.run_state import read_state

pytestmark = pytest.mark.slow

DEADLINE_S = 120
MARK = "TEST_RUN"  # in the environment of a run's processes


@pytest.fixture
def start(tmp_path):
    """Starts `vla-rl train`; whatever still runs at the end is killed."""
    started = []

    def launch(recipe, *options, terminal=None):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.dump_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "vla_rl", "train", str(path), "--run-dir", str(tmp_path / "run"), *options]
        output = (tmp_path / "output.txt").open("wb")
        marked = os.environ | {MARK: str(tmp_path)}
        if terminal is None:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=marked
            )
        else:
            own = partial(fcntl.ioctl, terminal, termios.TIOCSCTTY, 0)  # as that of a shell's session
            ends = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
            process = subprocess.Popen(command, **ends, start_new_session=True, preexec_fn=own, env=marked)
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def async_recipe(**sections):
    """A run that goes on until somebody ends it."""
    defaults = {
        "runtime": {"mode": "async"},
        "env": {"step_seconds": 0.002},
        "budget": {"optimizer_steps": 1_000_000},
        "checkpoint": {"every_optimizer_steps": 20},
        "rollout": {"num_workers": 2, "envs_per_worker": 1},
    }
    for name, changes in sections.items():
        defaults[name] = {**defaults.get(name, {}), **changes}
    return toy_recipe(**defaults)


def wait_until(condition, what: str):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.05)


def points(run_dir: Path):
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def pid_of(run_dir: Path, child: str) -> int:
    """The newest process that wrote this log; waits for the first."""
    path, pids = run_dir / "logs" / f"{child}.log", []

    def has_started() -> bool:
        pids.extend(re.findall(r"INFO process (\d+)", path.read_text()) if path.exists() else [])
        return bool(pids)

    wait_until(has_started, f"the start of {child}")
    return int(pids[-1])


def learning(run_dir: Path, optimizer_steps: int = 1):
    return lambda: len(points(run_dir)) >= optimizer_steps


def finished(process) -> int:
    return process.wait(DEADLINE_S)


def processes_of(tmp_path) -> list[psutil.Process]:
    """All living processes of the test's runs; their shared memory, which has no name, ends with the last of them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == str(tmp_path):
                found.append(process)
    return found


def all_gone(tmp_path):
    wait_until(lambda: not processes_of(tmp_path), "the end of all processes")


def shared_maps(pid: int) -> list[str]:
    """What of a process's memory others may map and write."""
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.split()[1] == "rw-s"]


def gone(pids):
    return lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def children(process) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def test_a_killed_env_worker_is_restarted_and_counted_and_the_run_goes_on(start, tmp_path):
    run = start(async_recipe())
    wait_until(learning(tmp_path / "run"), "the first update")
    os.kill(pid_of(tmp_path / "run", "env_worker_0"), signal.SIGKILL)
    log = tmp_path / "run" / "logs" / "env_worker_0.log"
    wait_until(lambda: "start 1 of this worker" in log.read_text(), "the start of the successor")
    wait_until(learning(tmp_path / "run", len(points(tmp_path / "run")) + 20), "twenty updates more")
    run.send_signal(signal.SIGINT)
    assert finished(run) == 130, (tmp_path / "output.txt").read_text()
    last = points(tmp_path / "run")[-1]
    assert last["system/env_worker_restarts"] == 1
    assert last["system/dropped_episodes"] == 1
    all_gone(tmp_path)


def test_a_killed_env_worker_breaks_no_group(start, tmp_path):
    """Two workers of two slots play groups of 4 on two tasks, one at a time; the successor plays what was lost."""
    recipe = async_recipe(
        env={"tasks": [0, 1]},
        targets={"name": "group", "size": 4, "keep": None, "uses": 1},
        replay={"capacity": 8192, "replay_ratio": 1.0},
        learner={"micro_batch": 8},
        rollout={"envs_per_worker": 2},
    )
    run = start(recipe)
    wait_until(learning(tmp_path / "run"), "the first update")
    os.kill(pid_of(tmp_path / "run", "env_worker_0"), signal.SIGKILL)
    log = tmp_path / "run" / "logs" / "env_worker_0.log"
    wait_until(lambda: "start 1 of this worker" in log.read_text(), "the start of the successor")
    wait_until(learning(tmp_path / "run", len(points(tmp_path / "run")) + 10), "ten updates more")
    run.send_signal(signal.SIGINT)
    assert finished(run) == 130, (tmp_path / "output.txt").read_text()
    assert points(tmp_path / "run")[-1]["system/env_worker_restarts"] == 1
    groups = groups_in_ring(tmp_path / "run")
    assert_pure(groups, size=4, teams=1)
    assert len(groups) > 20


def test_a_hung_env_worker_is_restarted(start, tmp_path):
    """Whatever it was doing when it hung: the run goes on until the restart has been counted, then ends by Ctrl-C."""
    run = start(async_recipe(rollout={"step_timeout_s": 8.0, "start_timeout_s": 90.0}))
    wait_until(learning(tmp_path / "run"), "the first update")
    os.kill(pid_of(tmp_path / "run", "env_worker_1"), signal.SIGSTOP)
    wait_until(lambda: points(tmp_path / "run")[-1]["system/env_worker_restarts"] >= 1, "the restart")
    run.send_signal(signal.SIGINT)
    assert finished(run) == 130, (tmp_path / "output.txt").read_text()


def test_env_workers_that_keep_dying_end_the_run_with_the_cause(start, tmp_path):
    run = start(async_recipe(rollout={"max_restarts": 0}))
    wait_until(learning(tmp_path / "run"), "the first update")
    os.kill(pid_of(tmp_path / "run", "env_worker_0"), signal.SIGKILL)
    assert finished(run) == 1
    assert "max_restarts" in (tmp_path / "output.txt").read_text()
    all_gone(tmp_path)


def test_a_dead_inference_worker_ends_the_run_once_and_leaves_nothing(start, tmp_path):
    run = start(async_recipe())
    wait_until(learning(tmp_path / "run"), "the first update")
    pids = children(run)
    os.kill(pid_of(tmp_path / "run", "inference_worker"), signal.SIGKILL)
    assert finished(run) == 1
    assert (tmp_path / "output.txt").read_text().count("the inference worker ended with exit code -9") == 1
    wait_until(gone(pids), "the end of all children")
    all_gone(tmp_path)


def test_ctrl_c_leaves_a_checkpoint_and_nothing_else(start, tmp_path):
    run = start(async_recipe())
    wait_until(learning(tmp_path / "run", 5), "the fifth update")
    pids = children(run)
    assert read_state(tmp_path / "run", is_spent=False).state == "running"
    run.send_signal(signal.SIGINT)
    assert finished(run) == 130, (tmp_path / "output.txt").read_text()
    assert read_state(tmp_path / "run", is_spent=False).state == "interrupted"
    steps = points(tmp_path / "run")[-1]["optimizer_steps"]
    assert (tmp_path / "run" / "checkpoints" / f"optimizer_step_{steps}" / "policy.safetensors").is_file()
    wait_until(gone(pids), "the end of all children")
    all_gone(tmp_path)


def test_a_closed_terminal_leaves_a_checkpoint_and_nothing_else(start, tmp_path):
    ours, terminal = os.openpty()
    run = start(async_recipe(budget={"optimizer_steps": 5000}), terminal=terminal)
    os.close(terminal)

    def learned_while_we_read():
        if select.select([ours], [], [], 0)[0]:
            os.read(ours, 1 << 16)
        return learning(tmp_path / "run", 3)()

    wait_until(learned_while_we_read, "the third update")
    pids = children(run)
    os.close(ours)  # the kernel tells the whole session, env workers too
    assert finished(run) == 130
    steps = points(tmp_path / "run")[-1]["optimizer_steps"]
    assert (tmp_path / "run" / "checkpoints" / f"optimizer_step_{steps}" / "policy.safetensors").is_file()
    assert points(tmp_path / "run")[-1]["system/env_worker_restarts"] == 0
    wait_until(gone(pids), "the end of all children")
    all_gone(tmp_path)


def test_a_killed_run_takes_its_children_along_and_resumes(start, tmp_path):
    first = start(async_recipe())
    wait_until(lambda: (tmp_path / "run" / "checkpoints" / "latest").exists(), "the first checkpoint")
    pids = children(first)
    first.kill()
    first.wait(10)
    wait_until(gone(pids), "the end of all children")

    budget = len(points(tmp_path / "run")) + 50  # beyond the checkpoint, wherever the first run was
    second = start(async_recipe(budget={"optimizer_steps": budget}), "--resume")
    assert finished(second) == 0, (tmp_path / "output.txt").read_text()
    steps = [point["optimizer_steps"] for point in points(tmp_path / "run")]
    assert steps == list(range(1, budget + 1))
    decisions = [point["decisions"] for point in points(tmp_path / "run")]
    assert decisions == sorted(decisions)
    all_gone(tmp_path)


def test_no_memory_that_a_run_shares_has_a_name(start, tmp_path):
    run = start(async_recipe())
    wait_until(learning(tmp_path / "run"), "the first update")
    workers = [pid_of(tmp_path / "run", name) for name in ("inference_worker", "env_worker_0", "env_worker_1")]
    maps = {pid: shared_maps(pid) for pid in (run.pid, *workers)}
    names = {pid: {line.split("/", 1)[1] for line in lines} for pid, lines in maps.items()}
    blocks = {f"memfd:vla_rl-{what} (deleted)" for what in ("slots", "counters", "replay")}
    assert names[run.pid] == blocks | {"memfd:vla_rl-mailbox (deleted)"}  # the toy's policy has nothing frozen
    assert [names[pid] for pid in workers] == [names[run.pid] - {"memfd:vla_rl-replay (deleted)"}, blocks, blocks]
    inodes = [{line.split()[4] for line in lines if "vla_rl-slots" in line} for lines in maps.values()]
    assert inodes == [inodes[0]] * 4  # one block, not four


def has_children(run):
    return lambda: bool(psutil.Process(run.pid).children())


def has_memory(run):
    return lambda: bool(shared_maps(run.pid))


@pytest.mark.parametrize(
    ("moment", "victims"),
    [
        *((it, "learner and tracker") for it in ("its memory is made", "its children start", "it collects")),
        *(("it publishes", victims) for victims in ("learner and tracker", "all at once")),
    ],
)
def test_a_run_that_is_killed_with_its_tracker_leaves_no_process_and_nothing_in_dev_shm(
    start, tmp_path, moment, victims
):
    """Then nothing holds its memory, and nothing that has a name is left of it."""
    run = start(async_recipe(env={"step_seconds": 0.0} if moment == "it publishes" else {}))
    conditions = {
        "its memory is made": has_memory(run),
        "its children start": has_children(run),
        "it collects": learning(tmp_path / "run"),
        "it publishes": learning(tmp_path / "run", 50),  # after every update: several hundred times a second
    }
    wait_until(conditions[moment], moment)
    run.send_signal(signal.SIGSTOP)  # so that it starts no process while we look
    members = processes_of(tmp_path)
    for process in members:
        with suppress(psutil.NoSuchProcess):
            is_tracker = "resource_tracker" in " ".join(process.cmdline())
            if victims == "all at once" or is_tracker or process.pid == run.pid:
                process.kill()
    run.wait(10)
    all_gone(tmp_path)
    numbers = {str(process.pid) for process in members}
    assert [each for each in Path("/dev/shm").iterdir() if numbers & set(re.findall(r"\d+", each.name))] == []


def test_the_governor_holds_collection_back_and_the_log_tells_for_how_long(start, tmp_path):
    # so much reuse that workers wait most of the time, however fast updates are and however busy the machine is
    ratio, batch, in_flight = 256.0, 16, 2
    run = start(
        async_recipe(replay={"replay_ratio": ratio}, env={"step_seconds": 0.0}, budget={"optimizer_steps": 200})
    )
    assert finished(run) == 0, (tmp_path / "output.txt").read_text()
    first, last = points(tmp_path / "run")[0], points(tmp_path / "run")[-1]
    consumed = last["replay/ratio"] * last["decisions"] - first["replay/ratio"] * first["decisions"]
    ahead = last["decisions"] - first["decisions"] - consumed / ratio
    assert ahead <= batch / ratio + 2 * in_flight + 1
    held_back = [point["perf/env_held_back_fraction"] for point in points(tmp_path / "run")[100:]]
    assert sum(held_back) / len(held_back) > 0.5


def test_a_failing_cell_of_one_rank_ends_all_ranks_with_a_common_checkpoint(start, tmp_path):
    ranks = {"strategy": "ddp", "num_ranks": 2}
    run = start(async_recipe(learner=ranks, rollout={"num_workers": 1, "max_restarts": 0}))
    wait_until(learning(tmp_path / "run", 3), "the third update")
    os.kill(pid_of(tmp_path / "run", "rank_1/env_worker_0"), signal.SIGKILL)
    assert finished(run) != 0
    assert "max_restarts" in (tmp_path / "output.txt").read_text()
    assert list((tmp_path / "run" / "checkpoints").glob("optimizer_step_*/rank_1"))


def test_ctrl_c_ends_all_ranks_with_a_common_checkpoint_and_exit_code_130(start, tmp_path):
    ranks = {"strategy": "ddp", "num_ranks": 2}
    run = start(async_recipe(learner=ranks, rollout={"num_workers": 1}))
    wait_until(learning(tmp_path / "run", 3), "the third update")
    run.send_signal(signal.SIGINT)
    assert finished(run) == 130, (tmp_path / "output.txt").read_text()
    assert list((tmp_path / "run" / "checkpoints").glob("optimizer_step_*/rank_1"))
    assert "interrupted after" in (tmp_path / "output.txt").read_text()
