from __future__ import annotations

import numpy as np
import pytest
from replay_helpers import add_decision, assert_consistent, make_ring, signatures, write_episode
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vla_rl.replay.ring import ReplayRing
from vla_rl.replay.ring_file import load_ring, save_ring
from vla_rl.replay.sampler import SegmentSampler
from vla_rl.types import ObservationSpec, SegmentBatch

TASKS = [f"task {index}" for index in range(10)]


def everything(ring: ReplayRing) -> dict[int, SegmentBatch]:
    """A segment per first signature, drawn until all are there."""
    sampler = SegmentSampler(ring, segment_length=6, seed=0)
    sampler.refresh()
    found = {}
    while len(found) < sampler.num_segments:
        batch = sampler.sample(1)
        assert_consistent(batch)
        found[signatures(batch)[0][0]] = batch
    return found


def test_a_ring_comes_back_with_all_its_numbers_ages_and_versions(tmp_path):
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    with make_ring(num_envs=2, store_logits=True) as ring, make_ring(num_envs=2, store_logits=True) as other:
        write_episode(ring.writer(1), 300, 2, task=7, version=3, logits=logits, truncate=True)
        write_episode(ring.writer(0), 100, 6, task=8, version=4, logits=logits)
        write_episode(ring.writer(1), 200, 1, task=9, version=5, logits=logits)
        assert save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS) == 9
        assert load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS).decisions == 9
        expected, found = everything(ring), everything(other)
        assert sorted(found) == [100, 200, 300]
        for first, batch in expected.items():
            for name in SegmentBatch.__slots__:
                np.testing.assert_array_equal(getattr(found[first], name), getattr(batch, name), err_msg=name)
        assert found[300].age[0, 0] == 8
        assert other.present_episodes()["task_index"].tolist() == [7, 8, 9]
        assert other.present_episodes()["env"].tolist() == [1, 0, 1]


def test_the_file_is_plain_safetensors(tmp_path):
    with make_ring() as ring:
        write_episode(ring.writer(0), 100, 2)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
    tensors = load_file(tmp_path / "ring.safetensors")
    assert tensors["frames"].shape == (3, 1, 4, 4, 3)
    assert tensors["value"][:2].tolist() == [100.5, 101.5]
    assert tensors["intact"].tolist() == [True]


def test_neither_unfinished_nor_overwritten_episodes_are_saved(tmp_path):
    with make_ring(capacity=14) as ring:
        writer = ring.writer(0)
        write_episode(writer, 100, 6, task=1)
        write_episode(writer, 200, 6, task=2)
        write_episode(writer, 300, 1, task=3)
        writer.begin(0)
        assert save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS) == 7
        assert load_file(tmp_path / "ring.safetensors")["task_index"].tolist() == [2, 3]


def test_an_episode_overwritten_while_it_is_saved_is_not_loaded(tmp_path, monkeypatch):
    with make_ring(capacity=14) as ring, make_ring() as other:
        writer = ring.writer(0)
        write_episode(writer, 100, 6)
        write_episode(writer, 200, 6)
        row_array = ring.row_array

        def overwrite_meanwhile(name):
            if name == "executed":  # after the frames were copied, before the last fields
                write_episode(writer, 300, 3)
            return row_array(name)

        monkeypatch.setattr(ring, "row_array", overwrite_meanwhile)
        assert save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS) == 6
        assert load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS).decisions == 6
        assert list(everything(other)) == [200]


def test_episodes_are_spread_evenly_over_another_number_of_envs(tmp_path):
    with make_ring(num_envs=1, capacity=80) as ring, make_ring(num_envs=3, capacity=60) as other:
        for first in range(100, 700, 100):
            write_episode(ring.writer(0), first, 6)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
        load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS)
        assert other.present_episodes()["env"].tolist() == [0, 1, 2, 0, 1, 2]
        assert sorted(everything(other)) == [100, 200, 300, 400, 500, 600]


def test_a_smaller_ring_keeps_the_newest_episodes(tmp_path):
    with make_ring(capacity=80) as ring, make_ring(capacity=14) as other:
        for first in range(100, 700, 100):
            write_episode(ring.writer(0), first, 6)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
        assert load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS).decisions == 36
        assert sorted(everything(other)) == [500, 600]


def test_collection_goes_on_after_loading(tmp_path):
    with make_ring() as ring, make_ring() as other:
        write_episode(ring.writer(0), 100, 6)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
        load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS)
        write_episode(other.writer(0), 200, 3)
        assert sorted(everything(other)) == [100, 200]


@pytest.mark.parametrize("num_images", [0, 1])
def test_an_empty_ring_can_be_saved_and_loaded(tmp_path, num_images):
    observation = ObservationSpec(num_images=num_images, image_size=4 * num_images, state_dim=3)
    with make_ring(observation=observation) as ring:
        assert save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS) == 0
        assert load_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS).decisions == 0


def test_state_only_rings_round_trip(tmp_path):
    observation = ObservationSpec(num_images=0, image_size=0, state_dim=3)
    with make_ring(observation=observation) as ring, make_ring(observation=observation) as other:
        write_episode(ring.writer(0), 100, 6)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
        assert load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS).decisions == 6
        assert list(everything(other)) == [100]


def test_a_ring_of_other_shapes_is_refused_by_name(tmp_path):
    path = tmp_path / "ring.safetensors"
    other_size = ObservationSpec(num_images=1, image_size=8, state_dim=3)
    with make_ring() as ring, make_ring(observation=other_size, store_logits=True) as other:
        save_ring(ring, path, tasks=TASKS)
        message = r"ring\.safetensors.*image_size is 4, not 8; store_logits is False, not True\. Resume"
        with pytest.raises(ValueError, match=message):
            load_ring(other, path, tasks=TASKS)


def test_longer_episodes_than_the_run_has_are_refused(tmp_path):
    with make_ring() as ring, make_ring(longest=5) as other:
        write_episode(ring.writer(0), 100, 6)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
        with pytest.raises(ValueError, match=r"an episode of 6 decisions.*at most 5 \(env\.horizon\)"):
            load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS)


def test_a_file_that_is_no_ring_is_refused(tmp_path):
    path = tmp_path / "ring.safetensors"
    with make_ring() as ring:
        save_file({"x": np.zeros(1)}, path)
        with pytest.raises(ValueError, match=r"ring\.safetensors is not a replay ring"):
            load_ring(ring, path, tasks=TASKS)
        save_ring(ring, path, tasks=TASKS)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ValueError, match=r"ring\.safetensors is not a complete safetensors file"):
            load_ring(ring, path, tasks=TASKS)


def test_groups_come_back_and_files_older_than_groups_have_none(tmp_path):
    path = tmp_path / "ring.safetensors"
    with make_ring() as ring, make_ring() as other:
        for first, group in ((100, 0), (200, 1 << 62), (300, 1 << 62)):
            write_episode(ring.writer(0), first, 2, group=group, member=first // 100, truncate=first == 200)
        save_ring(ring, path, tasks=TASKS)
        load_ring(other, path, tasks=TASKS)
        assert other.present_episodes()["member"].tolist() == [1, 2, 3]
        assert other.present_episodes()["group"].tolist() == [0, 1 << 62, 1 << 62]
        assert {first: int(batch.group[0]) for first, batch in everything(other).items()} == {
            100: 0, 200: 1 << 62, 300: 1 << 62,
        }  # fmt: skip
        assert other.present_episodes()["success"].tolist() == [1, 0, 1]
    with safe_open(path, framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["group"], tensors["member"], tensors["success"]
    save_file(tensors, path, metadata)
    with make_ring() as other:
        load_ring(other, path, tasks=TASKS)
        assert other.present_episodes()["member"].tolist() == [0, 0, 0]
        assert other.present_episodes()["group"].tolist() == [0, 0, 0]
        assert other.present_episodes()["success"].tolist() == [1, 0, 1]  # a termination is one


def test_a_success_without_a_termination_comes_back_too(tmp_path):
    with make_ring() as ring, make_ring() as other:
        writer = ring.writer(0)
        for success in (True, False):
            writer.begin(0)
            add_decision(writer, 100, last=True, truncate=True)
            writer.commit(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(3, np.float32), success=success)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=TASKS)
        load_ring(other, tmp_path / "ring.safetensors", tasks=TASKS)
        assert other.present_episodes()["success"].tolist() == [1, 0]


def test_episodes_follow_their_tasks_into_a_run_that_has_them_in_another_order_and_the_others_are_left_out(tmp_path):
    with make_ring() as ring, make_ring() as other:
        for first, task in ((100, 0), (200, 1), (300, 2)):
            write_episode(ring.writer(0), first, 2, task=task)
        save_ring(ring, tmp_path / "ring.safetensors", tasks=["open", "close", "push"])
        loaded = load_ring(other, tmp_path / "ring.safetensors", tasks=["pull", "push", "open"])
        assert (loaded.decisions, loaded.left_out) == (4, 2)
        assert other.present_episodes()["task_index"].tolist() == [2, 1]
        assert sorted(everything(other)) == [100, 300]


def test_a_file_that_names_no_tasks_is_taken_to_have_the_run_s(tmp_path):
    path = tmp_path / "ring.safetensors"
    with make_ring() as ring, make_ring() as other:
        write_episode(ring.writer(0), 100, 2, task=1)
        save_ring(ring, path, tasks=["open", "close"])
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        del metadata["tasks"]
        save_file(tensors, path, metadata)
        assert load_ring(other, path, tasks=["push", "pull"]).left_out == 0
        assert other.present_episodes()["task_index"].tolist() == [1]
