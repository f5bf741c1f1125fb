"""The frame of the command line: quick help, exit codes, one message for a user's mistake."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from vla_rl import __version__
from vla_rl.cli.main import app
from vla_rl.cli.number_lists import parse_seeds, parse_tasks
from vla_rl.errors import UserError, preflight

HEAVY = {"torch", "numpy", "transformers", "accelerate", "deepspeed", "mujoco", "robosuite", "libero"}

LOADED = f"""
import sys
from vla_rl.cli.start import run
try:
    run()
finally:
    print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)
"""


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vla_rl", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["study", "--help"], ["eval", "-h"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


def test_checking_recipes_imports_no_model_and_no_simulator() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "recipes", "validate"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] in ("[]", "['numpy']")  # of the toy, which is its own simulator


def test_help_names_every_verb() -> None:
    shown = program("--help").stdout
    assert all(verb in shown for verb in ("train", "eval", "recipes", "study"))


def test_the_version_is_the_package_s() -> None:
    assert program("--version").stdout == f"vla-rl {__version__}\n"


def test_a_user_s_mistake_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\nenv: {name: toi}\n", encoding="utf-8")
    for arguments in (["train", str(wrong)], ["recipes", "validate", str(wrong)], ["recipes", "show", str(wrong)]):
        done = program(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: {wrong}: ")
        assert "did you mean 'toy'?" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unknown_verb_or_option_is_exit_code_2() -> None:
    assert program("trian").returncode == 2
    assert program("train", "toy", "--fast").returncode == 2


def test_validate_tells_the_faults_of_every_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.yaml" for name in "ab"]
    for path in paths:
        path.write_text("name: 3", encoding="utf-8")
    done = program("recipes", "validate", "toy", *map(str, paths))
    assert done.returncode == 2
    assert done.stdout == "toy: valid\n"
    assert all(f"{path}: " in done.stderr for path in paths)


def test_validate_takes_overrides_as_train_does(tmp_path: Path) -> None:
    assert program("recipes", "validate", "toy", "seed=5").stdout == "toy: valid\n"
    refused = program("recipes", "validate", "toy", "quickstart", "seed=-5")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("seed=-5") == 2
    own = tmp_path / "a=b.yaml"
    own.write_text("name: 3", encoding="utf-8")
    assert f"{own}: " in program("recipes", "validate", str(own)).stderr


def test_show_prints_the_resolved_recipe() -> None:
    done = program("recipes", "show", "toy", "surrogate.name=ppo", "seed=5")
    shown = yaml.safe_load(done.stdout)
    assert shown["surrogate"] == {"name": "ppo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    assert shown["seed"] == 5
    assert "rollout" in shown


def test_list_names_the_shipped_recipes() -> None:
    shown = program("recipes", "list").stdout
    assert "quickstart\n" in shown
    assert "recipes/toy.yaml" in shown


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("env.suite is wrong"), 2, "error: env.suite is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("a fault of ours"), 1, ""),
    ],
)
def test_what_a_verb_raises_becomes_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, said: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("vla_rl.recipe.list_recipes", fail)
    result = CliRunner().invoke(app, ["recipes", "list"])
    assert (result.exit_code, result.stderr) == (code, said)
    assert isinstance(result.exception, ValueError) == (code == 1)  # only a fault of ours keeps its traceback


def test_an_interruption_is_told_while_arguments_are_parsed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer imports pydantic then, and ends with the same code without a word."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TyperGroup, "parse_args", interrupt)
    result = CliRunner().invoke(app, ["recipes", "list"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    "arguments",
    [["train", "toy", "--run-dir", "x" * 300], ["report", "x" * 300], ["eval", "--compare", "x" * 300, "b"]],
)
def test_a_path_that_is_too_long_is_the_user_s_mistake_in_every_verb(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "File name too long" in result.stderr


def test_an_out_below_a_file_is_the_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["study", "gridworld", "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'file' / 'out'}: Not a directory; give another path\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; free some space or "),
        (OSError(errno.ENOSPC, "No space left on device", "a/x", None, "b/x"), "error: b/x: No space left on device; "),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), "error: runs/x: Read-only file system; give a path "),
        (OSError(errno.EACCES, "Permission denied", "runs/x"), "error: runs/x: Permission denied; give a path "),
        (OSError(errno.ENOTDIR, "Not a directory", "a/x"), "error: a/x: Not a directory; give another path"),
        (OSError(errno.EISDIR, "Is a directory", "a/.x", None, "a"), "error: a: Is a directory; give another path"),
        (OSError(errno.EEXIST, "File exists", "a"), "error: a: File exists; give another path"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_the_user_s_mistake(
    monkeypatch: pytest.MonkeyPatch, raised: OSError, said: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("vla_rl.recipe.list_recipes", fail)
    result = CliRunner().invoke(app, ["recipes", "list"])
    assert result.exit_code == 2
    assert result.stderr.startswith(said)


def test_a_file_that_breaks_while_it_is_read_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "runs/x")

    monkeypatch.setattr("vla_rl.recipe.list_recipes", fail)
    result = CliRunner().invoke(app, ["recipes", "list"])
    assert result.exit_code == 1
    assert isinstance(result.exception, OSError)


def test_too_little_memory_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError("Unable to allocate 96.0 GiB")

    monkeypatch.setattr("vla_rl.recipe.list_recipes", fail)
    result = CliRunner().invoke(app, ["recipes", "list"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: out of memory: Unable to allocate 96.0 GiB\n")
    assert "--dry-run" in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_preflight_makes_a_value_error_the_user_s() -> None:
    with pytest.raises(UserError, match=r"policy\.checkpoint"), preflight():
        raise ValueError("policy.checkpoint: no such folder")
    with pytest.raises(KeyError), preflight():
        raise KeyError("a fault of ours")


@pytest.mark.parametrize(("text", "ids"), [("0", [0]), ("0,3", [0, 3]), ("0-2", [0, 1, 2]), ("4, 1-2", [4, 1, 2])])
def test_task_ids_are_read(text: str, ids: list[int]) -> None:
    assert parse_tasks(text) == ids


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,1", "0-2,1", "1;2", "²"])
def test_wrong_task_ids_are_the_user_s_mistake(text: str) -> None:
    with pytest.raises(UserError, match="--tasks"):
        parse_tasks(text)


def test_fields_tells_what_a_section_may_hold() -> None:
    shown = program("recipes", "fields", "replay").stdout
    assert "replay.replay_ratio\n    number >= 0.001, <= 1000000; default: 1.0\n    decisions consumed per" in shown
    assert "optimizer" not in shown
    assert program("recipes", "fields", "repay").returncode == 2


@pytest.mark.parametrize("text", ["0-99999999999", "9" * 30, "0-" + "9" * 5000])
def test_tasks_that_no_benchmark_has_are_refused_before_they_are_listed(text: str) -> None:
    with pytest.raises(UserError, match=r"--tasks: too many tasks\n.*\n +allowed +at most 10000 tasks"):
        parse_tasks(text)


@pytest.mark.parametrize("text", ["18446744073709551616", "9" * 5000, "-1", "1.5", ""])
def test_seeds_that_torch_does_not_take_are_the_user_s_mistake(text: str) -> None:
    with pytest.raises(UserError, match="--seed: found"):
        parse_seeds(text)
