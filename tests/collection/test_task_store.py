"""Files of a collection: nothing is lost, nothing is mixed up, and others can read it."""

import multiprocessing
import os
import resource
import shutil
import signal
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest

from vla_rl.collection import collecting
from vla_rl.collection.collecting import bytes_per_episode, check_collection, collect
from vla_rl.collection.options import CollectOptions, Noise
from vla_rl.collection.preparing import CollectionPlan, tasks_of
from vla_rl.collection.store import TaskStore, counted
from vla_rl.demos import open_demos
from vla_rl.demos.h5_files import open_h5
from vla_rl.errors import CellFailureError, UserError
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
        "states": np.full((rows, 2), float(value)),
        "obs/ee_states": np.zeros((rows, 6)),
        "obs/gripper_states": np.zeros((rows, 2)),
        **pictures,
    }


class Killing(dict):
    """Something to write, in the middle of which the process is killed."""

    def items(self):
        yield next(iter(super().items()))
        os.kill(os.getpid(), signal.SIGKILL)


def in_another_process(act):
    """Return the exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(60.0)
    return process.exitcode


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
    assert in_another_process(lambda: store.add(2, Killing(arrays(2)), reset={})) == -signal.SIGKILL
    assert in_another_process(lambda: store.finish(Killing({0: True, 1: False}))) == -signal.SIGKILL
    assert len(list(tmp_path.rglob(".tmp-*"))) == 2
    again = TaskStore(tmp_path, TASK, RECORDED)
    assert not again.check()
    assert again.begin() == {0: True, 1: False}
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_full_disk_is_not_told_as_a_damaged_file(tmp_path):
    """A limit of file sizes stands for it; a picture of an episode has 154 kB."""
    store = written(tmp_path, 1, rows=200)
    before = store.file.read_bytes()
    store = store_for(tmp_path, 3)
    store.begin()
    for attempt in (1, 2):
        store.add(attempt, arrays(attempt, rows=200), reset={})

    def finish(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match="File too large") as raised:
            store.finish(dict.fromkeys(range(3), True))
        assert raised.value.filename == str(store.file)

    for limit in (200_000, 500_000, 900_000):  # in each of the three episodes
        assert in_another_process(partial(finish, limit)) == 0
    assert store.file.read_bytes() == before
    assert store.begin() == dict.fromkeys(range(3), True)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"noise": Noise(chunk=4)}, {"init_states": "widened"}, {"physics": "fast"}],
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


def store_for(folder, episodes):
    return TaskStore(folder, TASK, RECORDED | {"episodes": episodes})


def test_a_collection_is_extended_by_later_attempts_to_what_would_have_been_collected_at_once(tmp_path):
    """Attempts 0, 2 and 3 succeed, 1 fails: two episodes first, then three; or three at once."""
    for folder, steps in ((tmp_path / "twice", (2, 3)), (tmp_path / "once", (3,))):
        for episodes in steps:
            store = store_for(folder, episodes)
            assert not store.check()
            found = store.begin()
            for attempt in range(3 if episodes == 2 else 4):
                if attempt in found:
                    continue
                if attempt == 1:
                    store.add_failure(1, rows=220)
                else:
                    store.add(attempt, arrays(attempt), reset={})
            assert found == ({0: True, 1: False, 2: True} if episodes == 3 and len(steps) == 2 else {})
            store.finish(counted(store.begin(), episodes))
            assert store.check()
            assert [path.name for path in folder.iterdir()] == ["pick_up_the_bowl_demo.hdf5"]
    twice, once = open_demos(tmp_path / "twice"), open_demos(tmp_path / "once")
    assert [episode.number for episode in twice] == [episode.number for episode in once] == [0, 2, 3]
    for left, right in zip(twice, once, strict=True):
        np.testing.assert_array_equal(left.actions, right.actions)
    attributes = []
    for demos in (twice, once):
        with open_h5(demos.path / "pick_up_the_bowl_demo.hdf5") as handle:
            attributes.append(dict(handle["data"].attrs))
    assert attributes[0] == attributes[1]


def test_an_extended_file_counts_the_episodes_that_an_earlier_checkout_wrote(tmp_path):
    """Attempts 0 and 1 have 9 rows and no attributes but their reset; attempt 2 has 5 rows."""
    written(tmp_path, 2)
    with h5py.File(tmp_path / "pick_up_the_bowl_demo.hdf5", "r+") as handle:
        del handle["data"].attrs["total"]
        for demo in handle["data"].values():
            del demo.attrs["num_samples"]
            del demo.attrs["init_state"]
    store = store_for(tmp_path, 3)
    store.begin()
    store.add(2, arrays(3, rows=5), reset={})
    store.finish(counted(store.begin(), 3), {"bddl_file_name": "the_bowl.bddl"})
    with open_h5(store.file) as handle:
        data = handle["data"]
        assert data.attrs["total"] == 23
        assert {name: demo.attrs["num_samples"] for name, demo in data.items()} == {
            "demo_0": 9,
            "demo_1": 9,
            "demo_2": 5,
        }
        assert [demo.attrs["init_state"].tolist() for demo in data.values()] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
        assert data.attrs["bddl_file_name"] == "the_bowl.bddl"
    demos = open_demos(tmp_path)
    assert (demos.format, demos[2].stored.lag) == ("libero_hdf5_regenerated", 0)


def written(folder, episodes, rows=9):
    store = store_for(folder, episodes)
    store.begin()
    for attempt in range(episodes):
        store.add(attempt, arrays(attempt + 1, rows=rows), reset={})
    store.finish(dict.fromkeys(range(episodes), True))
    return store


def test_fewer_episodes_than_there_are_leave_the_file_as_it_is(tmp_path):
    written(tmp_path, 2)
    assert store_for(tmp_path, 1).check()
    (store,) = check_collection(replace(OPTIONS, episodes=1), (TASK,), tmp_path, assets="proxy")
    plan = CollectionPlan(replace(OPTIONS, episodes=1), [store], 1, ())
    assert "pick_up_the_bowl: has 2 episodes, more than the 1 asked for, and keeps them" in plan.describe(1)
    assert "about 0.0 GB" in plan.describe(1)
    more = CollectionPlan(replace(OPTIONS, episodes=5), [store_for(tmp_path, 5)], 0, ())
    assert "pick_up_the_bowl: has 2 of 5 episodes; 3 will be added" in more.describe(1)


def test_the_old_file_stays_until_the_longer_one_is_complete_and_leftovers_of_a_kill_are_removed(tmp_path, monkeypatch):
    written(tmp_path, 2)
    store = store_for(tmp_path, 3)
    store.begin()
    store.add(2, arrays(9), reset={})
    before = store.file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vla_rl.collection.store.copy_group", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.finish({0: True, 1: True, 2: True})
    assert store.file.read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(TaskStore, "discard", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.finish(counted(store_for(tmp_path, 3).begin(), 3))
    again = store_for(tmp_path, 3)
    assert again.check()
    again.discard(again.stored())
    assert [path.name for path in tmp_path.iterdir()] == ["pick_up_the_bowl_demo.hdf5"]
    assert [episode.number for episode in open_demos(tmp_path)] == [0, 1, 2]


def test_the_attempts_that_count_are_the_first_ones_up_to_the_last_success():
    played = {0: True, 1: False, 2: True, 4: True}
    assert counted(played, 1) == {0: True}
    assert counted(played, 2) == {0: True, 1: False, 2: True}
    assert counted(played, 3) is None  # attempt 3 was never played
    assert counted({}, 1) is None


def test_episodes_beyond_those_that_are_asked_for_wait_for_more(tmp_path):
    """Three were asked for, the process died, and then only two are: the third is not lost."""
    store = store_for(tmp_path, 4)
    store.begin()
    for attempt in range(3):
        store.add(attempt, arrays(attempt), reset={})
    fewer = store_for(tmp_path, 2)
    fewer.finish(counted(fewer.begin(), 2))
    assert [episode.number for episode in open_demos(tmp_path)] == [0, 1]
    assert store_for(tmp_path, 3).begin() == {0: True, 1: True, 2: True}


def test_a_disk_that_is_too_small_is_noticed_first(tmp_path):
    many = CollectOptions(suite="libero_spatial", tasks=(0,), episodes=10**9)
    with pytest.raises(UserError, match="the disk is too small"):
        check_collection(many, (TASK,), tmp_path / "new", assets="proxy")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_holds_all_files_and_one_task_twice_is_large_enough(tmp_path):
    """Ten tasks and one more: at 75 % of the disk for the ten they fit, at 95 % they do not."""
    tasks = tuple(replace(TASK, task_id=number, name=f"task_{number}") for number in range(10))
    of_a_task = shutil.disk_usage(tmp_path).free // 10 // bytes_per_episode(OPTIONS)
    many = replace(OPTIONS, episodes=int(0.75 * of_a_task))
    assert len(check_collection(many, tasks, tmp_path, assets="proxy")) == 10
    with pytest.raises(UserError, match="the disk is too small"):
        check_collection(replace(many, episodes=int(0.95 * of_a_task)), tasks, tmp_path, assets="proxy")


def test_episodes_that_are_on_the_disk_need_no_more_room(tmp_path):
    """Five episodes of a seventh of the free space each, and the file that they are joined in."""
    size = (shutil.disk_usage(tmp_path).free / 7 / (120 * 2 * 3)) ** 0.5  # two pictures in each of 120 rows
    many = replace(OPTIONS, episodes=5, image_size=int(size))
    with pytest.raises(UserError, match="the disk is too small"):
        check_collection(many, (TASK,), tmp_path, assets="proxy")
    parts = tmp_path / ".collecting" / TASK.name
    store = TaskStore(tmp_path, TASK, many.recorded(assets="proxy"))
    store.begin()
    for attempt in range(5):
        (parts / f"{attempt:06d}.hdf5").touch()
    check_collection(many, (TASK,), tmp_path, assets="proxy")


def killed(_name, _log_path, _options, _stores, link):
    """Stands in for a process that plays, and that the kernel kills for want of memory."""
    link.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def test_processes_that_are_killed_one_after_the_other_end_a_collection_which_says_how_they_died(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "worker_main", killed)
    stores = check_collection(OPTIONS, (TASK,), tmp_path, assets="proxy")
    with pytest.raises(CellFailureError, match=r"(?s)3 processes failed.*collector_2 died with exit code -9$"):
        collect(OPTIONS, stores, tmp_path, workers=1)


def test_tasks_that_the_suite_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"--tasks: .* has no such task\n +found +10, 12\n +allowed +0 to 9"):
        tasks_of("libero_spatial", [10, 9, 12])


def test_tasks_keep_their_order():
    assert tasks_of("libero_spatial", [7, 0]) == (7, 0)
    assert tasks_of("libero_object", None) == tuple(range(10))
