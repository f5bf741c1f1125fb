"""Files of a collection: nothing is lost, nothing is mixed up, and others can read it."""

import numpy as np
import pytest

from vla_rl.collection.collecting import check_collection
from vla_rl.collection.options import CollectOptions, Noise
from vla_rl.collection.preparing import tasks_of
from vla_rl.collection.store import TaskStore
from vla_rl.demos import open_demos
from vla_rl.errors import UserError
from vla_rl.types import TaskInfo

TASK = TaskInfo(suite="libero_spatial", task_id=0, name="pick_up_the_bowl", language="pick up the bowl")
OPTIONS = CollectOptions(suite="libero_spatial", tasks=(0,), episodes=2, image_size=16)
RECORDED = OPTIONS.recorded(assets="proxy")


def arrays(value, rows=9):
    pictures = {
        key: np.full((rows, 16, 16, 3), value, np.uint8) for key in ("obs/agentview_rgb", "obs/eye_in_hand_rgb")
    }
    actions = np.zeros((rows, 7))
    actions[:, 0], actions[:, 6] = 0.1 * value, -1.0
    return {
        "actions": actions,
        "obs/ee_states": np.zeros((rows, 6)),
        "obs/gripper_states": np.zeros((rows, 2)),
        **pictures,
    }


def test_episodes_are_joined_by_number_and_failures_leave_gaps(tmp_path):
    store = TaskStore(tmp_path, TASK, RECORDED)
    assert store.begin() == {}
    store.add(10, arrays(3), reset={})
    store.add_failure(1, rows=220)
    store.add(2, arrays(2), reset={})
    store.finish(store.begin())
    demos = open_demos(tmp_path)
    assert [episode.number for episode in demos] == [2, 10]
    assert [episode.frames["wrist"].max() for episode in demos] == [2, 3]
    assert demos[0].instruction == "pick up the bowl"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pick_up_the_bowl_demo.hdf5"]


def test_what_an_interrupted_collection_has_is_found_again(tmp_path):
    TaskStore(tmp_path, TASK, RECORDED).begin()
    store = TaskStore(tmp_path, TASK, RECORDED)
    store.add(0, arrays(1), reset={})
    store.add_failure(1, rows=220)
    (tmp_path / ".collecting" / TASK.name / ".000002.hdf5.partial").write_bytes(b"half an episode")
    again = TaskStore(tmp_path, TASK, RECORDED)
    assert not again.check()
    assert again.begin() == {0: True, 1: False}
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"noise": Noise(chunk=4)}, {"init_states": "widened"}, {"episodes": 3}, {"physics": "fast"}]
)
def test_other_settings_are_refused_before_anything_starts(tmp_path, finished, other):
    store = TaskStore(tmp_path, TASK, RECORDED)
    store.begin()
    store.add(0, arrays(1), reset={})
    if finished:
        store.finish({0: True})
    settings = {"suite": "libero_spatial", "tasks": (0,), "episodes": 2, "image_size": 16} | other
    with pytest.raises(UserError, match="made in another way"):
        check_collection(CollectOptions(**settings), (TASK,), tmp_path, assets="proxy")
    check_collection(OPTIONS, (TASK,), tmp_path, assets="proxy")


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path):
    many = CollectOptions(suite="libero_spatial", tasks=(0,), episodes=10**9)
    with pytest.raises(UserError, match="the disk is too small"):
        check_collection(many, (TASK,), tmp_path / "new", assets="proxy")
    assert not (tmp_path / "new").exists()


def test_tasks_that_the_suite_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"--tasks: .* has no such task\n +found +10, 12\n +allowed +0 to 9"):
        tasks_of("libero_spatial", [10, 9, 12])


def test_tasks_keep_their_order():
    assert tasks_of("libero_spatial", [7, 0]) == (7, 0)
    assert tasks_of("libero_object", None) == tuple(range(10))
