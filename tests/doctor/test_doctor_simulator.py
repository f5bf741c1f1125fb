"""What is said about LIBERO, with the simulator replaced by what it would answer."""

import json

import pytest

from vla_rl.doctor import simulator
from vla_rl.doctor.task_builds import build_faults
from vla_rl.envs.libero import probes
from vla_rl.envs.libero.assets import AssetKind
from vla_rl.envs.libero.child import Outcome
from vla_rl.errors import SimulatorError
from vla_rl.types import TaskInfo

needs_tasks = pytest.mark.libero  # the definitions of the tasks come with hf-libero


def settlings(*bowls):
    return json.dumps([{"drift_mm": drift, "tilt_degrees": tilt, "height_mm": height} for drift, tilt, height in bowls])


GOOD = {"proxy": (0.0, 0.0, 934.28), "full": (14.60, 15.95, 934.40)}


@pytest.fixture
def kind(monkeypatch):
    def choose(value):
        monkeypatch.setattr("vla_rl.doctor.simulator._asset_kind", lambda: value)

    return choose


@pytest.mark.parametrize(
    ("assets", "bowl", "status"),
    [
        ("full", (14.60, 15.95, 934.40), "ok"),
        ("full", (14.9, 16.3, 934.5), "ok"),  # another processor may round elsewhere
        ("full", (37.04, 10.50, 942.82), "failed"),  # measured with mujoco 3.4.0
        ("full", (0.0, 0.0, 934.28), "failed"),  # the proxy's number
        ("proxy", (0.0, 0.0, 934.28), "ok"),
        ("proxy", (0.0, 0.0, 933.77), "failed"),  # measured with mujoco 3.4.0
        ("proxy", (30.0, 0.0, 934.28), "failed"),
        ("proxy", (0.0, 12.0, 934.28), "failed"),
    ],
)
def test_a_bowl_must_settle_as_with_the_pinned_mujoco(child, kind, assets, bowl, status):
    kind(assets)
    check = simulator.check_settling(run=child(settlings(GOOD[assets], bowl, GOOD[assets])))
    assert check.status == status
    assert ("pip install mujoco==3.3.0" in check.fix) == (status == "failed")
    assert f"({assets} assets, 3 states)" in check.found


def test_the_state_that_is_off_is_the_one_that_is_told(child, kind):
    kind("full")
    check = simulator.check_settling(run=child(settlings(GOOD["full"], (37.04, 10.50, 942.82))))
    assert check.found.startswith("bowl 37.0 mm aside, tilted 10.5 degrees, at 942.8 mm")


PROBES = [simulator.check_settling, simulator.check_floor, simulator.check_texture]
NO_DISPLAY = Outcome(False, "", "SimulatorError: LIBERO does not start: no display. Fix: install a driver")


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_that_dies_fails_with_the_fix_where_libero_starts(monkeypatch, child, kind, probe):
    monkeypatch.setattr("vla_rl.envs.libero.shim.check_installed", lambda: None)
    kind("proxy")
    fake = child("")
    fake.answers.insert(0, NO_DISPLAY)  # the probe's, before that of the import
    check = probe(run=fake)
    assert (check.status, check.fix) == ("failed", "install a driver")
    assert check.found == "LIBERO does not run: LIBERO does not start: no display"
    fake = child("")
    fake.answers.insert(0, Outcome(False, "", "killed by signal 11"))
    check = probe(run=fake)
    assert (check.status, check.found) == ("failed", "LIBERO does not run: killed by signal 11")
    assert check.fix


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_is_skipped_where_libero_does_not_start(monkeypatch, child, kind, probe):
    monkeypatch.setattr("vla_rl.envs.libero.shim.check_installed", lambda: None)
    kind("proxy")
    fake = child()
    fake.answers = [NO_DISPLAY, NO_DISPLAY]
    assert probe(run=fake).status == "skipped"


def test_without_assets_no_probe_is_started(child, kind):
    kind(None)
    assert simulator.check_settling(run=child()).status == "skipped"
    assert simulator.check_floor(run=child()).status == "skipped"


@pytest.mark.parametrize(
    ("assets", "grey", "status"),
    [("full", 179.16, "ok"), ("full", 122.4, "failed"), ("proxy", 179.69, "ok"), ("proxy", 200.0, "failed")],
)
def test_the_floor_must_be_as_bright_as_with_the_pinned_mujoco(child, kind, assets, grey, status):
    kind(assets)
    assert simulator.check_floor(run=child(str(grey))).status == status


@pytest.mark.parametrize(("grey", "status"), [(128, "ok"), (127, "ok"), (55, "failed")])
def test_a_marked_texture_must_keep_its_grey(child, grey, status):
    check = simulator.check_texture(run=child(str(grey)))
    assert (check.status, check.found) == (status, f"a marked grey drawn as {grey} of 255")


def test_a_missing_libero_is_told_with_the_way_to_install_it(monkeypatch, child):
    def missing():
        raise SimulatorError("hf-libero is not installed: found nothing; install it ...")

    monkeypatch.setattr("vla_rl.envs.libero.shim.check_installed", missing)
    asked = child()
    check = simulator.check_import(run=asked)
    assert (check.status, check.found) == ("failed", "hf-libero is not installed: found nothing")
    assert check.fix.startswith("install it")
    assert asked.asked == []


def test_a_libero_that_cannot_be_imported_is_told(monkeypatch, child):
    monkeypatch.setattr("vla_rl.envs.libero.shim.check_installed", lambda: None)
    check = simulator.check_import(run=child(fail="ModuleNotFoundError: No module named 'easydict'"))
    assert (check.status, check.found) == ("failed", "ModuleNotFoundError: No module named 'easydict'")
    check = simulator.check_import(run=child(fail="SimulatorError: no renderer works. Fix: apt-get install libegl1"))
    assert check.fix == "apt-get install libegl1"


def test_a_named_folder_that_is_no_assets_folder_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(tmp_path))
    check = simulator.check_assets()
    assert check.status == "failed"
    assert str(tmp_path) in check.found


@needs_tasks
def test_proxies_are_a_warning_and_incomplete_assets_a_failure(monkeypatch, tmp_path):
    assert simulator.check_assets().status == "warning"
    for name in (
        "articulated_objects",
        "stable_scanned_objects",
        "turbosquid_objects",
        "stable_hope_objects",
        "scenes",
    ):
        (tmp_path / "half" / name).mkdir(parents=True)
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(tmp_path / "half"))
    check = simulator.check_assets()
    assert check.status == "failed"
    assert "33 problems" in check.found


def test_tasks_after_one_that_cannot_be_built_are_still_built(child, tmp_path):
    tasks = [TaskInfo(suite="libero_goal", task_id=number, name="", language="") for number in range(5)]
    fake = child()
    fake.answers = [
        Outcome(False, "2", "ValueError: no mesh"),
        Outcome(False, "", "killed by signal 11"),
        Outcome(True, "1", ""),
    ]
    assert build_faults(tmp_path, tasks, run=fake) == {tasks[2]: "ValueError: no mesh", tasks[3]: "killed by signal 11"}
    assert [len(arguments) - 1 for arguments, _ in fake.asked] == [5, 2, 1]


def test_a_child_that_dies_once_all_tasks_are_built_leaves_no_fault(child, tmp_path):
    fake = child()
    fake.answers = [Outcome(False, "1", "killed by signal 11")]
    assert build_faults(tmp_path, [TaskInfo(suite="libero_goal", task_id=0, name="", language="")], run=fake) == {}


def test_the_measured_bounds_tell_the_two_physics_apart():
    shifted: dict[AssetKind, probes.Settling] = {
        "full": probes.Settling(37.04, 10.50, 942.82), "proxy": probes.Settling(0.0, 0.0, 933.77),
    }  # fmt: skip
    for kind, newer in shifted.items():
        expected, _ = probes.SETTLED[kind]
        assert probes.is_settled(expected, kind)
        assert not probes.is_settled(newer, kind)
