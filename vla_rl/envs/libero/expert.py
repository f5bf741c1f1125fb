"""Scripted expert with privileged state: picks an object up and puts it where the task requires.

It decides anew in every control step, so it recovers from disturbances: it grasps an object again that it lost, and
approaches one again that was pushed away.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.envs.libero.grasps import PALM_HALF, TIP_BELOW, Grasp, plan_grasp
from vla_rl.envs.libero.scene import Scene
from vla_rl.envs.libero.suites import task_files
from vla_rl.errors import SimulatorError
from vla_rl.types import TaskInfo

Array = NDArray[np.float64]
Phase = Literal["approach", "close", "carry", "release"]

OPEN, CLOSED = -1.0, 1.0
GAIN = 28.0  # of the motion, per metre of distance: a whole action of 1 moves the hand 13 mm per control step
TURN_GAIN = 1.5  # per radian
SHOULDER = np.array([0.0, 0.0, 0.333])  # metres from the robot's base
WRIST = (0.088, 0.210)  # metres from the point between the pads: towards the base, and up
BENT = 0.66  # metres from the shoulder to the wrist; the elbow is stretched out at 0.68
STRETCHED_GAIN = 3.0
CLEARANCE = 0.025  # metres above what the hand or the object passes
HOVER = 0.05  # metres above the grasp from which the fingers go down beside the object
NEAR = 0.03  # metres of horizontal distance from where the hand goes down
AT_GRASP = (0.007, 0.006)  # metres, horizontally and in height
AT_PLACE = 0.012
TURNED = 0.03  # radians
EMPTY_WIDTH = 0.0012  # metres between the fingers if nothing is between them
LOST = 0.03  # metres that a held object may slip
CLOSING_STEPS = (4, 16)  # at least, at most
STILL = 0.0004  # metres per control step: the fingers stopped
RELEASE_STEPS = 8
PATIENCE = 60  # control steps in one phase before the expert starts again
CAN_DO = "one goal of the kind On(object, object or region) or In(object, region)"


@dataclass(slots=True)
class Hold:
    """Object in the hand."""

    offset: Array  # (3,) from the hand to the object's origin, metres
    below: float  # metres from the hand down to the object's lowest point


class Expert:
    """Expert of one episode. Create it after `LiberoEnv.reset` and ask for an action before every control step."""

    def __init__(self, env: LiberoEnv) -> None:
        """Find out what the task wants.

        Raises:
            SimulatorError: the task wants something that the expert cannot do.
        """
        self._env = env
        self._scene = env.scene
        self._shoulder = env.simulation.robot_base() + SHOULDER
        self._name, self._target = movement_of(self._scene, env.task.name)
        self._phase: Phase = "approach"
        self._in_phase = 0
        self._grasp: Grasp | None = None
        self._hold: Hold | None = None
        self._travel_height = 0.0
        self._last_width = 1.0
        self._begin("approach")

    def action(self) -> NDArray[np.float32]:
        """Return the next action, (7,): displacement 3, rotation 3, gripper, each in [-1, 1]."""
        self._in_phase += 1
        hand = self._env.simulation.pose()
        width = float(hand.fingers[0] - hand.fingers[1])
        match self._phase:
            case "approach":
                motion, turn, gripper = self._approach(hand.position)
            case "close":
                motion, turn, gripper = self._close(hand.position, width)
            case "carry":
                motion, turn, gripper = self._carry(hand.position, width)
            case _:
                motion, turn, gripper = self._release()
        self._last_width = width
        if self._in_phase > PATIENCE:
            self._begin("approach")
        if self._stretch(hand.position) > BENT:  # near the end of its reach, the arm hardly follows small commands
            motion = STRETCHED_GAIN * motion
        shift = np.clip(GAIN * motion, -1.0, 1.0)
        return np.array([*shift, 0.0, 0.0, turn, gripper], np.float32)

    def _begin(self, phase: Phase) -> None:
        self._phase, self._in_phase = phase, 0
        if phase == "approach":
            self._hold = None
            self._grasp = plan_grasp(self._scene, self._name)
            hand = self._env.simulation.pose().position
            goal = self._scene.pose(self._name).position if self._grasp is None else self._grasp.position
            self._travel_height = self._pass_over(hand, goal, half_width=PALM_HALF[1], below=TIP_BELOW, without=None)

    def _stretch(self, hand: Array) -> float:
        """Return the distance from the shoulder to the wrist of a hand that points down, metres."""
        away = hand - self._shoulder
        across = float(np.hypot(away[0], away[1])) - WRIST[0]
        return float(np.hypot(across, away[2] + WRIST[1]))

    def _approach(self, hand: Array) -> tuple[Array, float, float]:
        if self._grasp is None:  # wait above until it lies where the hand can take hold of it
            self._grasp = plan_grasp(self._scene, self._name) if self._in_phase % 10 == 0 else None
            return np.array([0.0, 0.0, self._travel_height - hand[2]]), 0.0, OPEN
        goal = self._grasp.position
        away = goal[:2] - hand[:2]
        distance = float(np.linalg.norm(away))
        turn = self._turn()
        height = goal[2] + min(HOVER, 6.0 * max(0.0, distance - 0.005) + HOVER * min(1.0, 2.0 * abs(turn)))
        motion = np.array([*away, height - hand[2]])
        if distance > NEAR:
            motion = self._over(hand, away, max(self._travel_height, goal[2] + HOVER))
        if distance < AT_GRASP[0] and abs(goal[2] - hand[2]) < AT_GRASP[1] and abs(turn) < TURN_GAIN * TURNED:
            self._begin("close")
            return motion, 0.0, CLOSED
        return motion, turn, OPEN

    def _turn(self) -> float:
        """Return the rotation about the vertical axis that turns the hand to the grasp; exactly 0 if none is needed."""
        assert self._grasp is not None
        x, y, z, w = self._env.simulation.pose().quaternion
        closing = np.array([2.0 * (x * y - z * w), 1.0 - 2.0 * (x * x + z * z)])  # the hand's y axis, seen from above
        goal = np.array([-np.sin(self._grasp.yaw), np.cos(self._grasp.yaw)])
        angle = float(np.arctan2(closing[0] * goal[1] - closing[1] * goal[0], closing @ goal))
        angle = (angle + 0.5 * np.pi) % np.pi - 0.5 * np.pi  # the two fingers are alike
        return 0.0 if abs(angle) < TURNED else float(np.clip(TURN_GAIN * angle / 0.5, -1.0, 1.0))

    def _close(self, hand: Array, width: float) -> tuple[Array, float, float]:
        assert self._grasp is not None
        stopped = abs(self._last_width - width) < STILL
        if (self._in_phase >= CLOSING_STEPS[0] and stopped) or self._in_phase >= CLOSING_STEPS[1]:
            if width < EMPTY_WIDTH:
                self._begin("approach")
                return np.array([0.0, 0.0, HOVER]), 0.0, OPEN
            self._take_hold(hand)
            return self._carry(hand, width)
        return self._grasp.position - hand, 0.0, CLOSED

    def _take_hold(self, hand: Array) -> None:
        box = self._scene.bounds(self._name)
        self._hold = Hold(self._scene.pose(self._name).position - hand, float(hand[2] - box.low[2]))
        self._phase, self._in_phase = "carry", 0
        half_width = 0.5 * float(np.linalg.norm((box.high - box.low)[:2])) * 0.8
        goal = self._scene.pose(self._target).position
        self._travel_height = self._pass_over(
            hand, goal, half_width=half_width, below=self._hold.below, without=self._name
        )

    def _carry(self, hand: Array, width: float) -> tuple[Array, float, float]:
        assert self._hold is not None
        offset = self._scene.pose(self._name).position - hand
        if width < EMPTY_WIDTH or float(np.linalg.norm(offset - self._hold.offset)) > LOST:
            self._begin("approach")
            return np.array([0.0, 0.0, HOVER]), 0.0, OPEN
        goal = self._scene.pose(self._target).position
        away = (goal - offset)[:2] - hand[:2]
        distance = float(np.linalg.norm(away))
        rest = goal[2] - offset[2]  # pressing on what it is put on ends the episode
        if distance > NEAR:
            return self._over(hand, away, self._travel_height), 0.0, CLOSED
        height = max(rest, min(self._travel_height, rest + 5.0 * max(0.0, distance - 0.010)))
        if distance < AT_PLACE and self._in_phase > 10 and abs(hand[2] - rest) < 0.006:
            self._begin("release")
            return self._release()
        return np.array([*away, height - hand[2]]), 0.0, CLOSED

    def _release(self) -> tuple[Array, float, float]:
        if self._in_phase > RELEASE_STEPS:
            up = np.array([0.0, 0.0, HOVER])
            if self._in_phase > 2 * RELEASE_STEPS:
                self._begin("approach")
            return up, 0.0, OPEN
        return np.zeros(3), 0.0, OPEN

    def _over(self, hand: Array, away: Array, height: float) -> Array:
        """Return the motion towards a place over everything between: first up, then across."""
        missing = height - hand[2]
        share = float(np.clip((0.04 - missing) / 0.03, 0.0, 1.0))
        return np.array([*(share * away), missing])

    def _pass_over(self, start: Array, goal: Array, *, half_width: float, below: float, without: str | None) -> float:
        """Return the height of the hand at which it passes over everything between two places."""
        way = goal[:2] - start[:2]
        length = float(np.linalg.norm(way))
        ahead = way / length if length > 1e-6 else np.array([1.0, 0.0])
        aside = np.array([-ahead[1], ahead[0]])
        steps = np.arange(0.0, length + 0.01, 0.015)
        sides = np.linspace(-half_width, half_width, 9)
        points = start[:2] + steps[:, None, None] * ahead + sides[None, :, None] * aside
        seen = self._scene.surface(points.reshape(-1, 2), ceiling=float(start[2]) + 0.5, without=without)
        return float(seen.heights.max()) + CLEARANCE + below


def check_expert(task: TaskInfo) -> None:
    """Check, without a simulator, that the expert can do a task.

    Raises:
        SimulatorError: the task wants something else; see `CAN_DO`.
    """
    text = task_files(task).bddl.read_text(encoding="utf-8")
    goal = " ".join(text[text.find("(:goal") :].split())
    if re.match(r"\(:goal \(And \((On|In) \w+ \w+\) ?\) ?\)", goal) is None:
        wanted = ", ".join(
            f"{name.lower()}({', '.join(of.split())})" for name, of in re.findall(r"\((\w+)((?: \w+)+) ?\)", goal)
        )
        raise SimulatorError(
            f"the scripted expert cannot do {task.suite} task {task.task_id}: it wants {wanted}; it can do {CAN_DO}"
        )


def movement_of(scene: Scene, task: str) -> tuple[str, str]:
    """Return the object that a task moves, and the object or region to which it moves it.

    Raises:
        SimulatorError: the task wants something else.
    """
    goal = scene.goal
    if len(goal) != 1 or len(goal[0]) != 3 or goal[0][0] not in ("on", "in") or goal[0][1] not in scene.objects:
        wanted = ", ".join(f"{state[0]}({', '.join(state[1:])})" for state in goal)
        raise SimulatorError(f"the scripted expert cannot do {task}: it wants {wanted}; it can do {CAN_DO}")
    return goal[0][1], goal[0][2]
