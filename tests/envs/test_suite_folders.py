"""Suites in folders of the user: which tasks they are, what is refused, and that they are played as they say."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from toy_suites import ASKED_KINDLY, PLUS, TASK, plus_folder, pro_folder, stock, write_states

from vla_rl.envs.kind import EnvPlan
from vla_rl.envs.libero.folders.definitions import BadDefinitionError, faults_of, parse_definition
from vla_rl.envs.libero.folders.folder_plan import plan_folder
from vla_rl.envs.libero.folders.suite_folder import names_folder, read_suite_folder
from vla_rl.envs.libero.folders.variant_names import parse_variant
from vla_rl.envs.libero.init_states import load_states, num_init_states, read_states
from vla_rl.envs.libero.perturbations.kind import Model
from vla_rl.envs.libero.perturbations.named import Noise, Variation, View
from vla_rl.envs.libero.perturbations.robot_pose import poses
from vla_rl.envs.libero.plan import build_libero, libero_builder
from vla_rl.envs.libero.section import LiberoSection
from vla_rl.envs.libero.suites import libero_task, libero_tasks, wheel_root
from vla_rl.libero_suites import MAIN_SUITES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")


def section(suite="libero_goal", **fields):
    known = {"name": "libero", "suite": suite, "assets": "proxy", "init_states": "standard"}
    return LiberoSection.model_validate(known | fields)


def planned(folder, ids=None, **fields):
    """The plan of a folder; that of the section itself is not made, because it looks for a renderer."""
    own = section(read_suite_folder(Path(folder)).base, **fields)
    builders = [
        libero_builder(own, libero_task(own.suite, 0), render_size=48, horizon=8, render_all=film)
        for film in (False, True)
    ]
    base = EnvPlan(tasks=(), builders=(builders[0],), num_init_states=(), horizon=8, filming_builders=(builders[1],))
    return plan_folder(own, Path(folder), ids, plan=lambda: base)


def refused(folder, ids=None, **fields):
    """What is said about a folder, which must be said before a plan is made."""

    def no_plan():
        raise AssertionError("the simulator was looked for")

    own = section(**fields)
    with pytest.raises(ValueError, match=r"^--") as caught:
        plan_folder(own, Path(folder), ids, plan=no_plan)
    return str(caught.value)


# --- names -----------------------------------------------------------------------------------------------------------

BOWL = "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate"


@pytest.mark.parametrize(
    ("end", "file", "category", "change"),
    [
        ("", "", "", None),
        ("_view_0_0_100_0_0_initstate_0", "", "", None),
        ("_view_352_15_100_0_0_initstate_0", "", "Camera Viewpoints", Variation(view=View(-8, 15))),
        ("_view_0_0_115_0_0_initstate_0", "", "Camera Viewpoints", Variation(view=View(distance_factor=1.15))),
        ("_view_0_0_100_2_350_initstate_0", "", "Camera Viewpoints", Variation(view=View(pan_deg=2, tilt_deg=-10))),
        ("_view_0_0_100_0_0_initstate_401", "", "Robot Initial States", Variation(pose=401)),
        ("_view_0_0_100_0_0_initstate_0_noise_50", "", "Sensor Noise", Variation(noise=Noise(50))),
        ("_language_7_view_0_0_100_0_0_initstate_0", "_language_7", "Language Instructions", None),
        ("_level3_sample2", "_level3_sample2", "Objects Layout", None),
        ("_add_7", "_add_7", "Objects Layout", None),
        ("_table_7", "_table_7", "Background Textures", None),
        ("_tb_7", "_tb_7", "Background Textures", None),
        ("_light_7", "_light_7", "Light Conditions", None),
    ],
)
def test_a_name_of_libero_plus_says_what_is_changed(end, file, category, change):
    found = parse_variant(BOWL + end)
    assert (found.base, found.file, found.category, found.change) == (BOWL, BOWL + file, category, change)
    assert bool(found.foreign) == end.startswith(("_add", "_table", "_tb", "_light"))
    assert found.own_states == end.startswith(("_level", "_add"))


@pytest.mark.parametrize(
    "end", ["_view_360_0_100_0_0_initstate_0", "_view_0_0_0_0_0_initstate_0", "_view_0_0_100_0_0_initstate_501",
            "_view_0_0_100_0_0_initstate_0_noise_51"],
)  # fmt: skip
def test_numbers_that_libero_plus_does_not_have_are_refused(end):
    with pytest.raises(ValueError, match="angles must be below 360"):
        parse_variant(BOWL + end)


def test_a_view_is_applied_in_the_order_of_libero_plus():
    """From (1, 0, 0.8): 90 degrees around is (0, 1, 0.8), and twice as far from (0, 0, 0.8) is (0, 2, 0.8)."""
    camera = SimpleNamespace(pos=np.array([1.0, 0.0, 0.8]), quat=np.array([1.0, 0.0, 0.0, 0.0]))
    scene = Model(mujoco=None, model=SimpleNamespace(camera=lambda _name: camera), repainted=set())
    task = libero_task("libero_goal", 0)
    Variation(view=View(azimuth_deg=90, distance_factor=2.0, pan_deg=-90)).effect(task, 0, seed=0).edit_model(scene)
    assert camera.pos == pytest.approx([0.0, 2.0, 0.8])
    assert camera.quat == pytest.approx([1.0, 0.0, 0.0, 0.0])  # turned around, and back in its place


def test_a_pose_and_a_noise_are_those_of_their_numbers():
    tried = []
    simulation: Any = SimpleNamespace(set_arm=tried.append, robot_touches=lambda: True)
    Variation(pose=102).effect(libero_task("libero_goal", 0), 0, seed=0).before_settling(simulation)
    assert np.array_equal(tried, poses()[1, 1:2])
    names = [type(Noise(number).effect).__name__ for number in (1, 10, 11, 21, 31, 41, 50)]
    kinds = ("MotionBlur", "MotionBlur", "GaussianBlur", "ZoomBlur", "Fog", "GlassBlur", "GlassBlur")
    assert names == [f"{kind}Effect" for kind in kinds]
    assert Noise(13).effect.sigma == 3.0
    assert (Noise(50).effect.sigma, Noise(50).effect.max_shift) == (2.5, 5)


# --- definitions -----------------------------------------------------------------------------------------------------


def test_every_definition_of_libero_is_in_order():
    files = sorted((wheel_root() / "bddl_files").glob("*/*.bddl"))
    assert len(files) >= 130
    for file in files:
        assert list(faults_of(parse_definition(file.read_text(encoding="utf-8")))) == []


GOAL = "(And (On akita_black_bowl_1 plate_1))"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (GOAL, "(And (On akita_black_bowl_1 plate_9))", "(on akita_black_bowl_1 plate_9) in :goal names plate_9"),
        (GOAL, "(And (Beside akita_black_bowl_1 plate_1))", "in :goal is none of on, in, open"),
        (GOAL, "(And (On akita_black_bowl_1))", "(on akita_black_bowl_1) in :goal must name 2"),
        (GOAL, "(And)", "(:goal ...) is empty"),
        (GOAL, "(And (Not (On akita_black_bowl_1 plate_1)))", "(not (...)) in :goal is none of on"),
        ("plate_1 - plate", "plate_1 - red_plate", "'plate_1' is of category 'red_plate', which LIBERO does not have"),
        ("LIBERO_Tabletop", "Libero_Garden", "problem class 'libero_garden_manipulation' is not LIBERO's"),
        ("(:obj_of_interest", "(:perturbation_config", "block (:perturbation_config ...) is not LIBERO's"),
        ("(:domain robosuite)", "", "block (:domain ...) is missing"),
        ("Put the bowl on the plate", "", "(:language ...) has no words"),
        ("0.04 -0.03 0.060000000000000005 -0.01", "0.04 -0.03 0.06", "'plate_region': :ranges must be rectangles"),
        ("3.141592653589793 3.141592653589793", "exit 0", "'cabinet_region': :yaw_rotation must be numbers"),
    ],
)
def test_what_would_stop_libero_later_is_found(old, new, fault):
    text = stock()[1]
    assert old in text
    assert any(fault in found for found in faults_of(parse_definition(text.replace(old, new, 1))))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("(define (problem x)", "never closed"), ("(define))", "never opened"), ("", "not one"), ("(a)", "begin with")],
)
def test_what_is_no_definition_is_refused(text, complaint):
    with pytest.raises(BadDefinitionError, match=complaint):
        parse_definition(text)


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", MAIN_SUITES)
def test_libero_s_own_folders_are_suites_with_the_same_tasks(suite):
    plan = planned(wheel_root() / "bddl_files" / suite)
    own = libero_tasks(suite)
    assert [(task.task_id, task.name, task.language) for task in plan.tasks] == [
        (task.task_id, task.name, task.language) for task in own
    ]
    assert {task.suite for task in plan.tasks} != {suite}  # results are not mixed with those of the benchmark
    assert plan.num_init_states == (50,) * 10
    assert plan.folder.bases == {number: number for number in range(10)}
    assert plan.folder.episodes_per_task == 50


def test_only_a_text_that_the_folder_changed_replaces_the_name_of_the_file(tmp_path):
    """LIBERO's definitions and file names differ in their words, and policies were trained on the names."""
    swapped = planned(pro_folder(tmp_path, "swap"))
    asked = planned(pro_folder(tmp_path, "lan", edit=lambda text: text.replace("Put the bowl", "Put that thing")))
    assert [task.language for task in swapped.tasks] == ["put the bowl on the plate"]
    assert [task.language for task in asked.tasks] == ["put that thing on the plate"]
    assert swapped.folder.base == "libero_goal"
    assert not any("LIBERO-plus" in sentence for sentence in swapped.folder.sentences)


def test_libero_plus_s_list_names_the_tasks_and_what_needs_its_own_files_is_left_out_by_name(tmp_path):
    folder = plus_folder(tmp_path)
    plan = planned(folder)
    name = stock()[0]
    assert [task.name for task in plan.tasks] == [name + end for end in list(PLUS)[:5]]
    assert [task.task_id for task in plan.tasks] == [0, 1, 2, 3, 4]
    assert [task.language for task in plan.tasks] == ["put the bowl on the plate"] * 3 + [
        ASKED_KINDLY, "put the bowl on the plate"
    ]  # fmt: skip
    assert plan.num_init_states == (50, 50, 50, 50, 1)
    assert list(plan.folder.categories.values()) == list(PLUS.values())[:5]
    assert plan.folder.bases == dict.fromkeys(range(5), TASK)
    assert plan.folder.episodes_per_task == 1
    told = " ".join(plan.folder.sentences)
    assert "only 5 of 6 tasks" in told
    assert "1 task cannot be played: lights are in LIBERO-plus's own scene files" in told
    assert "poses of the arm are set after the stored states" in told
    changes = [builder.keywords["perturbation"] for builder in plan.builders]
    assert changes == [Variation(view=View(30, 15)), Variation(pose=250), Variation(noise=Noise(45)), None, None]
    assert "task 5, " in refused(folder, [5]) and "lights are in LIBERO-plus's own" in refused(folder, [5])
    assert refused(folder, [3, 6]).startswith(f"--tasks: {folder} has tasks 0..5, found [6]")
    assert [task.task_id for task in planned(folder, [4, 0]).tasks] == [4, 0]


def test_states_are_the_folder_s_own_or_libero_s_where_a_variant_shares_them(tmp_path):
    plan = planned(plus_folder(tmp_path))
    stored = read_states(stock()[2])
    shared, own = load_states(plan.tasks[0], "standard"), load_states(plan.tasks[4], "standard")
    assert shared is not None and own is not None
    assert np.array_equal(shared, stored)
    assert own.shape == (1, 79)
    assert own[0, 10:12] == pytest.approx([0.01, 0.05])
    assert num_init_states(plan.tasks[4], "sampled") is None


def test_a_suite_s_name_follows_from_what_its_files_hold(tmp_path):
    folder = pro_folder(tmp_path / "a", "swap")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (name,) = {read_suite_folder(tmp_path / it / "bddl_files" / folder.name).name for it in "ab"}
    assert name.startswith("libero_goal_swap-")
    states = tmp_path / "b" / "init_files" / folder.name / f"{stock()[0]}.pruned_init"
    write_states(states, read_states(states)[:3])
    assert read_suite_folder(tmp_path / "b" / "bddl_files" / folder.name).name != name


def test_all_that_is_wrong_is_told_at_once_and_by_file(tmp_path):
    text, states = stock()[1], read_states(stock()[2])
    folder = tmp_path / "bddl_files" / "libero_goal_mine"
    folder.mkdir(parents=True)
    broken = states.copy()
    broken[4, 30] = np.nan
    cases = {
        "a_torn": (text[:-5], states),
        "b_goal": (text.replace("akita_black_bowl_1 plate_1))", "akita_black_bowl_1 tray_1))"), states),
        "c_none": (text, states[:0]),
        "d_other": (text, states[:, :-2]),
        "e_nan": (text, broken),
        "f_lacks": (text, None),
        "g_text": (text, "no states"),
        "h_fine": (text, states),
    }
    for name, (content, stored) in cases.items():
        (folder / f"{name}.bddl").write_text(content)
        if stored is not None:
            write_states(folder / f"{name}.pruned_init", stored)
    said = refused(folder)
    lines = said.splitlines()
    assert lines[0] == f"--suite: {folder}: 7 problems"
    for line, expected in zip(
        lines[1:8],
        (
            "a_torn.bddl: a parenthesis is opened that is never closed",
            "b_goal.bddl: (on akita_black_bowl_1 tray_1) in :goal names tray_1",
            "c_none.pruned_init holds no state",
            "d_other.pruned_init: states have 77 numbers, and the scene of its definition has 79",
            "e_nan.pruned_init: a state is not finite",
            "f_lacks.pruned_init: its initial states are missing",
            "g_text.pruned_init must hold a 2-d float64 array, found str",
        ),
        strict=True,
    ):
        assert expected in line
    assert "h_fine" not in said
    assert [task.name for task in planned(folder, [7]).tasks] == ["h_fine"]
    assert len(refused(folder, init_states="sampled").splitlines()) == 4  # the two definitions alone


def test_a_list_that_is_none_is_refused(tmp_path):
    folder = plus_folder(tmp_path)
    file = tmp_path / "benchmark" / "task_classification.json"
    entry = {"id": 1, "name": stock()[0], "category": "", "difficulty_level": 1}
    for content, complaint in (
        ("{", "is no list of tasks"),
        ('{"libero_goal": [{"id": 1}]}', "is no list of tasks: KeyError"),
        (json.dumps({"libero_goal": [entry | {"name": "../x"}]}), "a name is a path"),
        (json.dumps({"libero_goal": [entry, entry | {"id": 2}]}), "more than once"),
        (json.dumps({"libero_goal": [entry | {"name": "lost"}]}), "lost.bddl is missing"),
    ):
        file.write_text(content)
        assert complaint in refused(folder)


def test_a_map_of_suites_orders_the_tasks_without_being_run(tmp_path):
    names = ["put_the_bowl_on_the_plate", "turn_on_the_stove"]
    folder = tmp_path / "bddl_files" / "libero_goal_task"
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(wheel_root() / "bddl_files" / "libero_goal" / f"{name}.bddl", folder)
        shutil.copy(wheel_root() / "init_files" / "libero_goal" / f"{name}.pruned_init", folder)
    assert [task.name for task in planned(folder).tasks] == names[::-1]  # the benchmark's order
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "libero_suite_task_map.py").write_text(
        f"import nothing_like_it\nlibero_task_map = {{'libero_goal_task': {names}}}\n"
    )
    assert [task.name for task in planned(folder).tasks] == names


def test_what_is_no_folder_of_definitions_says_what_was_probably_meant(tmp_path):
    folder = pro_folder(tmp_path, "swap")
    assert f"{folder} is one" in refused(tmp_path)
    assert "does not exist" in refused(tmp_path / "nowhere")
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    (elsewhere / "some_task.bddl").write_text(stock()[1])
    assert "does not say which suite" in refused(elsewhere)
    assert names_folder(str(folder)) and names_folder("./libero_goal")
    assert not names_folder("libero_goal") and not names_folder("libero_gaol")


# --- played ----------------------------------------------------------------------------------------------------------


@pytest.mark.libero
def test_variants_start_where_they_say_and_a_camera_changes_nothing_but_pictures(tmp_path):
    """The view, the noise and the words leave the physics as it is; the pose and the moved bowl do not."""
    plan = planned(plus_folder(tmp_path))
    chunk = np.zeros((1, 7), dtype=np.float32)
    usual = build_libero(**plan.builders[0].keywords | {"task_id": TASK, "own_task": None, "perturbation": None})
    seen = usual.reset(0, seed=3)
    pixels = seen.frames[0].copy()
    usual.step_chunk(chunk)
    expected = usual.physics_state()
    usual.close()
    for place, same_physics in ((0, True), (2, True), (1, False), (4, False)):
        env = plan.builders[place]()
        frame = env.reset(0, seed=3).frames[0]
        env.step_chunk(chunk)
        state = env.physics_state()
        env.close()
        assert env.task == plan.tasks[place]
        assert not np.array_equal(frame, pixels)
        same = all(np.array_equal(ours, theirs) for ours, theirs in zip(state, expected, strict=True))
        assert same == same_physics
        if place == 4:
            assert state[0][9:11] == pytest.approx([0.01, 0.05], abs=0.03)
