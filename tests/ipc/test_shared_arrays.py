from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_rl.ipc import room, shared_arrays
from vla_rl.ipc.room import SHM_DIRECTORY, check_room
from vla_rl.ipc.shared_arrays import Field, SharedArrays, SharedArraysHandle, bytes_needed, sweep_stale

FIELDS = [
    Field("frames", (3, 2, 5), np.uint8),
    Field("reward", (3,), np.float32),
    Field("version", (3,), np.int64),
    Field("mask", (3,), np.bool_),
    Field("nothing", (0, 4), np.float32),
]


def own_blocks() -> set[str]:
    return {path.name for path in SHM_DIRECTORY.glob(f"vla_rl-{os.getpid()}-*")}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def write_from_child(handle: SharedArraysHandle) -> None:
    arrays = SharedArrays.attach(handle)
    arrays["reward"][1] = 2.5
    arrays["frames"][2] = 7
    arrays.close()


def test_fresh_memory_holds_impossible_values():
    with SharedArrays.create("test", FIELDS) as arrays:
        assert (arrays["frames"] == 255).all()
        assert np.isnan(arrays["reward"]).all()
        assert (arrays["version"] == -(2**63)).all()
        assert not arrays["mask"].any()
        assert arrays["nothing"].shape == (0, 4)


def test_fields_are_aligned_to_cache_lines_and_do_not_overlap():
    with SharedArrays.create("test", FIELDS) as arrays:
        starts = [arrays[field.name].ctypes.data for field in FIELDS if field.nbytes]
        assert [start - starts[0] for start in starts] == [0, 64, 128, 192]
        assert starts[0] % 64 == 0
    assert bytes_needed(FIELDS) == 256


def test_a_spawned_child_writes_into_the_same_memory():
    with SharedArrays.create("test", FIELDS) as arrays:
        child = multiprocessing.get_context("spawn").Process(target=write_from_child, args=(arrays.handle,))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        np.testing.assert_array_equal(arrays["reward"], [np.nan, 2.5, np.nan])
        assert (arrays["frames"][2] == 7).all()
        assert arrays.handle.block_name in own_blocks()
    assert not own_blocks()


def test_closing_with_a_view_alive_is_silent_and_the_view_stays_readable():
    arrays = SharedArrays.create("test", FIELDS)
    view = arrays["reward"]
    view[:] = 3.0
    arrays.close()
    arrays.unlink()
    arrays.close()
    arrays.unlink()
    assert not own_blocks()
    np.testing.assert_array_equal(view, [3.0, 3.0, 3.0])


def test_only_the_owner_unlinks():
    with SharedArrays.create("test", FIELDS) as owner:
        with SharedArrays.attach(owner.handle):
            pass
        assert own_blocks() == {owner.handle.block_name}
    with pytest.raises(FileNotFoundError):
        SharedArrays.attach(owner.handle)


def test_a_whole_life_with_a_child_leaves_no_warning_and_no_block():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import multiprocessing
from test_shared_arrays import FIELDS, SharedArrays, write_from_child
if __name__ == "__main__":
    with SharedArrays.create("life", FIELDS) as arrays:
        for _ in range(2):
            child = multiprocessing.get_context("spawn").Process(target=write_from_child, args=(arrays.handle,))
            child.start(); child.join()
            assert child.exitcode == 0
        print(arrays.handle.block_name)
"""
    result = run_python(code)
    assert (result.returncode, result.stderr) == (0, "")
    assert not (SHM_DIRECTORY / result.stdout.strip()).exists()


KILLED_OWNER = """
import os, signal
import numpy as np
from multiprocessing import resource_tracker
from vla_rl.ipc.shared_arrays import Field, SharedArrays
arrays = SharedArrays.create("killed", [Field("x", (8,), np.float32)])
print(arrays.handle.block_name, flush=True)
{before}
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_block_of_a_killed_owner_is_swept_at_the_next_start():
    # Without its tracker the block is really left behind, as after a kill of the whole process group.
    result = run_python(KILLED_OWNER.format(before="os.kill(resource_tracker._resource_tracker._pid, signal.SIGKILL)"))
    name = result.stdout.strip()
    assert result.returncode == -signal.SIGKILL
    assert (SHM_DIRECTORY / name).exists()
    assert name in sweep_stale()
    assert not (SHM_DIRECTORY / name).exists()


def test_the_tracker_and_the_sweep_together_always_remove_the_block_of_a_killed_owner():
    result = run_python(KILLED_OWNER.format(before=""))
    sweep_stale()
    assert not (SHM_DIRECTORY / result.stdout.strip()).exists()


def test_the_sweep_spares_the_living():
    with SharedArrays.create("test", FIELDS) as arrays:
        assert arrays.handle.block_name not in sweep_stale()
        assert (SHM_DIRECTORY / arrays.handle.block_name).exists()


def test_a_block_that_its_living_owner_has_not_locked_yet_is_spared():
    path = SHM_DIRECTORY / shared_arrays._new_block_name("test")
    path.write_bytes(b"x")
    assert path.name not in sweep_stale()
    path.unlink()


def test_a_reused_process_id_does_not_protect_a_block():
    path = SHM_DIRECTORY / f"vla_rl-{os.getpid()}-1-test-00000000"  # our id, but started right after boot
    path.write_bytes(b"x")
    assert path.name in sweep_stale()
    assert not path.exists()


def test_a_locked_block_is_spared_although_its_owner_is_unknown_here(monkeypatch):
    with SharedArrays.create("test", FIELDS) as arrays:
        monkeypatch.setattr(shared_arrays, "_process_lives", lambda _pid, _started: False)
        assert arrays.handle.block_name not in sweep_stale()


def test_a_size_beyond_shared_memory_is_refused_with_numbers_and_the_fix():
    with pytest.raises(ValueError, match=r"1048576\.0 GiB are needed.*free.*--shm-size.*replay\.capacity"):
        check_room(2**50)


def test_a_size_beyond_memory_is_refused_before_creation(monkeypatch):
    monkeypatch.setattr(room, "available_memory", lambda: 100)
    with pytest.raises(ValueError, match=r"256 B are needed, but only 100 B of memory"):
        SharedArrays.create("test", FIELDS)
    assert not own_blocks()


@pytest.mark.parametrize(("limit", "available"), [(500, 500), (2000, 1000), (None, 1000)])
def test_a_container_limit_bounds_the_memory(monkeypatch, limit, available):
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(room, "memory_below_limit", lambda: limit)
    assert room.available_memory() == available


def test_failing_allocation_leaves_no_block(monkeypatch):
    def no_space(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(ValueError, match="No space left"):
        SharedArrays.create("test", FIELDS)
    assert not own_blocks()


def test_bad_names_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        SharedArrays.create("test", [FIELDS[0], FIELDS[0]])
    with pytest.raises(ValueError, match="purpose"):
        SharedArrays.create("Re/play", FIELDS)
    with pytest.raises(ValueError, match="dtype"):
        SharedArrays.create("test", [Field("x", (1,), np.complex64)])
    assert not own_blocks()
