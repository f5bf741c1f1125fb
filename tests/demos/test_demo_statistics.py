"""`action_statistics` against numbers by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from vla_rl.demos import action_statistics
from vla_rl.errors import UserError


@dataclass
class Rows:
    actions: np.ndarray
    state: np.ndarray


def ramp(start: int, stop: int) -> Rows:
    """Action and state components that count; the gripper open (-1) below 50, closed (+1) from there."""
    count = np.arange(start, stop, dtype=np.float32)
    actions = np.repeat(count[:, None], 7, axis=1)
    actions[:, 1] = 0.25
    actions[:, 6] = np.where(count < 50, -1, 1)
    return Rows(actions, np.repeat(-count[:, None], 8, axis=1))


def test_the_numbers_are_those_of_all_rows_together() -> None:
    """0, 1, ..., 100 in two episodes: quantiles interpolate between ranks 0.01 · 100 and 0.99 · 100."""
    entry = action_statistics([ramp(0, 30), ramp(30, 101)])
    assert entry["num_transitions"] == 101
    assert entry["num_trajectories"] == 2
    action, proprio = entry["action"], entry["proprio"]
    assert [action[name][0] for name in ("mean", "min", "max", "q01", "q99")] == [50, 0, 100, 1, 99]
    assert action["std"][0] == pytest.approx(np.sqrt((101**2 - 1) / 12), rel=1e-6)  # of the population
    assert [proprio[name][7] for name in ("mean", "min", "max", "q01", "q99")] == [-50, -100, 0, -99, -1]
    assert [action[name][1] for name in ("mean", "std", "q01", "q99")] == [0.25, 0, 0.25, 0.25]
    assert action["mask"] == [True] * 6 + [False]
    assert "mask" not in proprio


def test_the_gripper_is_transformed_first() -> None:
    """-1 (open) becomes 1 and +1 (close) 0: 50 of 101 rows are open."""
    action = action_statistics([ramp(0, 101)])["action"]
    assert (action["min"][6], action["max"][6], action["q01"][6], action["q99"][6]) == (0, 1, 0, 1)
    assert action["mean"][6] == pytest.approx(50 / 101, rel=1e-6)


def test_quantiles_are_interpolated_in_double_precision() -> None:
    """Between 0.1 and 0.2 in single precision, a hundredth of the way: no number of single precision itself."""
    rows = Rows(np.full((2, 7), 0.1, np.float32), np.zeros((2, 8), np.float32))
    rows.actions[1] = 0.2
    low = action_statistics([rows])["action"]["q01"][0]
    a, b = float(np.float32(0.1)), float(np.float32(0.2))
    assert low == pytest.approx(a + 0.01 * (b - a), abs=1e-12)
    assert low != float(np.float32(low))


def test_the_entry_can_be_written_as_json() -> None:
    entry = action_statistics([ramp(0, 5)])
    assert json.loads(json.dumps(entry)) == entry


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(UserError, match="at least one episode"):
        action_statistics([])


def changed(place: tuple[int, int], value: float) -> Rows:
    rows = ramp(0, 5)
    rows.actions = rows.actions.astype(np.float64)
    rows.actions[place] = value
    return rows


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (Rows(np.zeros((0, 7)), np.zeros((0, 8))), "episode 2: an episode has at least one row"),
        (Rows(np.array(1.0), np.zeros((0, 8))), "episode 2: an episode has at least one row"),
        (Rows(np.zeros((3, 6)), np.zeros((3, 8))), r"(?s)episode 2: actions: wrong shape.*\(3, 6\).*\(3, 7\)"),
        (Rows(np.zeros((3, 7)), np.zeros((3, 7))), r"(?s)episode 2: state: wrong shape.*\(3, 7\).*\(3, 8\)"),
        (Rows(np.zeros((3, 7)), np.zeros((2, 8))), r"(?s)episode 2: state: wrong shape.*\(2, 8\).*\(3, 8\)"),
        (Rows(np.zeros(7), np.zeros((7, 8))), "episode 2: actions: wrong shape"),
        (Rows(np.full((3, 7), "much"), np.zeros((3, 8))), "episode 2: actions: wrong shape or type"),
        (changed((3, 2), np.nan), r"(?s)episode 2: actions: must hold finite numbers.*nan in row 3"),
        (changed((1, 6), np.nan), r"(?s)episode 2: actions: must hold finite numbers.*nan in row 1"),
        (changed((4, 0), 1e39), r"(?s)episode 2: actions: must hold finite numbers.*inf in row 4"),
        (Rows(np.full((9, 7), 1e38), np.zeros((9, 8))), r"statistics of numbers up to 1e\+38 overflow"),
    ],
)
def test_an_episode_without_sense_is_refused_with_what_was_found(rows: Rows, said: str) -> None:
    with pytest.raises(UserError, match=said):
        action_statistics([ramp(0, 5), rows])


def test_lists_and_double_precision_are_as_good_as_single() -> None:
    rows = ramp(0, 5)
    lists = Rows(rows.actions.tolist(), rows.state.astype(np.float64))  # type: ignore[arg-type]
    assert action_statistics([lists]) == action_statistics([rows])


def test_episodes_stay_as_they_are() -> None:
    rows = ramp(0, 5)
    action_statistics([rows])
    assert rows.actions[0, 6] == -1
