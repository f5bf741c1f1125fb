"""Checkpoints: complete or absent, resumable, refused where they do not fit."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import learner_fakes as fakes
import numpy as np
import pytest
import torch

from vla_rl.learner import checkpoint, checkpoint_folder
from vla_rl.learner.checkpoint import CheckpointError, CheckpointInfo, Progress
from vla_rl.learner.engine import Engine


def progress(optimizer_steps: int) -> Progress:
    return Progress(
        optimizer_steps=optimizer_steps,
        env_steps=640,
        decisions=80,
        episodes=6,
        policy_version=optimizer_steps,
        consumed=70,
    )


def save(run_dir: Path, engine: Engine, *, keep: int = 3, **arguments) -> CheckpointInfo:
    arguments = {"extra": {"seed": 3}, "writers": {}} | arguments
    return checkpoint.save(run_dir, engine, progress=progress(engine.optimizer_steps), keep=keep, **arguments)


def trained(updates: int, *, seed: int = 0) -> Engine:
    engine = fakes.make_engine(fakes.make_policy(seed))
    train(engine, range(updates))
    return engine


def train(engine: Engine, batches: range) -> None:
    learner = fakes.make_learner(engine)
    for index in batches:
        learner.update(fakes.make_batch(seed=index), policy_version=20)


def folders(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    engine = trained(3)
    info = save(tmp_path, engine)
    train(engine, range(3, 6))
    resumed = fakes.make_engine(fakes.make_policy(seed=9))
    restored = checkpoint.load(info, resumed)
    assert restored.progress == progress(3)
    assert restored.extra == {"seed": 3}
    train(resumed, range(3, 6))
    assert resumed.optimizer_steps == 6
    assert fakes.largest_difference(engine.trainable_state(), resumed.trainable_state()) == 0.0


def test_a_checkpoint_before_the_first_update_resumes_too(tmp_path: Path) -> None:
    engine = trained(0)
    info = save(tmp_path, engine)
    resumed = fakes.make_engine(fakes.make_policy(seed=9))
    checkpoint.load(info, resumed)
    train(engine, range(2))
    train(resumed, range(2))
    assert fakes.largest_difference(engine.trainable_state(), resumed.trainable_state()) == 0.0


def test_random_number_generators_continue_where_they_stood(tmp_path: Path) -> None:
    engine = trained(1)
    torch.manual_seed(5)
    np.random.seed(5)
    info = save(tmp_path, engine)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist())
    torch.rand(7)
    checkpoint.load(info, engine)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == expected


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    info = save(tmp_path, trained(1))
    assert {path.suffix for path in info.path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_a_writer_adds_its_files_and_finds_them_again(tmp_path: Path) -> None:
    info = save(tmp_path, trained(1), writers={"replay": lambda folder: (folder / "ring.bin").write_bytes(b"x" * 100)})
    assert (info.rank_folder(0, "replay") / "ring.bin").read_bytes() == b"x" * 100
    assert "rank_0/replay/ring.bin" in json.loads((info.path / "manifest.json").read_text())["files"]


def test_only_the_newest_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    engine = trained(0)
    for index in range(4):
        save(tmp_path, engine, keep=2)
        train(engine, range(index, index + 1))
    assert folders(tmp_path) == ["latest", "optimizer_step_2", "optimizer_step_3"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "optimizer_step_3\n"
    assert checkpoint.find_latest(tmp_path).newest == CheckpointInfo(
        tmp_path / "checkpoints" / "optimizer_step_3", optimizer_steps=3
    )


def test_folders_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    engine = trained(0)
    for steps in (9, 10, 100):
        engine.optimizer_steps = steps
        save(tmp_path, engine)
    search = checkpoint.find_latest(tmp_path)
    assert search.newest is not None
    assert search.newest.optimizer_steps == 100


def test_the_same_step_may_be_saved_twice(tmp_path: Path) -> None:
    engine = trained(1)
    save(tmp_path, engine, extra={"part": 1})
    info = save(tmp_path, engine, extra={"part": 2})
    assert folders(tmp_path) == ["latest", "optimizer_step_1"]
    assert checkpoint.load(info, engine).extra == {"part": 2}


class Killed(BaseException):
    """The process ends here: nothing of ours may catch it."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_save_that_is_killed_while_it_replaces_one_of_the_same_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    engine = trained(1)
    save(tmp_path, engine, extra={"part": 1})
    rename, done = checkpoint_folder.rename, []

    def die(path: Path, target: Path) -> None:
        if len(done) == renames:
            raise Killed
        done.append(target)
        rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint_folder, "rename", die)
        save(tmp_path, engine, extra={"part": 2})
    search = checkpoint.find_latest(tmp_path)
    assert search.newest is not None
    assert checkpoint.load(search.newest, engine).extra == {"part": 1}

    train(engine, range(1, 2))
    save(tmp_path, engine)
    assert folders(tmp_path) == ["latest", "optimizer_step_1", "optimizer_step_2"]
    kept = CheckpointInfo(tmp_path / "checkpoints" / "optimizer_step_1", optimizer_steps=1)
    assert checkpoint.load(kept, trained(0)).extra == {"part": 1}


def test_a_folder_is_replaced_also_after_a_kill_while_the_one_before_was_removed(tmp_path: Path) -> None:
    partial, final = tmp_path / "policy.new", tmp_path / "policy"
    left = tmp_path / f"{checkpoint_folder.REPLACED_PREFIX}policy"
    for folder in (partial, final, left):
        folder.mkdir()
        (folder / "weights").write_text(folder.name)
    checkpoint_folder.replace_folder(partial, final)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert (final / "weights").read_text() == "policy.new"


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.find_latest(tmp_path) == checkpoint.Search(None, [])


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (_truncate, "policy.safetensors", "bytes"),
        (_flip_a_bit, "optimizer.safetensors", "optimizer.safetensors is damaged"),
        (Path.unlink, "state.json", "state.json is missing"),
        (Path.unlink, "manifest.json", "manifest.json cannot be read"),
        (_truncate, "manifest.json", "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(tmp_path: Path, damage, file: str, reason: str) -> None:
    engine = trained(1)
    older = save(tmp_path, engine)
    train(engine, range(1, 2))
    newest = save(tmp_path, engine)
    damage(newest.path / file)
    if damage is _truncate and file == "manifest.json":
        (newest.path / file).write_text("{")
    search = checkpoint.find_latest(tmp_path)
    assert search.newest == older
    assert len(search.warnings) == 1
    assert str(newest.path) in search.warnings[0]
    assert reason in search.warnings[0]
    with pytest.raises(CheckpointError, match=r"optimizer_step_2"):
        checkpoint.load_policy(newest.path, engine.policy)


def test_a_save_that_was_killed_is_named_and_cleared_away_by_the_next(tmp_path: Path) -> None:
    engine = trained(1)
    (tmp_path / "checkpoints" / ".tmp-optimizer_step_7").mkdir(parents=True)
    search = checkpoint.find_latest(tmp_path)
    assert search.newest is None
    assert ".tmp-optimizer_step_7: left behind" in search.warnings[0]
    save(tmp_path, engine)
    assert folders(tmp_path) == ["latest", "optimizer_step_1"]


def _fill_the_disk(folder: Path) -> None:
    (folder / "part").write_bytes(b"x")
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG: the nearest thing to a full disk that needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_earlier_checkpoints_as_they_were(tmp_path: Path) -> None:
    engine = trained(1)
    whole = save(tmp_path, engine, keep=1)
    train(engine, range(1, 2))
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, engine, keep=1, writers={"replay": _fill_the_disk})
    assert folders(tmp_path) == ["latest", "optimizer_step_1"]
    assert checkpoint.find_latest(tmp_path) == checkpoint.Search(whole, [])


@pytest.mark.parametrize("limit", [1000, 7000, 14000])  # policy, optimizer, generators
def test_a_write_that_fails_anywhere_raises_oserror_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    engine = trained(1)
    whole = save(tmp_path, engine)
    train(engine, range(1, 2))
    with file_size_limit(limit), pytest.raises(OSError):
        save(tmp_path, engine)
    assert folders(tmp_path) == ["latest", "optimizer_step_1"]
    assert checkpoint.find_latest(tmp_path) == checkpoint.Search(whole, [])


def test_another_architecture_is_refused_by_the_first_tensors_that_differ(tmp_path: Path) -> None:
    info = save(tmp_path, trained(1))
    policy = fakes.make_policy()
    policy.value_head[1] = torch.nn.Linear(4, 2)
    del policy.scale
    policy.forward = fakes.MLPPolicy.forward.__get__(policy)
    before = fakes.weights(policy)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(info, fakes.make_engine(policy))
    message = str(caught.value)
    assert "3 of" in message
    assert "scale: checkpoint [5], policy absent" in message
    assert "value_head.1.weight: checkpoint [1, 4], policy [2, 4]" in message
    assert fakes.largest_difference(before, fakes.weights(policy)) == 0.0


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    engine = trained(1)
    info = save(tmp_path, engine)
    state = json.loads((info.path / "state.json").read_text())
    (info.path / "state.json").write_text(json.dumps(state | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version is 99 and this program reads 1"):
        checkpoint.load(info, engine)


def test_a_policy_is_read_without_an_engine(tmp_path: Path) -> None:
    engine = trained(2)
    info = save(tmp_path, engine)
    policy = fakes.make_policy(seed=9)
    checkpoint.load_policy(info.path, policy)
    assert fakes.largest_difference(fakes.weights(engine.policy), fakes.weights(policy)) == 0.0


def test_what_is_held_of_a_checkpoint_stays_when_it_is_removed(tmp_path: Path) -> None:
    """Also where its files are links into a store, as annexes and caches keep large ones."""
    info = save(tmp_path / "run", trained(2))
    stored = tmp_path / "store"
    (info.path / "policy.safetensors").rename(stored)
    (info.path / "policy.safetensors").symlink_to(Path("../../..") / stored.name)
    assert checkpoint_folder.problem_of(info.path) is None
    with checkpoint.held_policy(info.path, within=tmp_path) as place:
        checkpoint_folder.remove_folder(info.path)
        stored.unlink()
        assert place.name == info.path.name
        checkpoint.load_policy(place, fakes.make_policy(seed=9))
    assert not place.exists()


def test_a_checkpoint_without_what_one_writer_wrote_is_complete_and_loads(tmp_path: Path) -> None:
    engine = trained(2)
    writers = {name: lambda folder: (folder / "file").write_text("x") and None for name in ("replay", "governor")}
    info = save(tmp_path, engine, writers=writers)
    checkpoint_folder.remove_part(info.path, "replay")
    assert not info.rank_folder(0, "replay").exists()
    assert info.rank_folder(0, "governor").exists()
    assert checkpoint_folder.problem_of(info.path) is None
    assert checkpoint.load(info, fakes.make_engine(fakes.make_policy(seed=9))).progress == progress(2)
