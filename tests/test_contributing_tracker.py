"""The tracker of CONTRIBUTING.md is added, literally, in a copy of the repository."""

from __future__ import annotations

from pathlib import Path

from contributed import add_tracker, call, changed_files, copy  # noqa: F401 - copy is a fixture


def test_a_new_tracker_is_one_file_and_two_lines(copy: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture
    add_tracker(copy)
    assert changed_files(copy) == {"vla_rl/tracking/lines.py", "vla_rl/tracking/__init__.py"}
    taken = tmp_path / "taken.txt"
    overrides = [f"logging.lines.file={taken}", "runtime.mode=serial", "budget={optimizer_steps: 2}"]
    overrides += ["evaluation.episodes_per_task=0", "logging.tensorboard=false", "name=mine"]
    assert f"lines: {taken}" in call(copy, "-m", "vla_rl", "train", "toy", *overrides).stdout
    words = [line.split() for line in taken.read_text(encoding="utf-8").splitlines()]
    assert [line[:2] for line in words] == [
        ["mine", "1"], ["mine", "2"], ["mine", "recipe.yaml"], ["mine", "manifest.json"], ["mine", "report.html"],
        ["mine", "finished"],
    ]  # fmt: skip
    call(copy, "-m", "ruff", "check", "--select", "F,E,I,ANN,D", "vla_rl/tracking")
