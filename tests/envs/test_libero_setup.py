"""What is wrong before a simulator runs is said in one sentence that names it and the fix."""

import importlib.machinery
import importlib.util
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest

from vla_rl.envs.libero import check, gl, shim
from vla_rl.envs.libero.asset_files import ROOMS, check_task_assets
from vla_rl.envs.libero.assets import SUBFOLDERS, Assets, resolve_assets
from vla_rl.envs.libero.cache import cache_root, publish_folder
from vla_rl.envs.libero.child import Outcome, run_python
from vla_rl.envs.libero.egl_devices import device_to_draw_on
from vla_rl.envs.libero.gl import Probe
from vla_rl.envs.libero.init_states import read_states
from vla_rl.envs.libero.probes import build_simulation
from vla_rl.envs.libero.suites import libero_task, libero_tasks, task_files
from vla_rl.errors import SimulatorError

needs_wheel = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VLA_RL_LIBERO_ASSETS", raising=False)
    return tmp_path


def full_folder(at, without=()):
    for name in SUBFOLDERS:
        if name not in without:
            (at / name).mkdir(parents=True)
    return at


# --- assets ----------------------------------------------------------------------------------------------------------


def test_auto_is_proxy_where_nothing_was_downloaded(home):
    assert resolve_assets("auto").kind == "proxy"
    assert resolve_assets("auto") == resolve_assets("proxy")


def test_auto_takes_a_complete_download_and_leaves_an_interrupted_one(home):
    folder = full_folder(home / ".cache" / "libero" / "assets", without=("scenes",))
    assert resolve_assets("auto").kind == "proxy"
    (folder / "scenes").mkdir()
    assert resolve_assets("auto").folder == folder
    assert resolve_assets("auto").kind == "full"


def test_auto_takes_what_our_own_download_has_fetched(home, monkeypatch):
    monkeypatch.setenv("VLA_RL_CACHE", str(home / "own-cache"))
    folder = full_folder(home / "own-cache" / "libero-assets")
    assert resolve_assets("auto").folder == folder
    assert resolve_assets("auto").kind == "full"


def test_auto_prefers_the_folder_in_the_environment(home, monkeypatch):
    full_folder(home / ".cache" / "libero" / "assets")
    mine = full_folder(home / "mine")
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(mine))
    assert resolve_assets("auto").folder == mine
    assert resolve_assets("proxy").kind == "proxy"


def test_the_primitives_are_known_as_such_by_whatever_name_and_in_a_copy(home, monkeypatch):
    ours = resolve_assets("proxy").folder
    copy = shutil.copytree(ours, home / ".cache" / "libero" / "assets")
    assert [resolve_assets(name).kind for name in ("auto", str(ours), str(copy))] == ["proxy"] * 3
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(ours))
    assert resolve_assets("auto") == resolve_assets("proxy")


def test_a_folder_that_is_no_assets_folder_is_refused_with_what_it_lacks(home, monkeypatch):
    with pytest.raises(SimulatorError, match=r"assets = .*nowhere.*does not exist.*'proxy' or 'auto'"):
        resolve_assets(str(home / "nowhere"))
    half = full_folder(home / "half", without=("scenes", "turbosquid_objects"))
    with pytest.raises(SimulatorError, match="lacks turbosquid_objects, scenes"):
        resolve_assets(str(half))
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(half))
    with pytest.raises(SimulatorError, match=r"\$VLA_RL_LIBERO_ASSETS = .* or unset the variable, or use 'proxy'$"):
        resolve_assets("auto")


@needs_wheel
def test_a_task_of_libero_90_that_needs_more_than_the_proxies_says_what_is_missing(home):
    proxies = resolve_assets("proxy")
    check_task_assets(proxies, libero_task("libero_10", 5))
    lacking = next(
        task for task in libero_tasks("libero_90") if "white_bowl" in task_files(task).bddl.read_text(encoding="utf-8")
    )
    with pytest.raises(SimulatorError, match=r"libero_90 task \d+ opens: .*white_bowl\.xml.*libero_10.*full assets"):
        check_task_assets(proxies, lacking)


@needs_wheel
def test_a_mesh_that_is_missing_is_told_before_anything_is_built(tmp_path):
    shutil.copytree(resolve_assets("proxy").folder, tmp_path / "assets")
    bowl = tmp_path / "assets" / "stable_scanned_objects" / "akita_black_bowl" / "akita_black_bowl.xml"
    bowl.write_text('<mujoco><asset><mesh name="a" file="visual/bowl.obj"/></asset></mujoco>', encoding="utf-8")
    with pytest.raises(SimulatorError, match=r"akita_black_bowl\.xml: visual/bowl\.obj is missing or empty"):
        check_task_assets(Assets(tmp_path / "assets", "full"), libero_task("libero_goal", 0))


@pytest.mark.libero
@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_spatial", 0), ("libero_object", 0), *(("libero_10", task) for task in (0, 3, 5))]
)
def test_the_rooms_are_those_of_liberos_own_classes(suite, task_id):
    libraries = shim.load(gl="auto")
    from libero.libero.envs.arenas.style import STYLE_MAPPING

    bddl = str(task_files(libero_task(suite, task_id)).bddl)
    simulation = build_simulation(libero_task(suite, task_id), resolve_assets("proxy"))
    own, named = simulation.env, {name.lower(): room for name, room in ROOMS.items()}
    room = named[libraries.problem_info(bddl)["problem_name"]]  # LIBERO tells it in lower case
    assert Path(own._arena_xml).stem == room.scene
    assert STYLE_MAPPING["floor"][own._arena_properties["floor_style"]] == room.floor
    assert STYLE_MAPPING["wall"][own._arena_properties["wall_style"]] == room.wall
    simulation.close()


def test_a_folder_is_published_whole_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))
    files = {PurePosixPath("a/b.txt"): b"one", PurePosixPath("c.txt"): b"two"}
    folder = publish_folder("thing", files)
    assert (folder / "a" / "b.txt").read_bytes() == b"one"
    stamp = (folder / "c.txt").stat().st_mtime_ns
    assert publish_folder("thing", files) == folder
    assert (folder / "c.txt").stat().st_mtime_ns == stamp
    other = publish_folder("thing", {**files, PurePosixPath("c.txt"): b"three"})
    assert other != folder
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, other.name])


def test_folders_of_the_cache_have_the_mode_that_the_umask_asks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path))
    before = os.umask(0o027)
    try:
        folder = publish_folder("one", {PurePosixPath("inner/file"): b"content"})
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "inner", folder / "inner" / "file")]
    assert modes == [0o750, 0o750, 0o640]


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SimulatorError, match=r"file/cache: Not a directory\. Fix: .* VLA_RL_CACHE"):
        resolve_assets("proxy")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("VLA_RL_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_root() == Path("/one")
    monkeypatch.delenv("VLA_RL_CACHE")
    assert cache_root() == Path("/two/vla_rl")


# --- initial states --------------------------------------------------------------------------------------------------


def states_file(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


class Command:
    def __reduce__(self):
        return eval, ("__import__('os').environ.update(VLA_RL_TEST_RAN='yes')",)


def test_an_array_is_read_back(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(read_states(states_file(tmp_path / "x.init", pickle.dumps(array, protocol=2))), array)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path):
    path = states_file(tmp_path / "evil.init", pickle.dumps(Command()))
    with pytest.raises(SimulatorError, match=r"evil\.init.*builtins\.eval.*only numpy arrays"):
        read_states(path)
    assert "VLA_RL_TEST_RAN" not in os.environ


def test_a_file_with_any_one_byte_changed_or_cut_off_is_read_or_refused_but_never_crashes(tmp_path):
    content = pickle.dumps(np.zeros((2, 3)), protocol=2)
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 0x2A
        for damaged in (bytes(changed), content[:index]):
            try:
                states = read_states(states_file(tmp_path / "x.init", damaged))
            except SimulatorError:
                continue
            assert states.ndim == 2


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([1.0, 2.0]),
        pickle.dumps(np.zeros((1, 2, 3))),
        pickle.dumps(np.zeros((2, 2), np.float32)),
        b"",
        b"x",
    ],
)
def test_anything_but_a_table_of_doubles_is_refused(tmp_path, content):
    with pytest.raises(SimulatorError, match=r"x\.init"):
        read_states(states_file(tmp_path / "x.init", content))


def test_a_missing_and_a_damaged_file_are_refused(tmp_path):
    (tmp_path / "broken.init").write_bytes(io.BytesIO(b"PK not a zip").getvalue())
    for name in ("missing.init", "broken.init"):
        with pytest.raises(SimulatorError, match=name):
            read_states(tmp_path / name)


# --- graphics --------------------------------------------------------------------------------------------------------


@pytest.fixture
def working(monkeypatch):
    """Pretend which backends render."""

    def pretend(*names):
        monkeypatch.setattr(
            gl, "probe", lambda name: Probe("pretended", "") if name in names else Probe(None, "broken")
        )

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    return pretend


def test_auto_tries_egl_first_and_osmesa_next(working):
    working("egl", "osmesa")
    assert gl.choose("auto") == "egl"
    working("osmesa")
    assert gl.choose("auto") == "osmesa"


def test_the_users_own_choice_wins_over_auto_but_not_over_the_recipe(working, monkeypatch):
    working("egl", "osmesa")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert gl.choose("auto") == "osmesa"
    assert gl.choose("egl") == "egl"


def test_no_renderer_is_one_error_with_every_library_and_the_command_that_installs_it(working, monkeypatch):
    working()
    monkeypatch.setattr(gl, "_has_library", lambda _backend: False)
    with pytest.raises(SimulatorError, match=r"egl.*osmesa.*apt-get install -y libegl1.*apt-get install -y libosmesa6"):
        gl.choose("auto")
    with pytest.raises(SimulatorError, match="libosmesa6") as caught:
        gl.choose("osmesa")
    assert "libegl1" not in str(caught.value)


def test_a_library_that_is_there_but_does_not_draw_is_not_to_be_installed_again(working, monkeypatch):
    working()
    monkeypatch.setattr(gl, "_has_library", lambda _backend: True)
    with pytest.raises(
        SimulatorError, match=r"libEGL\.so\.1 is there, but broken.*Fix: repair the graphics driver"
    ) as caught:
        gl.choose("egl")
    assert "apt-get" not in str(caught.value)


@pytest.mark.parametrize("value", ["glfw", "bogus"])
def test_a_renderer_of_the_user_that_needs_a_display_is_refused_with_those_that_do_not(monkeypatch, value):
    monkeypatch.setenv("MUJOCO_GL", value)
    with pytest.raises(SimulatorError, match=f"MUJOCO_GL={value} .*unset it, or set egl or osmesa"):
        gl.choose("auto")


@pytest.mark.libero
@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [("MUJOCO_GL", "osmesa", "libOSMesa.so.8 is not installed"), ("MUJOCO_EGL_DEVICE_ID", "99", "got 99")],
)
def test_a_renderer_that_fails_is_one_error_and_nothing_else_on_the_terminal(variable, value, found):
    if variable == "MUJOCO_GL" and gl._has_library("osmesa"):
        pytest.skip("libOSMesa is installed here, so that it does not fail")
    code = (
        "from vla_rl.envs.libero import LiberoEnv\n"
        "env = LiberoEnv('libero_spatial', 0, assets='proxy', image_size=8, gl='auto')\n"
        "env.reset(0)"
    )
    environment = {**os.environ, "MUJOCO_GL": "egl", variable: value}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "SimulatorError: no renderer works" in result.stderr
    assert found in result.stderr.splitlines()[-1]
    assert f"unset {variable}" in result.stderr.splitlines()[-1]
    assert "Exception ignored" not in result.stderr


def test_an_unknown_renderer_is_refused_with_the_known_ones():
    with pytest.raises(SimulatorError, match="auto, egl, osmesa"):
        gl.choose("vulkan")  # type: ignore[arg-type]


@pytest.fixture
def egl_devices(monkeypatch):
    """Pretend which EGL devices there are, and that those marked by "!" cannot be used."""

    def pretend(*names):
        fake = SimpleNamespace(
            egl_ext=SimpleNamespace(
                EGL_PLATFORM_DEVICE_EXT=0x313F,
                EGL_NO_DISPLAY="no display",
                EGL_SUCCESS=0x3000,
                eglQueryDevicesEXT=lambda: list(names),
                eglGetPlatformDisplayEXT=lambda _platform, device, _attributes: device,
                eglInitialize=lambda display, _major, _minor: not display.endswith("!"),
                eglGetError=lambda: 0x3000,
            )
        )
        monkeypatch.setitem(sys.modules, "mujoco.egl", fake)

    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return pretend


@pytest.mark.libero
@pytest.mark.parametrize(("visible", "chosen"), [(None, "0"), ("", "0"), ("1", "1"), ("GPU-8f4c,GPU-77aa", "0")])
def test_the_egl_device_is_chosen_without_the_variable_that_robosuite_cannot_read(
    monkeypatch, egl_devices, visible, chosen
):
    egl_devices("a", "b")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with shim.graphics("egl"):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert os.environ["MUJOCO_EGL_DEVICE_ID"] == chosen
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert "MUJOCO_EGL_DEVICE_ID" not in os.environ


@pytest.mark.libero
def test_a_device_that_cannot_be_used_is_passed_over_but_not_one_that_was_named(monkeypatch, egl_devices):
    egl_devices("hidden!", "no display", "works", "works too")
    assert device_to_draw_on() == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    assert device_to_draw_on() == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device_to_draw_on() == "2"
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    assert device_to_draw_on() == "0"


_FIRST_DEVICE_UNUSABLE = """
from mujoco.egl import egl_ext
query = egl_ext.eglQueryDevicesEXT
egl_ext.eglQueryDevicesEXT = lambda: [None, *query()]
"""
_DRAW = """
from vla_rl.envs.libero import gl, shim
libraries = shim.load(gl="egl")
with shim.graphics("egl"):
    libraries.gl_context(max_width=8, max_height=8, device_id=-1).make_current()
print(gl.probe("egl").renderer)
"""


@pytest.mark.libero
def test_the_simulator_draws_on_the_device_that_the_probe_found(tmp_path, monkeypatch):
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    if gl.probe("egl").renderer is None:
        pytest.skip("EGL does not draw here")
    (tmp_path / "sitecustomize.py").write_text(_FIRST_DEVICE_UNUSABLE, encoding="utf-8")
    paths = os.pathsep.join(path for path in (str(tmp_path), os.environ.get("PYTHONPATH")) if path)
    outcome = run_python(_DRAW, seconds=120, variables={"PYTHONPATH": paths, "MUJOCO_GL": "egl"})
    assert (outcome.reason, outcome.output) == ("", gl.probe("egl").renderer)


def test_a_failure_that_is_not_the_renderers_names_itself(working):
    working("osmesa")
    with (
        pytest.raises(SimulatorError, match=r"although osmesa draws .*: ImportError: no context\. Fix: start fewer"),
        shim.graphics("osmesa"),
    ):
        raise ImportError("no context")
    working()
    with pytest.raises(SimulatorError, match="no renderer works, tried osmesa"), shim.graphics("osmesa"):
        raise ImportError("no context")


# --- the whole check -------------------------------------------------------------------------------------------------


def test_other_versions_are_told(monkeypatch, working):
    working("egl")
    monkeypatch.setenv("MUJOCO_GL", "egl")  # restored by monkeypatch: the check sets it
    monkeypatch.setattr(shim, "check_installed", lambda: None)
    monkeypatch.setattr(shim, "versions", lambda: {"mujoco": "3.4.0", "robosuite": "1.4.0", "hf-libero": "0.1.4"})
    monkeypatch.setattr(check, "_check_import", lambda backend: None)
    report = check.check_simulator(assets="proxy")
    assert len(report.warnings) == 1
    assert "mujoco 3.4.0 is installed" in report.warnings[0]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(shim, "wheel_root", lambda: Path("wheel"))
    monkeypatch.setattr(
        shim.importlib.util,
        "find_spec",
        lambda name: None if name == "robosuite" else importlib.machinery.ModuleSpec(name, None),
    )
    with pytest.raises(SimulatorError, match=r"robosuite is not installed.*--no-deps"):
        shim.check_installed()


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("SimulatorError: LIBERO does not start. Fix: install it", r"^LIBERO does not start\. Fix: install it$"),
        ("killed by signal 11", r"^hf-libero is installed but cannot be imported: killed by signal 11\. Fix: "),
    ],
)
def test_an_import_that_fails_says_once_why(monkeypatch, reason, told):
    monkeypatch.setattr(check, "run_python", lambda *_args, **_options: Outcome(False, "", reason))
    with pytest.raises(SimulatorError, match=told):
        check._check_import("egl")


@pytest.mark.libero
def test_the_check_passes_here_without_importing_the_simulator():
    code = (
        "import sys; from vla_rl.envs.libero.check import check_simulator; report = check_simulator(assets='proxy'); "
        "print(report.renderer != '', report.assets.kind, sorted({'mujoco', 'robosuite', 'libero'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True proxy []"


@pytest.mark.libero
def test_importing_libero_asks_no_question_and_prints_nothing(tmp_path):
    code = (
        "from vla_rl.envs.libero import shim; shim.load(gl='auto'); import os; "
        "assert os.environ['LIBERO_CONFIG_PATH'].startswith(os.environ['VLA_RL_CACHE']); "
        "import numba; assert numba.config.CACHE_DIR.startswith(os.environ['VLA_RL_CACHE'])"
    )
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "VLA_RL_CACHE": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    del environment["NUMBA_CACHE_DIR"]  # that of all tests
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (tmp_path / ".libero").exists()
