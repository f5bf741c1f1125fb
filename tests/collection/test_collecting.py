"""`vla-rl demos collect` from the command to files that others read."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from vla_rl.demos import open_demos
from vla_rl.demos.h5_files import open_h5

pytestmark = pytest.mark.libero

NAME = "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate_demo.hdf5"


def vla_rl(*arguments):
    command = [sys.executable, "-m", "vla_rl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def collect(out, *more):
    settings = ["--suite", "libero_spatial", "--tasks", "2", "--image-size", "32", "--physics", "fast"]
    return vla_rl("demos", "collect", *settings, "--assets", "proxy", "--out", out, *more)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    out = tmp_path_factory.mktemp("collected")
    done = collect(out, "--episodes", "1", "--workers", "1")
    assert done.returncode == 0, done.stderr
    return out


def test_a_collection_is_aligned_and_tells_how_it_was_made(collected):
    found = json.loads(vla_rl("demos", "inspect", collected, "--json").stdout)
    assert found["format"] == "libero_hdf5_regenerated"
    assert found["aligned"]
    assert found["gripper"] == "signed"
    assert not found["rotated"]
    assert found["image_size"] == [32, 32]
    assert found["episodes"] == 1
    with open_h5(collected / NAME) as handle:
        source = json.loads(handle["data"].attrs["vla_rl_source"])
    assert source["init_states"] == "sampled"
    assert source["assets"] == "proxy"
    assert source["noise"] == {"chunk_share": 0.3, "chunk_scale": 0.35, "step_scale": 0.1, "chunk": 8}


def test_a_collection_tells_other_programs_its_task_and_its_rows(collected):
    with open_h5(collected / NAME) as handle:
        data = handle["data"]
        (demo,) = data.values()
        assert demo.attrs["num_samples"] == data.attrs["total"] == len(demo["actions"])
        assert demo.attrs["init_state"].tolist() == demo["states"][0].tolist()
        path = f"libero/libero/bddl_files/libero_spatial/{NAME.removesuffix('_demo.hdf5')}.bddl"
        assert data.attrs["bddl_file_name"] == path
        environment = json.loads(data.attrs["env_args"])["env_kwargs"]
        assert (environment["camera_heights"], environment["camera_widths"]) == (32, 32)


def test_labels_are_not_what_was_executed_and_gripper_and_rotation_are(collected):
    (episode,) = open_demos(collected)
    executed = episode.stored.read_extras()["executed_actions"]
    difference = np.abs(executed - episode.actions)
    assert difference[:, :3].max() > 0.05
    assert difference[:, 3:].max() == 0.0


def test_a_collection_that_is_complete_is_kept(collected):
    before = (collected / NAME).stat().st_mtime_ns
    assert collect(collected, "--episodes", "1", "--workers", "1").returncode == 0
    assert (collected / NAME).stat().st_mtime_ns == before


def test_a_collection_can_be_extended(collected, tmp_path):
    """One episode, then two: the first stays as it was, and later attempts add the second."""
    out = tmp_path / "more"
    shutil.copytree(collected, out)
    done = collect(out, "--episodes", "2", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "has 1 of 2 episodes; 1 will be added" in done.stdout
    (first,), extended = open_demos(collected), list(open_demos(out))
    assert len(extended) == 2
    assert extended[0].number == first.number < extended[1].number
    np.testing.assert_array_equal(extended[0].actions, first.actions)
    again = collect(out, "--episodes", "1", "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert "has 2 episodes, more than the 1 asked for, and keeps them" in again.stdout
    assert len(open_demos(out)) == 2


def test_a_replay_keeps_what_succeeded_and_leaves_out_what_does_not(collected, tmp_path):
    done = vla_rl("demos", "convert", collected, "--out", tmp_path / "kept", "--replay")
    assert done.returncode == 0, done.stderr
    assert "left out in this call, because they did not succeed when played again: 0 episodes" in done.stdout
    assert len(open_demos(tmp_path / "kept")) == 1

    import h5py

    spoiled = tmp_path / "spoiled"
    spoiled.mkdir()
    (spoiled / NAME).write_bytes((collected / NAME).read_bytes())
    with h5py.File(spoiled / NAME, "r+") as handle:
        (demo,) = handle["data"].values()
        demo["executed_actions"][:, 6] = -1.0  # the hand never closes
    done = vla_rl("demos", "convert", spoiled, "--out", tmp_path / "none", "--replay")
    assert "left out in this call, because they did not succeed when played again: 1 episodes" in done.stdout
    assert not list((tmp_path / "none").iterdir())


def test_a_dry_run_writes_nothing(tmp_path):
    done = collect(tmp_path / "new", "--episodes", "1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1 episodes of each of 1 tasks" in done.stdout
    assert not (tmp_path / "new").exists()


def test_tasks_are_given_as_ids_and_ranges(tmp_path):
    done = collect(tmp_path / "new", "--episodes", "1", "--tasks", "0-2,4", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1 episodes of each of 4 tasks" in done.stdout


def test_a_task_that_the_expert_cannot_do_is_refused_before_anything_starts(tmp_path):
    done = vla_rl("demos", "collect", "--suite", "libero_goal", "--episodes", "1", "--out", tmp_path / "new")
    assert done.returncode == 2
    wants = "cannot do libero_goal task 0: it wants open(wooden_cabinet_1_middle_region); it can do one goal"
    assert wants in " ".join(done.stderr.split())
    assert not (tmp_path / "new").exists()
    assert "\nLeave these tasks out: --tasks 1,2,3,4,5,6,8,9\n" in done.stderr


@pytest.mark.slow
def test_the_files_are_the_same_for_any_number_of_processes_and_after_a_kill(tmp_path):
    assert collect(tmp_path / "one", "--episodes", "3", "--workers", "1").returncode == 0
    killed = subprocess.Popen(
        [
            *(sys.executable, "-m", "vla_rl", "demos", "collect", "--suite", "libero_spatial", "--tasks", "2"),
            *("--image-size", "32", "--physics", "fast", "--assets", "proxy", "--episodes", "3", "--workers", "2"),
            *("--out", str(tmp_path / "two")),
        ],
        stderr=subprocess.PIPE,
        env=os.environ,
        text=True,
    )
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith(("1/3", "2/3")):
            break
    killed.kill()
    killed.wait(timeout=60)
    killed.stderr.close()
    assert (tmp_path / "two" / ".collecting").is_dir()
    assert collect(tmp_path / "two", "--episodes", "3", "--workers", "2").returncode == 0
    one, two = open_demos(tmp_path / "one"), open_demos(tmp_path / "two")
    assert len(one) == len(two) == 3
    for left, right in zip(one, two, strict=True):
        assert left.number == right.number
        assert np.array_equal(left.actions, right.actions)
        assert np.array_equal(left.frames["agentview"], right.frames["agentview"])
