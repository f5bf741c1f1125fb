"""Checkpoints: `checkpoints/optimizer_step_<n>/`, complete or absent.

    policy.safetensors       the trainable tensors, float32
    optimizer.safetensors    AdamW's state, `<parameter>/<step | exp_avg | exp_avg_sq>`, whole tensors
    state.json               clocks, architecture, values that the caller adds
    rank_<r>/rng.json        random number generators of one rank
    rank_<r>/<name>/         files of a caller's writer (the replay ring, for instance)
    manifest.json            size and CRC-32 of every other file

The format is the same for every strategy: under DeepSpeed the sharded state is gathered into whole tensors instead of
being left to DeepSpeed's own pickled files. So nothing here is ever unpickled, and a run may be resumed under another
strategy or with another number of ranks.

A checkpoint is written to a temporary folder, flushed to disk and renamed; a crash at any moment leaves the earlier
ones unchanged. `checkpoints/latest` names the newest one, for people; `find_latest` examines the folders themselves.
`checkpoints/best`, where there is one, names the checkpoint that `save` never removes.
Ranks that share a folder write into one checkpoint. On several machines without a common file system every machine's
folder gets a whole checkpoint, with the files of its own ranks.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_rl.files import atomic_write_json, atomic_write_text, flush_tree, written_aside
from vla_rl.learner import checkpoint_folder as files
from vla_rl.learner.optimizer import trainable_parameters
from vla_rl.learner.rng import capture_rng, restore_rng

if TYPE_CHECKING:
    from vla_rl.learner.engine import Engine

FORMAT_VERSION = 1
FOLDER = files.CHECKPOINTS
LATEST = "latest"
BEST = "best"
POLICY_FILE, STATE_FILE = "policy.safetensors", "state.json"
POINTERS = (LATEST, BEST)  # files that hold the name of a checkpoint beside them

_NAME = re.compile(rf"(?:{re.escape(files.REPLACED_PREFIX)})?optimizer_step_(\d+)")

Writer = Callable[[Path], None]


class CheckpointError(ValueError):
    """Error of a checkpoint that cannot be used."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Clocks of a run."""

    optimizer_steps: int
    env_steps: int
    decisions: int
    episodes: int
    policy_version: int
    consumed: int  # decisions consumed by updates


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """Complete checkpoint."""

    path: Path
    optimizer_steps: int

    @property
    def is_in_place(self) -> bool:
        """Return whether it is in its final place, not moved aside for a successor that never appeared."""
        return not self.path.name.startswith(files.REPLACED_PREFIX)

    def rank_folder(self, rank: int, name: str) -> Path:
        """Return the folder that writer `name` of a rank wrote; absent if there was no such writer."""
        return self.path / f"rank_{rank}" / name


@dataclass(frozen=True, slots=True)
class Search:
    """Result of `find_latest`."""

    newest: CheckpointInfo | None = None
    leftovers: list[str] = field(default_factory=list)  # one line per unfinished save
    damaged: list[str] = field(default_factory=list)  # one line per skipped checkpoint, with the reason

    @property
    def warnings(self) -> list[str]:
        """Return warnings for the user, one line each."""
        return self.leftovers + self.damaged


@dataclass(frozen=True, slots=True)
class Restored:
    """Values that `load` read besides the tensors."""

    progress: Progress
    extra: dict[str, Any]


def save(
    run_dir: Path,
    engine: Engine,
    *,
    progress: Progress,
    extra: Mapping[str, Any],
    writers: Mapping[str, Writer],
    keep: int,
    is_keeper: bool | None = None,
) -> CheckpointInfo:
    """Write a checkpoint and remove all but the newest `keep` and the best. All ranks call it together.

    Args:
        run_dir: the run's folder.
        engine: engine with tensors and optimizer.
        progress: clocks; `optimizer_steps` names the folder.
        extra: JSON values stored for the caller; rank 0's are written.
        writers: by name, called on every rank with an empty folder of that rank to write into.
        keep: at least 1.
        is_keeper: whether this rank writes what a folder has once; exactly one of the ranks that share a folder does.
            None: rank 0 does, and all ranks share one.

    Raises:
        OSError: a rank could not write (a full disk); earlier checkpoints are unchanged and nothing is left behind.
    """
    checkpoints = run_dir / FOLDER
    final = checkpoints / f"optimizer_step_{progress.optimizer_steps}"
    partial = checkpoints / f"{files.PARTIAL_PREFIX}{final.name}"
    ranks = engine.collectives
    is_keeper = _keeps(ranks.is_main, is_keeper)
    policy, optimizer = (
        engine.trainable_state(),
        engine.optimizer_state(),
    )  # collective under DeepSpeed: precedes I/O
    state = {
        "format_version": FORMAT_VERSION,
        "progress": asdict(progress),
        "architecture": architecture(engine.policy),
        "extra": dict(extra),
    }

    def prepare() -> None:
        checkpoints.mkdir(parents=True, exist_ok=True)
        files.clear_up(checkpoints)
        partial.mkdir()

    def write() -> None:
        mine = partial / f"rank_{ranks.rank}"
        mine.mkdir()
        for name, writer in writers.items():
            (mine / name).mkdir()
            writer(mine / name)
        if is_keeper:
            _write_tensors(partial / POLICY_FILE, policy)
            _write_tensors(partial / "optimizer.safetensors", _flatten(optimizer))
            atomic_write_json(partial / STATE_FILE, state)
        atomic_write_json(mine / "rng.json", capture_rng())
        flush_tree(partial if is_keeper else mine)

    def publish() -> None:
        files.write_manifest(partial)
        files.replace_folder(partial, final)
        atomic_write_text(checkpoints / LATEST, final.name + "\n")

    def prune() -> None:
        _prune(checkpoints, keep, newest=progress.optimizer_steps)

    def nothing() -> None:
        return

    # Older ones are removed once every folder has the new one, so that all folders always have one in common.
    for phase, is_keepers in ((prepare, True), (write, False), (publish, True), (prune, True)):
        _together(engine, nothing if is_keepers and not is_keeper else phase, partial, is_keeper=is_keeper)
    return CheckpointInfo(final, progress.optimizer_steps)


def _keeps(is_main: bool, is_keeper: bool | None) -> bool:
    return is_main if is_keeper is None else is_keeper


def find_latest(run_dir: Path) -> Search:
    """Find the newest complete checkpoint of a run. Damaged and incomplete folders are reported and skipped.

    Every file is read once to compare its checksum. Writes nothing: another process may be saving into the folder.
    """
    checkpoints = run_dir / FOLDER
    replaced = files.replaced_folders(checkpoints)
    partial = sorted(set(checkpoints.glob(f"{files.PARTIAL_PREFIX}*")) - replaced.keys())
    leftovers = [
        f"{path}: left behind by a save that did not end; it is ignored and removed with the next save"
        for path in partial
    ]
    present = _by_age([*checkpoints.glob("optimizer_step_*"), *replaced])
    damaged = _missing_latest(checkpoints, {f"optimizer_step_{steps}" for steps, _ in present})
    for steps, path in present:
        problem = files.problem_of(path)
        if problem is None:
            return Search(CheckpointInfo(path, steps), leftovers, damaged)
        damaged.append(f"{path}: {problem}; it is passed over")
    return Search(None, leftovers, damaged)


def complete_checkpoint(run_dir: Path, optimizer_steps: int) -> CheckpointInfo:
    """Return the checkpoint of this clock, after comparing its checksums.

    Raises:
        CheckpointError: it is not complete.
    """
    path = run_dir / FOLDER / f"optimizer_step_{optimizer_steps}"
    problem = files.problem_of(path)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}")
    return CheckpointInfo(path, optimizer_steps)


def _missing_latest(checkpoints: Path, present: Collection[str]) -> list[str]:
    """One line if `latest` names a checkpoint that is not there, or none at all."""
    path = checkpoints / LATEST
    named = path.read_text(errors="replace").strip() if path.is_file() else None
    if named is None or named in present:
        return []
    if _NAME.fullmatch(named) is None:
        return [f"{path}: damaged, it names no checkpoint"]
    return [f"{path}: it names {named}, which is not there"]


def named_by(pointer: Path) -> Path:
    """Return the checkpoint that `checkpoints/latest` or `checkpoints/best` names.

    Raises:
        CheckpointError: it names none, or one that is gone.
    """
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    folder = pointer.with_name(name) if re.fullmatch(r"optimizer_step_\d+", name) else None
    if folder is None or not folder.is_dir():
        raise CheckpointError(f"{pointer}: it names {name[:80]!r}, and there is no such checkpoint beside it")
    return folder


def set_best(run_dir: Path, optimizer_steps: int | None) -> None:
    """Name the best checkpoint of a run, which `save` then keeps; None: no longer any."""
    pointer = run_dir / FOLDER / BEST
    if optimizer_steps is not None:
        atomic_write_text(pointer, f"optimizer_step_{optimizer_steps}\n")
    else:
        pointer.unlink(missing_ok=True)


def load(info: CheckpointInfo, engine: Engine) -> Restored:
    """Restore weights, optimizer, schedule and random number generators. All ranks call it together.

    Raises:
        CheckpointError: another format version, or another architecture than the engine's policy.
    """
    state = check_architecture(info.path, engine.policy)
    progress = Progress(**state["progress"])
    engine.load_trainable_state(load_file(info.path / POLICY_FILE))
    moments = _unflatten(load_file(info.path / "optimizer.safetensors"))
    engine.load_optimizer_state(moments, optimizer_steps=progress.optimizer_steps)
    rng = info.path / f"rank_{engine.collectives.rank}" / "rng.json"
    if rng.exists():  # otherwise the checkpoint was written by fewer ranks, and this one keeps its own state
        restore_rng(json.loads(rng.read_text()))
    return Restored(progress, state["extra"])


def kept_for_the_run(path: Path) -> dict[str, Any]:
    """Return what the caller of `save` stored in a checkpoint, its `extra`.

    Raises:
        CheckpointError: another format version.
    """
    return dict(_read_state(path)["extra"])


def load_policy(path: Path, policy: nn.Module) -> None:
    """Overwrite a policy's trainable tensors with those of a checkpoint folder, for evaluation and export.

    Raises:
        CheckpointError: there is no complete checkpoint, or its architecture differs.
    """
    problem = files.problem_of(path)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}")
    check_architecture(path, policy)
    tensors = load_file(path / POLICY_FILE)
    with torch.no_grad():
        for name, parameter in trainable_parameters(policy).items():
            parameter.copy_(tensors[name])


@contextmanager
def held_policy(path: Path, *, within: Path) -> Iterator[Path]:
    """Keep what `load_policy` and `kept_for_the_run` read of a checkpoint, also if its run removes it meanwhile.

    Args:
        path: the checkpoint.
        within: folder of this process alone, for the time being.

    Yields:
        The folder to read from.

    Raises:
        CheckpointError: the checkpoint is gone already.
    """
    with ExitStack() as stack:
        try:
            place = stack.enter_context(files.held(path, (POLICY_FILE, STATE_FILE), within=within))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path} was removed meanwhile, as its run keeps only the newest checkpoints (checkpoint.keep): "
                f"give the run instead, {path.parents[1]}, and its newest one is taken"
            ) from error
        yield place


def architecture(policy: nn.Module) -> dict[str, list[int]]:
    """Return names and shapes of the trainable tensors, which a checkpoint must match."""
    return {
        # ZeRO-3 leaves an empty tensor and stores the shape beside it.
        name: list(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in trainable_parameters(policy).items()
    }


def _together(engine: Engine, phase: Callable[[], None], partial: Path, *, is_keeper: bool) -> None:
    """Run a phase on all ranks. If it fails on one, clean up and raise on all."""
    failure: OSError | None = None
    try:
        phase()
    except OSError as error:
        failure = error
    except SafetensorError as error:  # safetensors' error for a full disk
        failure = OSError(f"{partial}: {error}")
    if not engine.collectives.any_over_ranks(failure is not None):
        return
    if is_keeper:
        shutil.rmtree(partial, ignore_errors=True)
    engine.collectives.barrier()
    raise failure or OSError(f"{partial}: another rank could not write its part; see that rank's error")


def _prune(checkpoints: Path, keep: int, *, newest: int) -> None:
    """Remove all but the newest `keep`, counted from the one just written, and the one that `best` names.

    Later ones are damaged, because otherwise the run would have resumed from them; counting them would remove complete
    ones.
    """
    written = [path for steps, path in _by_age(checkpoints.glob("optimizer_step_*")) if steps <= newest]
    pointer = checkpoints / BEST
    best = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else None
    for path in written[keep:]:
        if path.name != best:
            files.remove_folder(path)


def _by_age(folders: Iterable[Path]) -> list[tuple[int, Path]]:
    """Return (optimizer steps, folder), newest first; folders with other names are left out."""
    found = [(_NAME.fullmatch(path.name), path) for path in folders]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / STATE_FILE).read_text())
    if state.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path / STATE_FILE}: format_version is {state.get('format_version')!r} and this program reads "
            f"{FORMAT_VERSION}; use the version of vla-rl that wrote it"
        )
    return state


def check_architecture(path: Path, policy: nn.Module) -> dict[str, Any]:
    """Check that a checkpoint's trained tensors are those of a policy, which may be empty; return its state.

    Raises:
        CheckpointError: another format version, or another architecture.
    """
    state = _read_state(path)
    saved, present = state["architecture"], architecture(policy)
    names = [*saved, *(name for name in present if name not in saved)]
    different = [name for name in names if saved.get(name) != present.get(name)]
    if not different:
        return state
    lines = [
        f"{name}: checkpoint {saved.get(name, 'absent')}, policy {present.get(name, 'absent')}"
        for name in different[:3]
    ]
    raise CheckpointError(
        f"{path}: it was made for another architecture; {len(different)} of {len(names)} trainable tensors differ, "
        f"the first: {'; '.join(lines)}. Use the policy section of the recipe that the checkpoint was made with"
    )


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with the default mode of new files; safetensors itself uses 0600."""
    with written_aside(path) as aside:
        save_file(_on_cpu(tensors), aside)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies, because DeepSpeed places parameters in one buffer, and safetensors refuses tensors that share memory.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _flatten(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}/{key}": tensor for name, entry in state.items() for key, tensor in entry.items()}


def _unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for flat_name, tensor in tensors.items():
        name, key = flat_name.rsplit("/", 1)
        state.setdefault(name, {})[key] = tensor
    return state
