"""`vla-rl assets`: what it prints and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vla_rl.cli.main import app
from vla_rl.doctor.record import Check
from vla_rl.envs.libero.full_assets import TaskCheck
from vla_rl.envs.libero.proxy.generate import proxy_folder
from vla_rl.errors import SimulatorError
from vla_rl.types import TaskInfo


@pytest.fixture(autouse=True)
def surroundings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VLA_RL_LIBERO_ASSETS", raising=False)


def assets(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["assets", *arguments])


def test_path_prints_the_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = proxy_folder()
    assert assets("path").output == f"{folder}\n"
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(folder))
    assert assets("path").output == f"{folder}\n"


def test_status_tells_what_is_used_and_why() -> None:
    result = assets("status")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == f"proxy assets: {proxy_folder()}"
    assert "$VLA_RL_LIBERO_ASSETS is not set" in lines[1]
    assert lines[2].split() == ["libero_spatial", "10", "of", "10", "tasks", "have", "all", "their", "files"]
    assert len(lines) == 7


def test_primitives_that_are_named_as_full_assets_are_told_for_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(proxy_folder()))
    lines = assets("status").output.splitlines()
    assert lines[0] == f"proxy assets: {proxy_folder()}"
    assert "$VLA_RL_LIBERO_ASSETS names it" in lines[1]


def test_a_folder_that_is_none_is_the_user_s_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(tmp_path / "gone"))
    for verb in ("status", "path", "check"):
        result = assets(verb)
        assert result.exit_code == 2
        assert "does not exist" in result.stderr


def test_a_cache_that_cannot_be_written_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path / "file"))
    for verb in ("path", "download"):
        result = assets(verb)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "VLA_RL_CACHE" in result.stderr


TASKS = [TaskInfo(suite="libero_goal", task_id=number, name="", language="") for number in range(3)]


@pytest.mark.parametrize(
    ("problems", "faults", "code", "lines"),
    [
        ([(), (), ()], {}, 0, ["3 of 3 tasks are in order"]),
        ([(), ("plate.xml: is missing",), ()], {}, 2, ["libero_goal 1: plate.xml: is missing", "2 of 3 tasks"]),
        ([(), (), ()], {TASKS[2]: "ValueError: no mesh"}, 2, ["libero_goal 2: cannot be built: ValueError", "2 of 3"]),
    ],
)
def test_check_lists_problems_by_task(
    monkeypatch: pytest.MonkeyPatch,
    problems: list[tuple[str, ...]],
    faults: dict[TaskInfo, str],
    code: int,
    lines: list[str],
) -> None:
    checks = [TaskCheck(task, found) for task, found in zip(TASKS, problems, strict=True)]
    monkeypatch.setattr("vla_rl.envs.libero.full_assets.check_tasks", lambda _folder: checks)
    monkeypatch.setattr("vla_rl.envs.libero.full_assets.completeness", lambda _folder: {"libero_90": "67 of 90"})
    monkeypatch.setattr("vla_rl.doctor.simulator.check_import", lambda: Check("import libero", "ok", "works"))
    built: list[TaskInfo] = []
    monkeypatch.setattr("vla_rl.doctor.task_builds.build_faults", lambda _folder, tasks: built.extend(tasks) or faults)
    result = assets("check")
    assert result.exit_code == code
    for line, expected in zip(
        result.output.splitlines(), [*lines, "libero_90, which is not part of this: 67 of 90"], strict=True
    ):
        assert expected in line
    assert built == [task for task, found in zip(TASKS, problems, strict=True) if not found]


def test_without_a_simulator_check_says_that_nothing_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla_rl.envs.libero.full_assets.check_tasks", lambda _folder: [TaskCheck(TASKS[0], ())])
    monkeypatch.setattr("vla_rl.envs.libero.full_assets.completeness", lambda _folder: {"libero_90": ""})
    monkeypatch.setattr("vla_rl.doctor.simulator.check_import", lambda: Check("import libero", "failed", "no egl"))
    result = assets("check")
    assert result.exit_code == 0
    assert "not built, because the simulator does not start: no egl" in result.output


def test_download_prints_the_folder_and_how_to_use_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vla_rl.envs.libero.full_assets.download", lambda _fetch: tmp_path / "libero-assets")
    monkeypatch.setattr("vla_rl.envs.libero.full_assets.completeness", lambda _folder: {"libero_90": "90 of 90"})
    result = assets("download")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == str(tmp_path / "libero-assets")
    assert result.output.splitlines()[1].split() == ["libero_90", "90", "of", "90"]


def test_offline_download_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_fetch: object) -> Path:
        raise SimulatorError("lerobot/libero-assets could not be downloaded: no network. Fix: copy it")

    monkeypatch.setattr("vla_rl.envs.libero.full_assets.download", offline)
    result = assets("download")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: lerobot/libero-assets could not be downloaded: no network. Fix: copy it\n"
