"""The script as a user runs it, on a machine without a GPU."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_check_parts import phases, table

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"
NO_GPU = os.environ | {"CUDA_VISIBLE_DEVICES": ""}


def run(*options: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=NO_GPU, check=False)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text(encoding="utf-8"))
    return found


def test_without_a_gpu_the_real_size_is_refused_and_what_runs_is_named(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--only", "egl,tests")
    assert done.returncode == 2
    found = result(tmp_path)
    assert found["finished"] and found["device"] == "cpu"
    assert found["phases"]["start"]["status"] == "passed"
    others = {phase["status"] + ": " + phase["reason"] for name, phase in found["phases"].items() if name != "start"}
    assert others == {"not run: torch sees no GPU; --size tiny and --size mid run on a CPU"}
    assert "--size tiny" in done.stdout


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = run("--size", "tiny", "--out", str(tmp_path / "file" / "folder"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out: ") and "cannot be written to" in done.stderr
    assert "start" not in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "machine,modle"), "unknown: modle; allowed: machine, ipc, egl"),
        (("--only", ","), "no phase is named"),
        (("--minutes", "0"), "must be a number above 0"),
        (("--minutes", "soon"), "must be a number above 0, found 'soon'"),
        (("--prepare", "x", "--python", "three"), "must be like 3.12"),
        (("--python", "3.12"), "--python is for --prepare"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: tuple[str, ...], message: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert message in done.stderr


def test_wheels_that_are_not_there_are_refused(tmp_path: Path) -> None:
    done = run("--size", "tiny", "--out", str(tmp_path / "out"), "--wheels", str(tmp_path))
    assert done.returncode == 2
    assert "holds no wheels" in done.stderr
    assert {phase["status"] for phase in result(tmp_path / "out")["phases"].values()} == {"not run"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_check_still_writes_what_it_has(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=NO_GPU)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("machine "):
        pass
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    found = result(tmp_path)
    assert found["finished"]
    assert found["phases"]["machine"]["status"] == "interrupted"
    others = [found["phases"][name] for name in phases.NAMES if name != "machine"]
    assert {phase["reason"] for phase in others} == {"interrupted before it"}
    assert "ipc       not run" in told
    assert (tmp_path / "gpu_check.txt").read_text(encoding="utf-8").strip() in told


def test_a_check_without_time_says_so_and_has_not_passed(tmp_path: Path) -> None:
    done = run("--size", "tiny", "--only", "machine", "--minutes", "0.05", "--out", str(tmp_path))
    assert done.returncode == 2, "not even torch could be tried"
    assert result(tmp_path)["phases"]["start"]["reason"] == "no time left"


BARE = """
import sys
from importlib.machinery import PathFinder

LACKS = "pydantic pydantic_core simplejpeg mujoco OpenGL robosuite libero bddl metaworld deepspeed tensorboard".split()


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in LACKS else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


@pytest.mark.slow
def test_on_a_machine_without_the_small_packages_what_needs_them_is_left_out_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE, encoding="utf-8")
    monkeypatch.setitem(NO_GPU, "PYTHONPATH", str(tmp_path))
    done = run("--size", "tiny", "--out", str(tmp_path / "out"), "--only", "machine,ipc,egl,model,cell,toy")
    states = {name: (phase["status"], phase["reason"]) for name, phase in result(tmp_path / "out")["phases"].items()}
    without = ("skipped", "not installed: pydantic, pydantic_core, simplejpeg")
    assert states == dict.fromkeys(("start", "machine", "ipc"), ("passed", "")) | {
        "egl": ("skipped", "not installed: mujoco, OpenGL"),
        "model": ("skipped", "not installed: pydantic, pydantic_core"),
        "cell": without,
        "toy": without,
    }
    assert done.returncode == 0


@pytest.mark.slow
def test_the_tiny_size_measures_everything_on_a_cpu(tmp_path: Path) -> None:
    done = run("--size", "tiny", "--out", str(tmp_path), "--minutes", "10", timeout=600)
    found = result(tmp_path)
    states = {name: phase["status"] for name, phase in found["phases"].items()}
    skipped = {name for name, status in states.items() if status == "skipped"}
    assert skipped <= {"tests", "egl"} and "tests" in skipped
    assert {status for name, status in states.items() if name not in skipped} == {"passed"}, done.stdout
    assert done.returncode == 0
    assert list(states) == ["start", *phases.NAMES]
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_check.json", "gpu_check.txt", "gpu_check.log"}
    figures = {name: phase["figures"] for name, phase in found["phases"].items()}

    assert figures["machine"]["versions"]["torch"] == torch.__version__
    assert all(row["tflops"] > 0 for row in figures["machine"]["matrix"])
    assert {row["masked"] for row in figures["machine"]["attention"]} == {False, True}
    assert {way: kind["seen"] for way, kind in figures["ipc"]["ways"].items()} == {
        "returns": 7.0, "os._exit": 7.0, "SIGKILL": 7.0,
    }  # fmt: skip
    noise = figures["model"]["noise"]
    assert noise["the same batch again"]["token_max"] == 0.0
    assert 0.0 <= noise["there, beside prompts of other lengths"]["token_max"] < 1e-3, "float32"
    for row in (*figures["model"]["inference"].values(), figures["model"]["training"]):
        assert row["ms"] > 0 and row["utilisation"] > 0
    cell = figures["cell"]
    assert len(cell["updates"]) == 5
    assert all(0 < row["decisions"] <= 8 and row["update_s"] > 0 for row in cell["updates"])
    assert cell["updates"][0]["ratio/abs_log_p95"] < 1e-3, "at lag 0"
    assert cell["rates"]["perf/learner_samples_per_s"] > 0 and cell["rates"]["perf/decisions_per_s"] > 0
    assert figures["toy"]["optimizer_steps"] == 60
    assert figures["graphs"]["tiny"]["follows"]
    assert (tmp_path / "gpu_check.txt").read_text(encoding="utf-8").strip() in done.stdout

    for name, phase in found["phases"].items():  # a phase that was killed has only some of its figures
        for missing in phase["figures"]:
            partial = copy.deepcopy(found)
            del partial["phases"][name]["figures"][missing]
            assert table.UNREADABLE not in table.render(partial)
        assert table.UNREADABLE not in table.render(found | {"phases": {name: phase | {"figures": {}}}})
