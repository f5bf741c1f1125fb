"""Evaluations in processes of their own: a worker dies, an evaluation is killed. No episode is lost or played twice."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from vla_rl.evaluation.episode_log import EPISODES_FILE, read_episodes

pytestmark = pytest.mark.slow

EPISODES = 40  # per task, of two tasks


@pytest.fixture
def slow_run(trained, tmp_path):
    """The trained run with an environment slow enough to be disturbed, evaluated asynchronously."""
    folder = shutil.copytree(trained, tmp_path / "run")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["env"]["step_seconds"] = 0.01
    recipe["runtime"]["mode"] = "async"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def start(slow_run, tmp_path):
    """Starts the evaluation; whatever still runs at the end is killed."""
    started = []

    def launch(*options):
        command = [sys.executable, "-m", "vla_rl", "eval", str(slow_run), "--episodes-per-task", str(EPISODES),
                   "--out", str(tmp_path / "out"), *options]  # fmt: skip
        output = (tmp_path / "output.txt").open("ab")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def wait_for_episodes(folder, count):
    deadline = time.monotonic() + 120
    while not (folder / EPISODES_FILE).exists() or (folder / EPISODES_FILE).read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_process(log):
    """The id of the process that a worker's log names; a worker is on its way long after others have played."""
    deadline = time.monotonic() + 120
    while not log.exists() or not (found := re.findall(r"process (\d+)", log.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(found[-1])


def assert_whole(folder, *, episodes=EPISODES):
    played = [(it.task_id, it.init_state) for it in read_episodes(folder / EPISODES_FILE)]
    assert len(played) == len(set(played)) == 2 * episodes
    assert set(played) == {(task, state) for task in (0, 1) for state in range(episodes)}
    assert (folder / "results.json").exists()


def test_a_killed_worker_costs_a_retry_and_no_episode(start, tmp_path):
    evaluation = start("--workers", "3", "--episodes-per-task", "200")  # many: the others go on while it starts again
    log = tmp_path / "out" / "logs" / "env_worker_1.log"
    worker = wait_for_process(log)
    wait_for_episodes(tmp_path / "out", 10)
    os.kill(worker, signal.SIGKILL)
    assert evaluation.wait(300) == 0, (tmp_path / "output.txt").read_text()
    assert "start 1 of this worker" in log.read_text()
    assert_whole(tmp_path / "out", episodes=200)


def test_a_killed_evaluation_goes_on_where_it_was_with_other_workers_too(start, tmp_path):
    first = start("--workers", "2")
    wait_for_episodes(tmp_path / "out", 10)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait(10)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    kept = (tmp_path / "out" / EPISODES_FILE).read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]

    assert start("--workers", "1").wait(180) == 0, (tmp_path / "output.txt").read_text()
    assert (tmp_path / "out" / EPISODES_FILE).read_bytes().startswith(kept)
    assert_whole(tmp_path / "out")


def test_ctrl_c_ends_an_evaluation_without_a_traceback(start, tmp_path):
    evaluation = start("--workers", "2", "--episodes-per-task", "1000")  # far from its end however busy the machine is
    wait_for_episodes(tmp_path / "out", 4)
    evaluation.send_signal(signal.SIGINT)
    assert evaluation.wait(60) == 130
    assert "Traceback" not in (tmp_path / "output.txt").read_text()
    assert "interrupted" in (tmp_path / "output.txt").read_text()
