"""What files of demonstrations say about their task: LIBERO builds the same task from it."""

import json
from pathlib import Path

import numpy as np
import pytest

from vla_rl.envs.libero import shim
from vla_rl.envs.libero.description import environment_of
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.suites import libero_task, task_files, wheel_root

pytestmark = pytest.mark.libero


@pytest.mark.parametrize(("suite", "task_id"), [("libero_spatial", 2), ("libero_object", 0), ("libero_90", 0)])
def test_the_task_is_described_in_liberos_own_words(suite, task_id):
    libraries = shim.load(gl="auto")
    task = libero_task(suite, task_id)
    found = environment_of(task, image_size=48)
    environment, problem = (json.loads(found[name]) for name in ("env_args", "problem_info"))
    assert problem == libraries.problem_info(str(task_files(task).bddl))
    assert environment["problem_name"] == problem["problem_name"]
    assert environment["env_name"] == libraries.problems[environment["problem_name"]].__name__
    assert found["bddl_file_name"] == environment["bddl_file"] == environment["env_kwargs"]["bddl_file_name"]
    assert wheel_root().parents[1] / found["bddl_file_name"] == task_files(task).bddl


def test_libero_builds_the_task_from_the_description_alone():
    """Its own class, with these arguments and a recorded state, is where our simulation was."""
    env = LiberoEnv("libero_spatial", 2, assets="proxy", image_size=48)
    env.reset(0)
    state, joints = env.simulation.flattened_state(), env.simulation.arm_joints()
    environment = json.loads(environment_of(env.task, image_size=48)["env_args"])
    arguments = environment["env_kwargs"]
    assert arguments["camera_names"] == ["agentview", "robot0_eye_in_hand"]
    unseen = {"use_camera_obs": False, "has_offscreen_renderer": False}
    bddl = str(wheel_root().parents[1] / Path(arguments["bddl_file_name"]))
    theirs = shim.load(gl="auto").problems[environment["problem_name"]](
        **(arguments | unseen | {"bddl_file_name": bddl})
    )
    theirs.reset()
    theirs.sim.set_state_from_flattened(state)
    theirs.sim.forward()
    np.testing.assert_allclose(theirs._get_observations(force_update=True)["robot0_joint_pos"], joints, atol=1e-3)
    assert type(theirs.robots[0].controller).__name__ == "OperationalSpaceController"
    assert theirs.control_freq == 20
    theirs.close()
    env.close()
