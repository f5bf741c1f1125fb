"""Where the simulator's tests find their assets, and LIBERO's own environment to compare with."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

FULL_ASSETS_VARIABLE = "VLA_RL_TEST_LIBERO_ASSETS"
FULL_ASSETS_BESIDE = Path(__file__).resolve().parents[3] / "shared" / "libero-assets"  # beside the repository


def simulator_is_missing():
    if any(importlib.util.find_spec(name) is None for name in ("libero", "robosuite", "mujoco")):
        return "hf-libero, robosuite or mujoco is not installed"
    from vla_rl.envs.libero.gl import choose
    from vla_rl.errors import SimulatorError

    try:
        choose("auto")
    except SimulatorError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items):
    wanted = [item for item in items if item.get_closest_marker("libero")]
    reason = simulator_is_missing() if wanted else ""
    if reason:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    before = os.environ.get("VLA_RL_CACHE")
    os.environ["VLA_RL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["VLA_RL_CACHE"]
    else:
        os.environ["VLA_RL_CACHE"] = before


def full_assets_folder():
    return os.environ.get(FULL_ASSETS_VARIABLE) or str(FULL_ASSETS_BESIDE)


@pytest.fixture(scope="session")
def best_assets():
    """The full assets where they are at hand, else the stand-ins."""
    from vla_rl.envs.libero.assets import resolve_assets

    folder = full_assets_folder()
    return resolve_assets(folder if Path(folder).is_dir() else "proxy")


@pytest.fixture(scope="session")
def full_assets():
    folder = full_assets_folder()
    if not Path(folder).is_dir():
        pytest.skip(f"needs LIBERO's full assets in {folder}: set {FULL_ASSETS_VARIABLE} to their folder")
    return folder


class StockLibero:
    """LIBERO's own evaluation wrapper, driven as its users drive it: every observable on, both cameras every step."""

    def __init__(self, suite, task_id, *, assets, image_size=128):
        from vla_rl.envs.libero import shim
        from vla_rl.envs.libero.assets import resolve_assets
        from vla_rl.envs.libero.proxy.robot import simplify_visuals
        from vla_rl.envs.libero.suites import libero_task, task_files

        shim.load(gl="auto")
        self.assets = resolve_assets(assets)
        shim.use_assets(self.assets.folder)
        from libero.libero.envs import OffScreenRenderEnv

        bddl = task_files(libero_task(suite, task_id)).bddl
        self.wrapper = OffScreenRenderEnv(
            bddl_file_name=str(bddl), camera_heights=image_size, camera_widths=image_size, ignore_done=True
        )
        if self.assets.kind == "proxy":
            self.wrapper.env.set_xml_processor(simplify_visuals)
        self.observation = None

    def start(self, seed, state=None, settle=10):
        from vla_rl.envs.libero import shim

        shim.use_assets(self.assets.folder)
        self.wrapper.seed(seed)
        self.observation = self.wrapper.reset()
        if state is not None:
            self.observation = self.wrapper.set_init_state(state)
        for _ in range(settle):
            self.step([0, 0, 0, 0, 0, 0, -1])

    def step(self, action):
        self.observation, _, success, _ = self.wrapper.step(action)
        return success

    def frames(self):
        names = ("agentview_image", "robot0_eye_in_hand_image")
        return np.stack([self.observation[name][::-1, ::-1] for name in names])

    def state(self):
        data = self.wrapper.env.sim.data
        return np.array(data.qpos), np.array(data.qvel)

    def close(self):
        self.wrapper.close()


@pytest.fixture
def stock_libero():
    made = []

    def make(*args, **kwargs):
        made.append(StockLibero(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()
