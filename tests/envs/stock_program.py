"""LIBERO as its users run it: a program of its own that knows nothing of vla_rl and writes down what it saw.

    python stock_program.py ASSETS SUITE TASK_ID INIT_STATE SEED IMAGE_SIZE EVERY DRAWN ACTIONS.npy OUT.npz

Every EVERY of the first DRAWN control steps it keeps the frames; then it goes on without cameras, which are most of its
time. Set MUJOCO_GL before.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")


def import_libero(assets):
    """Answer LIBERO's question for where its files are before it asks, and its wish to download before it does."""
    import importlib.util
    import os

    wheel = Path(importlib.util.find_spec("libero").submodule_search_locations[0]) / "libero"
    folders = {"bddl_files": "bddl_files", "init_states": "init_files", "datasets": "datasets", "assets": "assets"}
    os.environ["LIBERO_CONFIG_PATH"] = tempfile.mkdtemp()
    config = {"benchmark_root": str(wheel)} | {key: str(wheel / folder) for key, folder in folders.items()}
    Path(os.environ["LIBERO_CONFIG_PATH"], "config.yaml").write_text(yaml.safe_dump(config))
    import libero.libero

    libero.libero._assets_path_cache = assets


def main():
    assets, suite, *numbers, actions_file, out = sys.argv[1:]
    task_id, init_state, seed, image_size, every, drawn = map(int, numbers)
    import_libero(assets)
    from libero.libero.benchmark import get_benchmark
    from libero.libero.envs import OffScreenRenderEnv

    benchmark = get_benchmark(suite)()
    env = OffScreenRenderEnv(
        bddl_file_name=benchmark.get_task_bddl_file_path(task_id), camera_heights=image_size, camera_widths=image_size
    )
    env.seed(seed)
    env.reset()
    observation = env.set_init_state(benchmark.get_task_init_states(task_id)[init_state])
    for _ in range(10):
        observation, *_ = env.step([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
    frames = [[observation[name] for name in CAMERAS]]
    physics = [np.concatenate([env.sim.data.qpos, env.sim.data.qvel])]
    for number, action in enumerate(np.load(actions_file), start=1):
        observation, *_ = env.step(action)
        physics.append(np.concatenate([env.sim.data.qpos, env.sim.data.qvel]))
        if number <= drawn and number % every == 0:
            frames.append([observation[name] for name in CAMERAS])
        if number == drawn:
            for name in CAMERAS:
                env.env.modify_observable(observable_name=name, attribute="enabled", modifier=False)
    np.savez(out, physics=physics, frames=frames)
    env.close()


if __name__ == "__main__":
    main()
