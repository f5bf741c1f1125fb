"""Comparison of a run's ranks before they start: recipes, versions, start checkpoints, folders, weights.

Every rank learns what all the others have and reaches the same verdict, so all of them end with the same error. With
one machine the ranks rarely differ; with several, a forgotten `git pull` or a folder that is on no common file system
would otherwise show after hours, or never.
"""

from __future__ import annotations

import json
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_rl.errors import UserError
from vla_rl.files import read_json_object
from vla_rl.learner.checkpoint import POLICY_FILE, CheckpointInfo, complete_checkpoint
from vla_rl.learner.checkpoint_folder import MANIFEST
from vla_rl.learner.notice_board import NoticeBoard
from vla_rl.learner.rank_failures import CommonError
from vla_rl.reporting.manifest import by_dotted_name, source_state
from vla_rl.run.folder import RunFolder

PACKAGES = ("vla-rl", "torch", "numpy", "transformers", "accelerate", "deepspeed", "mujoco", "robosuite")
FOLDER_S = 5.0  # longest time in which a new file is seen on the other machines of a network file system
OF_A_MACHINE = {"policy.checkpoint"}  # fields that may differ, because what they lead to is compared
SHOWN = 3  # differences that an error lists


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one rank."""

    recipe: dict[str, Any]
    versions: dict[str, str]
    resume: bool
    run_dir: str
    checkpoint: int | None  # optimizer steps of the newest complete one
    complete: dict[str, int]  # checkpoints by optimizer steps, with the checksum of their weights

    @classmethod
    def of(cls, recipe: Mapping[str, Any], run_dir: Path, *, resume: bool, newest: CheckpointInfo | None) -> Facts:
        """Return this rank's."""
        return cls(
            recipe=dict(recipe),
            versions=_versions(),
            resume=resume,
            run_dir=str(run_dir.resolve()),
            checkpoint=None if newest is None else newest.optimizer_steps,
            complete=_weights_of(newest),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Folder of this rank's run, and which ranks have the same one."""

    ranks: tuple[int, ...] = (0,)  # that see the same folder, ascending
    rank: int = 0
    num_ranks: int = 1

    @property
    def is_keeper(self) -> bool:
        """Return whether this rank writes what the folder has once."""
        return self.rank == self.ranks[0]

    @property
    def is_shared(self) -> bool:
        """Return whether all ranks see the same folder."""
        return len(self.ranks) == self.num_ranks


def compare_facts(board: NoticeBoard, own: Facts) -> list[Facts]:
    """Return the facts of all ranks, in rank order.

    Raises:
        UserError: recipes, versions or what is resumed differ; the same error on every rank names them.
    """
    told = board.exchange("facts", json.dumps(asdict(own)))
    everyone = [Facts(**json.loads(text)) for text in told]
    first = everyone[0]
    for rank, facts in enumerate(everyone):
        if facts.resume != first.resume:
            resumes, other = (rank, 0) if facts.resume else (0, rank)
            raise CommonError(
                f"--resume: {board.name_of(resumes)} was started with it and {board.name_of(other)} without; start all "
                "ranks with the same command"
            )
        _refuse_differences(board, rank, "recipe", _compared(first.recipe), _compared(facts.recipe))
        _refuse_differences(board, rank, "version", first.versions, facts.versions)
    return everyone


def common_start(
    board: NoticeBoard, everyone: Sequence[Facts], run_dir: Path, newest: CheckpointInfo | None
) -> CheckpointInfo | None:
    """Return the newest checkpoint that every rank has; None if no rank has any.

    The newest one of a rank may be newer than that: its machine was faster when all were killed.

    Args:
        board: of the ranks.
        everyone: facts of all ranks.
        run_dir: folder of this rank's run.
        newest: its newest complete checkpoint.

    Raises:
        UserError: a rank lacks the checkpoint that the others resume from, or has another one of that name.
    """
    have = [facts for facts in everyone if facts.checkpoint is not None]
    if not have:
        return None
    lacking = [rank for rank, facts in enumerate(everyone) if facts.checkpoint is None]
    common = set.intersection(*(set(facts.complete) for facts in everyone))
    if lacking or not common:
        newest_of = [-1 if facts.checkpoint is None else facts.checkpoint for facts in everyone]
        ahead = newest_of.index(max(newest_of))
        behind = lacking[0] if lacking else newest_of.index(min(newest_of))
        step, source = everyone[ahead].checkpoint, everyone[ahead].run_dir
        raise CommonError(
            f"--resume: {board.name_of(ahead)} has optimizer_step_{step} in {source}, and {board.name_of(behind)} "
            f"does not have it in {everyone[behind].run_dir}. Copy recipe.yaml and checkpoints/optimizer_step_{step} "
            "from the one folder to the other, or give all ranks a folder that they share (--run-dir)"
        )
    name = max(common, key=int)
    for rank, facts in enumerate(everyone):
        if facts.complete[name] != everyone[0].complete[name]:
            raise CommonError(
                f"--resume: optimizer_step_{name} has other weights in {facts.run_dir} of {board.name_of(rank)} than "
                f"in {everyone[0].run_dir} of {board.name_of(0)}: they are of different runs. Copy the one that is "
                "meant"
            )
    if newest is not None and newest.optimizer_steps == int(name):
        return newest
    return complete_checkpoint(run_dir, int(name))


def find_place(board: NoticeBoard, run_dir: Path, *, wait_s: float | None = None) -> Place:
    """Create the folder and find out which ranks see the same one: each leaves a file and looks for the others'.

    Raises:
        UserError: the folder cannot be written to, or the ranks do not agree on who shares it.
    """
    nonce = board.exchange("nonce", secrets.token_hex(8))[0]

    def mark(rank: int) -> Path:
        return run_dir / f".rank_{rank}_{nonce}"

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        mark(board.rank).touch()
    except OSError as error:
        raise UserError(f"--run-dir: {run_dir} cannot be written to ({error}); choose another folder") from error
    try:
        board.exchange("marked", "")
        end, seen = time.monotonic() + (FOLDER_S if wait_s is None else wait_s), set[int]()
        while len(seen) < board.num_ranks:
            seen = {rank for rank in range(board.num_ranks) if mark(rank).exists()}
            if len(seen) == board.num_ranks or time.monotonic() > end:
                break
            time.sleep(0.2)
            run_dir.mkdir(exist_ok=True)  # asks the server, where a listing may be of a cache
        everyone = board.exchange("seen", json.dumps(sorted(seen)))
    finally:
        mark(board.rank).unlink(missing_ok=True)
    together = {tuple(json.loads(text)) for text in everyone}
    own = tuple(sorted(seen))
    if sum(map(len, together)) != board.num_ranks:
        raise CommonError(
            f"--run-dir: which ranks share the run folder is not clear: they see {sorted(together)}. Give all ranks "
            "the same folder of a file system that they share, or every machine one of its own"
        )
    return Place(own, board.rank, board.num_ranks)


@contextmanager
def kept_folder(
    folder: RunFolder, board: NoticeBoard | None, *, resume: bool, together: bool = False
) -> Iterator[bool]:
    """Create the run's folder, locked against other runs; yields whether this rank writes what the folder has once.

    Args:
        folder: of this rank; other ranks may have another one, on a machine that shares no file system.
        board: of the ranks; None: there is one.
        resume: the folder may hold the run already.
        together: all ranks must share the folder.

    Raises:
        UserError: a folder cannot be used, or is not shared and must be.
    """
    with ExitStack() as stack:
        place = Place() if board is None else find_place(board, folder.path)
        if together and not place.is_shared:
            assert board is not None
            other = next(rank for rank in range(board.num_ranks) if (rank in place.ranks) != (0 in place.ranks))
            raise CommonError(
                f"--run-dir: the ranks do not share the run folder: {board.name_of(0)} and {board.name_of(other)} see "
                "different ones. All ranks read the prepared frames there: give a folder of a file system that they "
                "share"
            )
        if place.is_keeper:
            RunFolder.open(folder.path, resume=resume, verb=folder.verb)
            stack.enter_context(folder.claimed())
        if board is not None:
            board.exchange("claimed", "")
        yield place.is_keeper


def compare_weights(board: NoticeBoard, policy: nn.Module) -> None:
    """Compare the ranks' policies, frozen parameters included, before the first update: nothing is ever sent.

    Raises:
        UserError: they differ; names the ranks and the first parameters.
    """
    own = {name: _bits(parameter) for name, parameter in policy.named_parameters()}
    everyone = [json.loads(text) for text in board.exchange("weights", json.dumps(own))]
    for rank, weights in enumerate(everyone):
        differing = [name for name in everyone[0] if weights.get(name) != everyone[0][name]]
        if differing:
            raise CommonError(
                f"policy: {board.name_of(rank)} begins with other weights than {board.name_of(0)}: {len(differing)} "
                f"of {len(everyone[0])} parameters differ, the first: {', '.join(differing[:SHOWN])}. Their "
                "checkpoints have the same path and not the same content: copy the one of rank 0"
            )


def _bits(parameter: torch.Tensor) -> int:
    """Return a checksum of a tensor: the sum of its bits as integers of 64 bits, modulo 2^64. Reads memory once."""
    flat = parameter.detach().contiguous().flatten()
    if flat.data_ptr() % 8 or flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    whole = flat.numel() * flat.element_size() // 8 * 8 // flat.element_size()
    rest = flat[whole:].view(torch.uint8).sum(dtype=torch.int64)
    return int(flat[:whole].view(torch.int64).sum()) + int(rest)


def _refuse_differences(
    board: NoticeBoard, rank: int, what: str, expected: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    names = [*expected, *(name for name in found if name not in expected)]
    differing = [name for name in names if expected.get(name) != found.get(name)]
    if not differing:
        return
    lines = "".join(
        f"\n  {name}: {expected.get(name, 'absent')} on rank 0, {found.get(name, 'absent')} on rank {rank}"
        for name in differing[:SHOWN]
    )
    more = f"\n  and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    raise CommonError(
        f"{what}s differ between {board.name_of(0)} and {board.name_of(rank)}:{lines}{more}\n"
        + (
            "Start the same command with the same recipe on every machine"
            if what == "recipe"
            else "Install the same environment on every machine"
        )
    )


def _compared(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in by_dotted_name(recipe).items() if name not in OF_A_MACHINE}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    commit = source_state(Path(__file__).resolve().parents[2])["commit"]
    if commit is not None:
        found["commit of the checkout"] = commit
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _weights_of(newest: CheckpointInfo | None) -> dict[str, int]:
    """Return the checkpoints up to the newest complete one, with the recorded checksums of their weights."""
    if newest is None:
        return {}
    found = {}
    for folder in {newest.path, *newest.path.parent.glob("optimizer_step_*")}:
        step = folder.name.rsplit("_", 1)[1]
        if not step.isdecimal() or int(step) > newest.optimizer_steps:
            continue
        try:
            files = read_json_object(folder / MANIFEST)["files"]
            found[step] = int(files[POLICY_FILE]["crc32"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
