"""The program outlives its terminal, listens from its first line on, and prints on terminals of any encoding."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ASKED = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
SMALL = ["runtime.mode=serial", "runtime.device=cpu", "budget.optimizer_steps=3", "checkpoint.every_optimizer_steps=2"]
SMALL += ["replay.min_decisions=64", "logging.tensorboard=false"]
UNPLAYED = "evaluation.episodes_per_task=0"  # where a run only prepares or follows what is tested
DEADLINE_S = 180


def command(*arguments):
    return [sys.executable, "-m", "vla_rl", *map(str, arguments)]


def train_toy(run_dir, *overrides):
    return command("train", "toy", *SMALL, *overrides, "--run-dir", run_dir)


def checkpoints(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("optimizer_step_*"))


@pytest.fixture
def nowhere():
    """Makes descriptors that cannot be written to."""
    opened = []

    def make(kind):
        if kind == "full":
            opened.append(os.open("/dev/full", os.O_WRONLY))
        elif kind == "pipe":
            ours, theirs = os.pipe()
            os.close(ours)
            opened.append(theirs)
        else:
            ours, theirs = os.openpty()
            os.close(ours)
            opened.append(theirs)
        return opened[-1]

    yield make
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stream"),
    [("full", "both"), ("pipe", "both"), ("terminal", "both"), ("full", "stdout"), ("pipe", "stderr")],
)
def test_a_run_whose_terminal_cannot_be_written_to_ends_as_if_it_could(tmp_path, nowhere, kind, stream):
    sink = nowhere(kind)
    names = ("stdout", "stderr")
    ends: dict[str, Any] = {name: sink if stream in (name, "both") else subprocess.PIPE for name in names}
    done = subprocess.run(train_toy(tmp_path / "run"), stdin=subprocess.DEVNULL, timeout=DEADLINE_S, **ends)
    assert done.returncode == 0
    assert checkpoints(tmp_path / "run")[-1] == "optimizer_step_3"
    log = (tmp_path / "run" / "logs" / "learner.log").read_text(encoding="utf-8")
    assert log.count("stdout cannot be written to") == (1 if stream in ("stdout", "both") else 0)
    assert not done.stderr


@pytest.mark.slow
def test_a_run_without_any_stream_ends_as_if_it_had_them(tmp_path):
    line = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, "sh", *train_toy(tmp_path / "run")], timeout=DEADLINE_S)
    assert (done.returncode, checkpoints(tmp_path / "run")[-1]) == (0, "optimizer_step_3")
    assert "stdout is closed" in (tmp_path / "run" / "logs" / "learner.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_other_verbs_whose_results_are_in_files_outlive_their_terminal_too(tmp_path, nowhere):
    run = tmp_path / "run"
    subprocess.run(train_toy(run, UNPLAYED), check=True, capture_output=True, timeout=DEADLINE_S)
    verbs = [
        ("eval", run, "--episodes-per-task", 2, "--serial", "--out", tmp_path / "eval"),
        ("report", run, "--out", tmp_path / "report.html"),
        ("study", "gridworld", "--out", tmp_path / "gridworld"),
        ("export", "tiny", "--out", tmp_path / "exported", "--verify", 0),
    ]
    for verb in verbs:
        for kind in ("full", "pipe", "terminal") if verb[0] == "report" else ("full",):
            sink = nowhere(kind)
            done = subprocess.run(command(*verb), stdout=sink, stderr=sink, timeout=DEADLINE_S)
            assert done.returncode == 0, (verb[0], kind)
    for result in ("eval/results.json", "report.html", "gridworld/gridworld.md", "exported/config.json"):
        assert (tmp_path / result).stat().st_size > 0


def test_an_output_that_is_the_result_must_be_complete(nowhere):
    done = subprocess.run(command("recipes", "show", "toy"), stdout=nowhere("full"), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: stdout cannot be written to: [Errno 28] No space left on device")
    done = subprocess.run(command("recipes", "show", "toy"), stdout=nowhere("pipe"), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")  # `| head` has seen enough


def test_no_output_dies_of_its_encoding(tmp_path):
    """ASCII has the fewest characters; what it lacks is spelled in ASCII, whatever the encoding."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    verbs = [("study", "gridworld", "--out", tmp_path / "out"), ("recipes", "fields"), ("train", "σ", "--dry-run")]
    codes = []
    for verb in verbs:
        done = subprocess.run(command(*verb), env=environment, capture_output=True, timeout=DEADLINE_S)
        codes.append(done.returncode)
        assert b"Traceback" not in done.stderr
        if verb[0] == "study":
            assert b"gipo sigma=1" in done.stdout
    assert codes == [0, 0, 2]


def signalled(arguments, when, number):
    """Run the program; send it a signal at a moment. Returns its exit code and what it said on stderr."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while process.poll() is None and not when(process):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert process.poll() is None, "it ended before the signal"
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return process.returncode, said


def listens(process) -> bool:
    """Whether the program has come to its first line: it catches SIGUSR2."""
    try:
        caught = re.search(r"SigCgt:\s+([0-9a-f]+)", Path(f"/proc/{process.pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1)


def maps(name):
    """A moment of the start: the process has loaded a library of that name."""

    def has_loaded(process):
        try:
            return name in Path(f"/proc/{process.pid}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False

    return has_loaded


@pytest.mark.parametrize("number", ASKED)
def test_a_signal_at_the_first_line_ends_the_program_with_130(tmp_path, number):
    code, said = signalled(train_toy(tmp_path / "run"), listens, number)
    assert (code, said) == (130, "interrupted\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("library", ["pydantic_core", "multiarray", "libtorch_cpu", "libtorch_python"])
def test_a_signal_during_the_imports_ends_the_program_with_130(tmp_path, library, number):
    endless = ("budget.optimizer_steps=1000000", "env.step_seconds=0.01")
    code, said = signalled(train_toy(tmp_path / "run", *endless), maps(library), number)
    assert code == 130
    assert "Traceback" not in said


INTERRUPTED_IMPORT = """
import os, signal
from vla_rl.cli import start

def import_a_library():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as interrupt:
        raise ImportError("cannot load") from interrupt

start._run = import_a_library
start.run()
"""


def test_an_interruption_of_generated_code_has_the_exit_code_of_every_other(tmp_path: Path) -> None:
    """CPython notes an interruption in `exec` of a text, as of dataclasses, and `-m` then ends itself by the signal."""
    program = INTERRUPTED_IMPORT.replace("    try:\n", "    exec('os.kill(os.getpid(), signal.SIGINT)')\n    try:\n")
    (tmp_path / "interrupted_program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "interrupted_program"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_import_error_after_a_signal_is_an_interruption() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("logs", signal.SIGTERM),
        *(("logs/inference_worker.log", number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)),
        *(("metrics.jsonl", number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)),
    ],
)
def test_a_signal_to_every_process_of_a_run_leaves_a_checkpoint(tmp_path, moment, number):
    """As a batch system sends it; before the first update there is one of none."""
    run, sizes = tmp_path / "run", {"metrics.jsonl": 1}
    overrides = ("runtime.mode=async", "budget.optimizer_steps=1000000", "rollout.num_workers=2")

    def has_come(_process):
        path = run / moment
        return path.exists() and path.stat().st_size >= sizes.get(moment, 0)

    def everyone(process):
        if has_come(process):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.send_signal(number)
            time.sleep(0.5)  # the parent comes last, and its children must not have died of it
            return True
        return False

    code, said = signalled(train_toy(run, *overrides), everyone, number)
    assert code == 130, said
    assert "did not stop" not in said
    found = checkpoints(run)
    assert found
    assert found[-1] != "optimizer_step_0" or moment != "metrics.jsonl"
    resumed = command("train", run, "--resume", "runtime.mode=serial", "budget.optimizer_steps=1", UNPLAYED)
    assert subprocess.run(resumed, capture_output=True, timeout=DEADLINE_S).returncode == 0


@pytest.mark.slow
def test_ranks_that_still_start_end_together_when_a_batch_system_asks(tmp_path):
    ranks = ("runtime.mode=async", "learner.strategy=ddp", "learner.num_ranks=2", "budget.optimizer_steps=1000000")
    began = []

    def three_seconds_after_the_ranks_appear(process):
        if not began and len(psutil.Process(process.pid).children(recursive=True)) >= 3:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > 3.0

    code, said = signalled(train_toy(tmp_path / "run", *ranks), three_seconds_after_the_ranks_appear, signal.SIGUSR1)
    assert code == 130, said
    assert checkpoints(tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("optimizer_step_*/rank_1"))


@pytest.mark.slow
def test_an_evaluation_that_a_batch_system_ends_keeps_what_was_played(tmp_path):
    run, out = tmp_path / "run", tmp_path / "eval"
    subprocess.run(
        train_toy(run, "env.step_seconds=0.002", UNPLAYED), check=True, capture_output=True, timeout=DEADLINE_S
    )
    log = out / "episodes.jsonl"
    evaluation = command("eval", run, "--episodes-per-task", 5000, "--workers", 1, "--out", out)
    code, said = signalled(evaluation, lambda _: log.exists() and log.stat().st_size > 0, signal.SIGUSR2)
    assert code == 130, said
    assert len(log.read_text(encoding="utf-8").splitlines()) > 0


def test_a_reader_that_leaves_early_is_no_failure():
    line = " ".join(command("recipes", "list")) + " | head -1; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
