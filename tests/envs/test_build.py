import functools
import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vla_rl.envs.libero.init_states import num_init_states
from vla_rl.envs.libero.plan import build_libero
from vla_rl.envs.libero.suites import libero_task, libero_tasks
from vla_rl.envs.toy import ToyEnv
from vla_rl.libero_suites import SUITES

needs_wheel = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")


def test_listing_tasks_and_states_imports_no_simulator():
    code = (
        "import sys; import vla_rl.envs.libero.plan; import vla_rl.envs.libero.suites as b; "
        "tasks = b.libero_tasks('libero_10') if sys.argv[1] == 'True' else []; "
        "print(sorted({'mujoco', 'robosuite', 'libero', 'torch', 'OpenGL'} & set(sys.modules)))"
    )
    installed = str(importlib.util.find_spec("libero") is not None)
    result = subprocess.run([sys.executable, "-c", code, installed], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_public_name_of_libero_is_imported_without_any_simulator():
    code = (
        "import sys; from vla_rl.envs.libero import LiberoEnv; "
        "print(LiberoEnv.__module__, sorted({'mujoco', 'robosuite', 'libero', 'torch', 'OpenGL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "vla_rl.envs.libero.env []"
    with pytest.raises(ImportError, match="LiberoEnvironment"):
        from vla_rl.envs.libero import LiberoEnvironment  # noqa: F401


def test_builders_survive_pickling_and_build_the_same_environment():
    builder = pickle.loads(pickle.dumps(functools.partial(ToyEnv, 1, horizon=3)))
    env = builder()
    assert env.horizon == 3
    assert np.array_equal(env.reset(2).state, ToyEnv(1, horizon=3).reset(2).state)
    libero = functools.partial(
        build_libero, suite="libero_spatial", task_id=0, assets="proxy", render_size=64, cameras=("agentview",),
        init_states="standard",
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(libero)).keywords["suite"] == "libero_spatial"


@needs_wheel
def test_tasks_stand_in_the_benchmarks_own_order():
    spatial = libero_tasks("libero_spatial")
    assert [task.task_id for task in spatial] == list(range(10))
    between = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    assert spatial[0].language == between
    assert spatial[9].language == "pick up the black bowl on the wooden cabinet and place it on the plate"
    assert libero_tasks("libero_object")[3].language == "pick up the bbq sauce and place it in the basket"
    assert len(libero_tasks("libero_90")) == 90


@needs_wheel
def test_the_prompt_of_a_long_task_leaves_the_scene_out():
    long = libero_tasks("libero_10")
    assert long[0].name.startswith("LIVING_ROOM_SCENE2_")
    assert long[0].language == "put both the alphabet soup and the tomato sauce in the basket"
    ninety = {task.name: task.language for task in libero_tasks("libero_90")}
    name = "KITCHEN_SCENE10_put_the_black_bowl_in_the_top_drawer_of_the_cabinet"
    assert ninety[name] == "put the black bowl in the top drawer of the cabinet"


@needs_wheel
def test_every_suite_has_fifty_standard_states_and_spatial_and_long_fifty_spare_ones():
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
        assert num_init_states(libero_task(suite, 3), "standard") == 50
        assert num_init_states(libero_task(suite, 3), "sampled") is None
    assert num_init_states(libero_task("libero_spatial", 3), "spare") == 50
    assert num_init_states(libero_task("libero_10", 3), "spare") == 50


@needs_wheel
@pytest.mark.parametrize("suite", ["libero_object", "libero_goal"])
def test_a_suite_without_spare_states_says_so_and_names_the_alternative(suite):
    with pytest.raises(ValueError, match=f"does not exist for {suite}"):
        num_init_states(libero_task(suite, 0), "spare")


@needs_wheel
def test_a_task_or_suite_that_does_not_exist_is_refused_with_what_exists():
    with pytest.raises(ValueError, match=r"tasks 0\.\.9"):
        num_init_states(libero_task("libero_spatial", 10), "standard")
    with pytest.raises(ValueError, match="libero_goal"):
        libero_tasks("libero_spacial")


def test_horizons_are_those_of_the_evaluation_protocol():
    horizons = {name: suite.horizon for name, suite in SUITES.items()}
    assert horizons == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }


@needs_wheel
@pytest.mark.parametrize("name", SUITES)
def test_the_suites_have_as_many_tasks_and_such_states_as_the_wheel_holds(name):
    assert len(libero_tasks(name)) == SUITES[name].num_tasks
    if SUITES[name].has_spare_states:
        assert num_init_states(libero_task(name, 0), "spare") == 50
    else:
        with pytest.raises(ValueError, match="spare"):
            num_init_states(libero_task(name, 0), "spare")
