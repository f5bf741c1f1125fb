from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from vla_rl.ipc import memory_check
from vla_rl.ipc.memory_check import check_room
from vla_rl.ipc.parent_death import end_with_parent
from vla_rl.ipc.shared_arrays import Field, SharedArrays, SharedArraysHandle, bytes_needed

FIELDS = [
    Field("frames", (3, 2, 5), np.uint8),
    Field("reward", (3,), np.float32),
    Field("version", (3,), np.int64),
    Field("mask", (3,), np.bool_),
    Field("nothing", (0, 4), np.float32),
]


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder itself, while it was listed
            found.append(str(link.readlink()))
    return found


def traces(label: str) -> list[str]:
    """Where this process still has memory of that label: mappings and descriptors."""
    return [
        line
        for line in [*Path("/proc/self/maps").read_text().splitlines(), *descriptors()]
        if f"memfd:vla_rl-{label}" in line
    ]


def start(target: Callable[..., None], *args: object) -> SpawnProcess:
    child = multiprocessing.get_context("spawn").Process(target=target, args=args)
    child.start()
    return child


def write_from_child(handle: SharedArraysHandle) -> None:
    arrays = SharedArrays.attach(handle)
    arrays["reward"][1] = 2.5
    arrays["frames"][2] = 7
    arrays.close()


def add_one(handle: SharedArraysHandle, again: SharedArraysHandle) -> None:
    """A worker that knows the block by two handles, as one that has two records of it does."""
    for each in (handle, again):
        SharedArrays.attach(each)["version"][0] += 1
    os._exit(9)


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
        child = start(write_from_child, arrays.handle)
        child.join(30)
        assert child.exitcode == 0
        np.testing.assert_array_equal(arrays["reward"], [np.nan, 2.5, np.nan])
        assert (arrays["frames"][2] == 7).all()


def test_workers_that_are_started_again_after_a_death_find_the_same_memory():
    with SharedArrays.create("test", FIELDS) as arrays:
        arrays["version"][0] = 0
        for _ in range(3):
            child = start(add_one, arrays.handle, arrays.handle)
            child.join(30)
            assert child.exitcode == 9
        assert arrays["version"][0] == 6


def test_closing_with_a_view_alive_is_silent_and_the_memory_goes_with_the_view():
    arrays = SharedArrays.create("closing", FIELDS)
    view = arrays["reward"]
    view[:] = 3.0
    for _ in range(2):
        arrays.close()
    np.testing.assert_array_equal(view, [3.0, 3.0, 3.0])
    assert traces("closing")
    del view, arrays
    assert traces("closing") == []


def test_what_attaches_leaves_the_owners_block_open_and_the_owner_closes_it():
    with SharedArrays.create("test", FIELDS) as owner:
        with SharedArrays.attach(owner.handle) as other:
            other["version"][0] = 4
        assert SharedArrays.attach(owner.handle)["version"][0] == 4
    with pytest.raises(ValueError, match="closed"):
        SharedArrays.attach(owner.handle)
    with pytest.raises(ValueError, match="closed"):
        start(write_from_child, owner.handle)


def test_a_handle_is_given_to_spawned_processes_alone():
    with SharedArrays.create("test", FIELDS) as arrays, pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(arrays.handle)


def test_the_memory_has_no_name_and_stays_out_of_core_dumps():
    with SharedArrays.create("nameless", FIELDS):
        maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
        (found,) = [each for each in maps if "memfd:vla_rl-nameless" in each]
        assert found.splitlines()[0].endswith("/memfd:vla_rl-nameless (deleted)")
        assert "dd" in found.splitlines()[-1].split()  # VmFlags: do not dump


def test_a_child_hands_the_memory_to_none_of_its_own_programs():
    """A simulator may start programs, and what it starts may outlive it."""
    with SharedArrays.create("inherited", FIELDS) as arrays:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        child = start(list_descriptors_of_a_program, arrays.handle, theirs)
        assert ours.poll(30)
        mine, of_the_program = ours.recv()
        child.join(30)
        assert any("memfd:vla_rl-inherited" in link for link in mine)
        assert not any("memfd:vla_rl-inherited" in link for link in of_the_program)


def list_descriptors_of_a_program(handle: SharedArraysHandle, tell: Connection) -> None:
    with SharedArrays.attach(handle):
        mine = descriptors()
        program = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False)
        tell.send((mine, program.stdout.splitlines()))


def test_a_whole_life_with_children_leaves_no_warning():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shared_arrays import FIELDS, SharedArrays, start, write_from_child
if __name__ == "__main__":
    with SharedArrays.create("life", FIELDS) as arrays:
        for _ in range(2):
            child = start(write_from_child, arrays.handle)
            child.join()
            assert child.exitcode == 0
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_size_beyond_memory_is_refused_with_numbers_and_the_fix():
    with pytest.raises(ValueError, match=r"1048576\.0 GiB are needed.*available.*--memory.*replay\.capacity"):
        check_room(2**50)


def test_a_size_beyond_memory_is_refused_before_creation(monkeypatch):
    monkeypatch.setattr(memory_check, "available_memory", lambda: 100)
    with pytest.raises(ValueError, match=r"256 B are needed, but only 100 B of memory"):
        SharedArrays.create("refused", FIELDS)
    assert traces("refused") == []


@pytest.mark.parametrize(("limit", "available"), [(500, 500), (2000, 1000), (None, 1000)])
def test_a_container_limit_bounds_the_memory(monkeypatch, limit, available):
    monkeypatch.setattr(memory_check.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(memory_check, "memory_below_limit", lambda: limit)
    assert memory_check.available_memory() == available


def test_failing_allocation_leaves_nothing_open(monkeypatch):
    def no_space(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(ValueError, match="No space left"):
        SharedArrays.create("failing", FIELDS)
    assert traces("failing") == []


@pytest.mark.parametrize("free", [0, 1])
def test_memory_that_the_system_refuses_is_told(monkeypatch, free):
    """As in a container whose rules forbid the call; here because no descriptor is left for it, or for the mapping."""
    monkeypatch.setattr(memory_check, "available_memory", lambda: 2**20)  # it opens files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
    try:
        with pytest.raises(ValueError, match=r"refused of 256 bytes cannot be allocated.*Too many open files"):
            SharedArrays.create("refused", FIELDS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert traces("refused") == []


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        SharedArrays.create("test", [FIELDS[0], FIELDS[0]])
    with pytest.raises(ValueError, match="dtype"):
        SharedArrays.create("test", [Field("x", (1,), np.complex64)])


OWNER = f"""
import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_shared_arrays import FIELDS, SharedArrays, end_with_parent_and_write, start
if __name__ == "__main__":
    blocks = [SharedArrays.create("killed", FIELDS) for _ in range(5)]
    children = [start(end_with_parent_and_write, [block.handle for block in blocks]) for _ in range(2)]
    print("started", flush=True)
    while True:
        blocks[0]["version"][:] += 1
        time.sleep(0.001)
"""


def end_with_parent_and_write(handles: list[SharedArraysHandle]) -> None:
    end_with_parent(signal.SIGKILL)
    arrays = [SharedArrays.attach(handle) for handle in handles]
    while multiprocessing.parent_process().is_alive():
        arrays[1]["version"][:] += 1
        time.sleep(0.001)  # leaves the cores to the owner, which is to be killed at every moment of its start


def of_run(mark: str) -> list[psutil.Process]:
    """Living processes with that mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TEST_MARK") == mark:
                found.append(process)
    return found


@pytest.mark.slow
def test_12_kills_of_owner_and_tracker_at_all_moments_leave_no_process_and_no_file():
    """From the interpreter's start to a second of work; the children, which share the memory, are not killed."""
    counts = []
    for kill in range(12):
        mark = f"{os.getpid()}-{kill}"
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER], env=os.environ | {"TEST_MARK": mark}, stdout=subprocess.PIPE
        )
        assert owner.stdout is not None
        if kill < 10:
            time.sleep(0.2 * kill)
        else:  # with its children, however long a busy machine takes over their start
            assert owner.stdout.readline() == b"started\n"
            time.sleep(kill - 10)
        owner.send_signal(signal.SIGSTOP)  # so that it starts no process while we look
        members = of_run(mark)
        counts.append(len(members))
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid == owner.pid or "resource_tracker" in " ".join(process.cmdline()):
                    process.kill()
        owner.kill()  # also where its environment could not be read, as while it is still being executed
        owner.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while left := of_run(mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        numbers = {str(process.pid) for process in members}
        assert [each for each in Path("/dev/shm").iterdir() if numbers & set(re.findall(r"\d+", each.name))] == []
    assert {1, 4} <= set(counts)  # killed alone, and with tracker and children
