"""What a phase may do without harm to the next: fail, hang, leave processes behind, be interrupted."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from gpu_check_parts import runner
from gpu_check_parts.record import Record, Setting, finite, write_json
from gpu_check_parts.runner import Outcome, Phase, StopRequest, run_phase, run_phases

SCRIPTS = Path(__file__).parents[2] / "scripts"
HANGS = """
import os, signal, subprocess, sys, time
def measure(record, setting):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);"
    deaf += "time.sleep(99)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    child.stdout.readline()
    record.put("pids", [os.getpid(), child.pid])
    time.sleep(99)
"""


class Bench:
    """Phases of any text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scratch").mkdir()
        self.setting = Setting(size="tiny", limit_s=0.0, scratch=folder / "scratch", root=folder)
        self.stop = StopRequest()
        self.environment = os.environ | {"PYTHONPATH": f"{SCRIPTS}{os.pathsep}{folder}"}

    def phase(self, name: str, text: str, **more: Any) -> Phase:
        (self.folder / f"{name}_module.py").write_text(text, encoding="utf-8")
        return Phase(name, "for a test", f"{name}_module", limit_s=60.0, **more)

    def run(self, name: str, text: str, limit_s: float = 60.0) -> Outcome:
        return self.start(self.phase(name, text), limit_s)

    def start(self, phase: Phase, limit_s: float) -> Outcome:
        return run_phase(
            phase,
            limit_s,
            setting=self.setting,
            log=self.folder / "log",
            environment=self.environment,
            stop=self.stop,
        )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(runner, "GRACE_S", 2.0)
    return Bench(tmp_path)


def is_running(pid: int) -> bool:
    return runner._is_alive(pid)


def test_a_phase_that_ends_well_has_passed_and_tells_its_figures(bench: Bench) -> None:
    text = "def measure(record, setting):\n    record.put('rate', 7.5)\n    record.check('it is', True, 'so')\n"
    outcome = bench.run("good", text)
    assert (outcome.status, outcome.reason, outcome.last_lines) == ("passed", "", [])
    assert outcome.figures == {"rate": 7.5}
    assert outcome.checks == [{"what": "it is", "holds": True, "found": "so"}]


def test_a_phase_is_told_its_size_its_limit_and_a_folder_of_its_own(bench: Bench) -> None:
    told = bench.run(
        "told",
        "import os\ndef measure(record, setting):\n"
        "    record.put('told', [setting.size, setting.limit_s, os.getcwd() == str(setting.scratch)])\n",
        limit_s=61.0,
    )
    assert told.figures == {"told": ["tiny", 61.0, True]}


def test_a_phase_that_raises_has_failed_with_its_reason_and_keeps_what_it_knew(bench: Bench) -> None:
    text = (
        "def measure(record, setting):\n    record.put('before', 1)\n    raise ValueError('the card is upside down')\n"
    )
    outcome = bench.run("bad", text)
    assert outcome.status == "failed"
    assert outcome.reason == "exit code 1: ValueError: the card is upside down"
    assert outcome.figures == {"before": 1}
    assert outcome.last_lines[0].startswith("Traceback")


def test_a_check_that_does_not_hold_fails_the_phase_after_all_of_it_has_run(bench: Bench) -> None:
    text = (
        "def measure(record, setting):\n    record.check('memory comes back', False, '14 GiB lost')\n"
        "    record.put('after', 2)\n"
    )
    outcome = bench.run("lost", text)
    assert (outcome.status, outcome.reason) == ("failed", "memory comes back: 14 GiB lost")
    assert outcome.figures == {"after": 2}


def test_a_phase_that_crashes_is_named_by_its_signal(bench: Bench) -> None:
    text = "import os, signal\ndef measure(record, setting):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert bench.run("crash", text).reason == "ended by SIGKILL"


def test_a_phase_that_hangs_is_killed_with_a_child_that_is_deaf_to_sigterm(bench: Bench) -> None:
    began = time.monotonic()
    outcome = bench.run("hang", HANGS, limit_s=12.0)  # time to start and to hang before its stacks are written
    assert 12.0 <= time.monotonic() - began < 90.0, "it sleeps for longer"
    assert outcome.status == "timed out"
    assert outcome.reason == "ran past its limit of 12 s and was killed"
    assert not [pid for pid in outcome.figures["pids"] if is_running(pid)]
    assert any("hang_module.py" in line and "measure" in line for line in outcome.last_lines), "where it hung"


def test_what_a_phase_leaves_running_is_ended_with_it(bench: Bench) -> None:
    text = (
        "import subprocess, sys\ndef measure(record, setting):\n"
        "    record.put('pid', subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']).pid)\n"
    )
    outcome = bench.run("leaves", text)
    assert outcome.status == "passed"
    assert not is_running(outcome.figures["pid"])


def test_a_request_to_stop_ends_the_phase_and_keeps_what_it_knew(bench: Bench) -> None:
    def press() -> None:
        record = bench.setting.scratch / "hang.json"
        while not (record.exists() and json.loads(record.read_text(encoding="utf-8"))["figures"]):
            time.sleep(0.02)
        bench.stop.requested = True

    threading.Thread(target=press, daemon=True).start()
    outcome = bench.run("hang", HANGS)
    assert outcome.status == "interrupted"
    assert len(outcome.figures["pids"]) == 2
    assert not [pid for pid in outcome.figures["pids"] if is_running(pid)]


def loop(
    phases: list[Phase],
    start: Any,
    *,
    seconds: float = 100.0,
    has_gpu: bool = True,
    stop: StopRequest | None = None,
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    seen: list[str] = []
    run_phases(
        phases,
        outcomes=outcomes,
        has_gpu=has_gpu,
        ends_at=time.monotonic() + seconds,
        stop=stop or StopRequest(),
        start=start,
        after_each=lambda phase, outcome: seen.append(phase.name),
    )
    assert seen == [phase.name for phase in phases]
    return outcomes


def test_a_failure_and_a_hang_do_not_stop_the_next_phase(bench: Bench) -> None:
    phases = [
        bench.phase("bad", "raise RuntimeError('at import')\n"),
        bench.phase("good", "def measure(record, setting):\n    record.put('there', 1)\n"),
    ]
    outcomes = loop(phases, bench.start)
    assert [outcomes[name].status for name in ("bad", "good")] == ["failed", "passed"]
    assert "at import" in outcomes["bad"].reason


def test_a_phase_whose_packages_are_missing_is_skipped_by_their_names() -> None:
    needy = Phase("needy", "", "none", 20.0, needs=("json", "no_such_package", "nor_this_one"))
    outcome = loop([needy], start=None)["needy"]
    assert (outcome.status, outcome.reason) == ("skipped", "not installed: no_such_package, nor_this_one")


def test_a_phase_that_needs_a_gpu_is_skipped_without_one() -> None:
    phase = Phase("gpu", "", "none", 20.0, needs_gpu=True)
    assert loop([phase], start=None, has_gpu=False)["gpu"].reason == "needs a GPU"


def test_a_limit_shrinks_with_the_time_that_is_left_and_without_time_nothing_is_begun() -> None:
    limits: list[float] = []

    def start(phase: Phase, limit_s: float) -> Outcome:
        limits.append(limit_s)
        return Outcome("passed")

    phases = [Phase("first", "", "none", 30.0), Phase("second", "", "none", 500.0)]
    loop(phases, start)
    assert limits[0] == 30.0
    assert 50.0 < limits[1] <= 100.0 - runner.GRACE_S - 1.0
    late = loop(phases, start=None, seconds=runner.LEAST_S + runner.GRACE_S)
    assert {(outcome.status, outcome.reason) for outcome in late.values()} == {("not run", "no time left")}


def test_after_ctrl_c_nothing_more_is_begun() -> None:
    calls: list[str] = []
    stop = StopRequest()

    def start(phase: Phase, limit_s: float) -> Outcome:
        calls.append(phase.name)
        stop.requested = True
        return Outcome("interrupted")

    outcomes = loop([Phase("one", "", "none", 20.0), Phase("two", "", "none", 20.0)], start, stop=stop)
    assert calls == ["one"]
    assert (outcomes["two"].status, outcomes["two"].reason) == ("not run", "interrupted before it")


def test_numbers_that_are_not_finite_are_written_as_words(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    record.put("loss", {"a": float("nan"), "b": (1.5, float("-inf")), 3: None})
    told = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert told["figures"]["loss"] == {"a": "nan", "b": [1.5, "-inf"], "3": None}
    assert finite([0.1]) == [0.1]


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"first": 1})
    with pytest.raises(TypeError):
        write_json(path, {"second": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"first": 1}
