"""Kinds of perturbations without a simulator: their names, their numbers and what they draw."""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from vla_rl.envs.libero.perturbations.action_delay import REST, ActionDelay
from vla_rl.envs.libero.perturbations.action_noise import ActionNoise
from vla_rl.envs.libero.perturbations.camera_distance import CameraDistance
from vla_rl.envs.libero.perturbations.camera_orbit import PIVOT, CameraOrbit
from vla_rl.envs.libero.perturbations.camera_tilt import CameraTilt
from vla_rl.envs.libero.perturbations.dropped_frames import DroppedFrames
from vla_rl.envs.libero.perturbations.kind import LEVELS, Model
from vla_rl.envs.libero.perturbations.kinds import GROUPS, KINDS, Perturbation, parse_perturbations
from vla_rl.envs.libero.perturbations.paraphrase import Paraphrase, reworded
from vla_rl.envs.libero.perturbations.placement import radius
from vla_rl.envs.libero.perturbations.robot_pose import REST as ARM_AT_REST
from vla_rl.envs.libero.perturbations.robot_pose import poses
from vla_rl.envs.libero.perturbations.rotations import about, product, turned
from vla_rl.envs.libero.perturbations.wrong_instruction import WrongInstruction, shared_words
from vla_rl.types import TaskInfo

TASK = TaskInfo(suite="libero_spatial", task_id=3, name="a_task", language="put the bowl on the plate")
EVERYTHING = [Perturbation(kind, level) for kind in KINDS for level in LEVELS]


def rng(seed=0):
    return np.random.default_rng(seed)


@dataclass
class FixedCamera:
    pos: np.ndarray
    quat: np.ndarray
    fovy: np.ndarray

    def of(self, _name):
        return self


def camera():
    """LIBERO's camera over a table."""
    return FixedCamera(
        pos=np.array([0.6586131746834771, 0.0, 1.6103500240372423]),
        quat=np.array([0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349]),
        fovy=np.array([45.0]),
    )


def edited(kind, level, seed=0):
    it = camera()
    kind.draw(level, TASK, rng(seed)).edit_model(
        Model(mujoco=None, model=SimpleNamespace(camera=it.of), repainted=set())
    )
    return it


def sight(quat):
    """Where a camera looks: against its own z axis."""
    return turned(quat, np.array([0.0, 0.0, -1.0]))


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_kind_a_group_and_all_stand_for_kinds_and_levels():
    assert [str(one) for one in parse_perturbations("fog:3")] == ["fog:3"]
    assert [str(one) for one in parse_perturbations("fog")] == [f"fog:{level}" for level in LEVELS]
    assert {one.kind for one in parse_perturbations("camera:2")} == {
        "camera-orbit", "camera-distance", "camera-tilt", "field-of-view",
    }  # fmt: skip
    assert parse_perturbations("all") == sorted(EVERYTHING, key=EVERYTHING.index)
    assert [one.level for one in parse_perturbations("fog:2-4")] == [2, 3, 4]


def test_what_is_named_twice_is_there_once_in_the_order_of_the_list():
    named = parse_perturbations("fog:2,camera-tilt:1,image:2,fog:1")
    assert [str(one) for one in named][:3] == ["camera-tilt:1", "pixel-noise:2", "motion-blur:2"]
    assert [str(one) for one in named].count("fog:2") == 1
    assert named.index(Perturbation("fog", 1)) < named.index(Perturbation("fog", 2))


@pytest.mark.parametrize("text", ["", "smoke", "fog:0", "fog:6", "fog:", "fog:1-9", "fog:3-1", "fog:x", "fog:1-2-3"])
def test_what_is_no_kind_or_level_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match=r"Allowed are .* Kinds: camera-orbit, camera-distance"):
        parse_perturbations(text)


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError, match=r"'smoke' names no kind; 'fog:7' has other levels than 1 to 5"):
        parse_perturbations("smoke,fog:7,camera:1")


def test_no_group_is_called_as_a_kind_and_every_group_has_one():
    assert not set(GROUPS) & set(KINDS)
    assert {kind.group for kind in KINDS.values()} == set(GROUPS)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_level_is_told_from_the_others_by_numbers_that_a_file_can_hold(kind):
    told = [json.dumps(kind.numbers(level)) for level in LEVELS]
    assert len(set(told)) == len(LEVELS)
    assert kind.summary and kind.source


@pytest.mark.parametrize("one", EVERYTHING, ids=str)
def test_an_episode_s_draws_follow_from_task_state_seed_and_level(one):
    drawn = one.generator(TASK, 7, seed=1).random(4).tolist()
    assert one.generator(TASK, 7, seed=1).random(4).tolist() == drawn
    others = [
        one.generator(TASK, 8, seed=1),
        one.generator(TASK, 7, seed=2),
        Perturbation(one.kind, one.level % 5 + 1).generator(TASK, 7, seed=1),
        one.generator(TaskInfo(suite="libero_goal", task_id=3, name="", language=""), 7, seed=1),
        one.generator(TASK, 7, seed=1, moment=(0, 1)),
    ]
    assert drawn not in [other.random(4).tolist() for other in others]


# --- cameras ---------------------------------------------------------------------------------------------------------


def test_rotations_turn_as_their_definition_says():
    quarter = about((0.0, 0.0, 1.0), 90.0)
    assert turned(quarter, np.array([1.0, 0.0, 0.0])) == pytest.approx([0.0, 1.0, 0.0])
    assert product(quarter, quarter) == pytest.approx([0.0, 0.0, 0.0, 1.0])
    tilt = about((1.0, 0.0, 0.0), 90.0)
    assert turned(product(quarter, tilt), np.array([0.0, 1.0, 0.0])) == pytest.approx([0.0, 0.0, 1.0])


@pytest.mark.parametrize("level", LEVELS)
def test_a_camera_in_orbit_keeps_its_distance_and_what_it_sees_in_the_middle(level):
    nominal = camera()
    for seed in range(8):
        moved = edited(CameraOrbit(), level, seed)
        assert np.linalg.norm(moved.pos - PIVOT) == pytest.approx(np.linalg.norm(nominal.pos - PIVOT), abs=1e-9)
        azimuth = math.degrees(math.atan2(moved.pos[1], moved.pos[0]))
        assert abs(azimuth) == pytest.approx(15 * level)
        # The angle between the line of sight and the line to the pivot stays.
        angles = [sight(one.quat) @ (PIVOT - one.pos) for one in (nominal, moved)]
        assert angles[0] == pytest.approx(angles[1], abs=1e-6)
        assert moved.pos[2] >= nominal.pos[2] - 1e-9  # elevated by 0 or 15 degrees, never lowered


def test_half_of_the_orbits_rise_by_fifteen_degrees_and_half_go_to_either_side():
    heights, sides = zip(*[(edited(CameraOrbit(), 2, seed).pos[2], edited(CameraOrbit(), 2, seed).pos[1]) for seed in range(60)], strict=True)  # fmt: skip  # noqa: E501
    # The pivot is 0.8 high and the camera 0.6586 in front and 0.8104 above it: 50.9 degrees, raised to 65.9.
    raised = 0.8 + math.hypot(0.6586131746834771, 0.8103500240372423) * math.sin(
        math.atan2(0.8103500240372423, 0.6586131746834771) + math.radians(15)
    )
    assert {round(height, 6) for height in heights} == {round(raised, 6), round(1.6103500240372423, 6)}
    assert 15 < sum(side > 0 for side in sides) < 45


def test_distance_is_measured_from_the_pivot_and_leaves_the_direction():
    moved = edited(CameraDistance(), 5)
    assert moved.pos == pytest.approx(PIVOT + 2.0 * (camera().pos - PIVOT))
    assert np.array_equal(moved.quat, camera().quat)


def test_a_tilt_leaves_the_place_and_turns_the_line_of_sight_by_both_angles():
    for seed in range(4):
        moved = edited(CameraTilt(), 3, seed)
        assert np.array_equal(moved.pos, camera().pos)
        before, after = sight(camera().quat), sight(moved.quat)
        # Turned back about y by six degrees one way or the other, it has turned by six degrees about z alone.
        panned = [turned(about((0.0, 1.0, 0.0), back), after) for back in (-6.0, 6.0)]
        azimuths = [math.degrees(math.atan2(one[1], -one[0])) for one in panned if abs(one[2] - before[2]) < 1e-9]
        assert np.abs(azimuths) == pytest.approx([6.0], abs=1e-3)


def test_the_field_of_view_changes_by_four_degrees_per_level_in_both_directions():
    found = {float(edited(KINDS["field-of-view"], 5, seed).fovy[0]) for seed in range(12)}
    assert found == {25.0, 65.0}


# --- robot and objects -----------------------------------------------------------------------------------------------


def test_the_arm_s_poses_are_libero_plus_s():
    """Its recipe: NumPy's legacy generator seeded with 42, one direction of seven normals after another."""
    legacy = np.random.RandomState(42)
    for number in (1, 2, 3):
        direction = legacy.standard_normal(7)
        expected = ARM_AT_REST + 0.1 * direction / np.linalg.norm(direction)
        assert poses()[0, number - 1] == pytest.approx(expected, abs=1e-12)
    # Its first seven numbers are .4967 -.1383 .6477 1.5230 -.2342 -.2341 1.5792, whose squares add up to 5.6083.
    assert poses()[0, 0, 0] == pytest.approx(0.1 * 0.4967 / math.sqrt(5.6083), rel=1e-3)


def test_a_level_s_poses_are_a_tenth_of_a_radian_per_level_away():
    lengths = np.linalg.norm(poses() - ARM_AT_REST, axis=2)
    assert lengths == pytest.approx(np.broadcast_to(0.1 * np.arange(1, 6)[:, None], (5, 100)))


@pytest.mark.parametrize(
    ("suite", "name", "expected"),
    [
        ("libero_spatial", "pick", 0.05),
        ("libero_object", "pick", 0.15),
        ("libero_goal", "open", 0.10),
        ("libero_10", "KITCHEN_SCENE3_turn_on", 0.05),
        ("libero_10", "LIVING_ROOM_SCENE2_put", 0.10),
    ],
)
def test_objects_move_at_most_as_far_as_in_libero_plus(suite, name, expected):
    assert radius(5, TaskInfo(suite=suite, task_id=0, name=name, language="")) == expected


# --- instructions ----------------------------------------------------------------------------------------------------


def test_other_verbs_replace_those_of_every_clause_and_nothing_else():
    assert reworded("pick up the black bowl on the open shelf and place it on the plate") == (
        "grab the black bowl on the open shelf and set it on the plate"
    )
    assert reworded("turn on the stove and put the moka pot on it") == "switch on the stove and set the moka pot on it"
    assert reworded("hum") == "hum"


def test_a_paraphrase_gets_longer_by_the_stated_number_of_words():
    kind = Paraphrase()
    words = len(kind.instruction(1, TASK, [TASK]).split())
    for level in LEVELS:
        sentence = kind.instruction(level, TASK, [TASK])
        assert "set the bowl on the plate" in sentence
        assert len(sentence.split()) - words == kind.numbers(level)["words_added"]


def test_shared_words_are_counted_over_all_words_of_both():
    assert shared_words("put the bowl on the plate", "put the bowl on the stove") == 4 / 6  # put the bowl on, of six
    assert shared_words("a b", "a b") == 1
    assert shared_words("a", "b") == 0


def test_a_wrong_instruction_is_another_task_s_the_less_similar_the_higher_the_level():
    sentences = ("put the bowl on the plate", "put the bowl on the stove", "open the drawer", "turn knobs", "put the x")
    suite = [TaskInfo(suite="s", task_id=number, name="", language=text) for number, text in enumerate(sentences)]
    kind = WrongInstruction()
    chosen = [kind.instruction(level, suite[0], suite) for level in LEVELS]
    assert suite[0].language not in chosen
    assert (chosen[0], chosen[-1]) == ("put the bowl on the stove", "turn knobs")
    similarities = [shared_words(text, suite[0].language) for text in chosen]
    assert similarities == sorted(similarities, reverse=True)


def test_only_kinds_that_say_so_change_the_instruction():
    suite = [TASK, TaskInfo(suite="libero_spatial", task_id=4, name="b", language="open the drawer")]
    for kind in KINDS.values():
        assert all((kind.instruction(level, TASK, suite) != TASK.language) == kind.tells for level in LEVELS)


# --- actions and frames ----------------------------------------------------------------------------------------------


def test_delayed_actions_are_executed_in_their_order_after_as_many_steps_of_rest():
    effect = ActionDelay().draw(2, TASK, rng())
    actions = np.arange(28.0).reshape(4, 7)
    executed = [effect.action(action, rng()) for action in actions]
    assert np.array_equal(executed, [REST, REST, actions[0], actions[1]])


def test_two_episodes_do_not_share_their_delayed_actions():
    kind = ActionDelay()
    first = kind.draw(1, TASK, rng())
    first.action(np.ones(7), rng())
    assert np.array_equal(kind.draw(1, TASK, rng()).action(np.ones(7), rng()), REST)


def test_noise_on_actions_has_the_stated_deviation_keeps_the_range_and_spares_the_gripper():
    effect = ActionNoise().draw(4, TASK, rng())
    noisy = np.array([effect.action(np.zeros(7), rng(seed)) for seed in range(2000)])
    assert noisy[:, :6].std() == pytest.approx(0.2, rel=0.03)
    assert not noisy[:, 6].any()
    assert np.abs(effect.action(np.ones(7), rng())).max() == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_the_first_picture_is_never_dropped(seed):
    frames = np.ones((1, 2, 2, 3), np.uint8)
    assert np.array_equal(DroppedFrames().draw(5, TASK, rng()).frames(frames, ("agentview",), rng(seed)), frames)


def test_a_dropped_picture_is_the_last_one_again():
    effect = DroppedFrames().draw(5, TASK, rng())
    generator = rng(4)
    given = [np.full((2, 4, 4, 3), number, np.uint8) for number in range(250)]
    shown = [int(effect.frames(frames, ("agentview", "robot0_eye_in_hand"), generator)[0, 0, 0, 0]) for frames in given]  # fmt: skip  # noqa: E501
    assert shown[0] == 0
    dropped = [now == before for before, now in pairwise(shown)]
    assert all(now in (number + 1, before) for number, (before, now) in enumerate(pairwise(shown)))
    assert sum(dropped) / len(dropped) == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("one", [one for one in EVERYTHING if one.level == 3 and KINDS[one.kind].group == "image"], ids=str)  # fmt: skip  # noqa: E501
def test_pictures_of_the_wrist_are_never_changed(one):
    frames = rng().integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    before = frames.copy()
    effect = one.effect(TASK, 0, seed=0)
    changed = effect.frames(frames, ("robot0_eye_in_hand", "agentview"), rng())
    assert np.array_equal(frames, before)
    assert np.array_equal(changed[0], frames[0])
    assert np.array_equal(changed[1], frames[1]) == (one.kind == "dropped-frames")
