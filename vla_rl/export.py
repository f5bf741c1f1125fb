"""`export`: from a checkpoint of a run to a folder that other programs load, compared with the policy it came from."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from vla_rl.errors import preflight
from vla_rl.evaluation.subject import Subject, find_subject
from vla_rl.learner.checkpoint import load_policy
from vla_rl.policies.build import build_openvla_oft
from vla_rl.policies.openvla_oft.checkpoint import DTYPES
from vla_rl.policies.openvla_oft.export import write_adapter, write_checkpoint
from vla_rl.policies.openvla_oft.export_files import appears_whole
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.source import find_source
from vla_rl.policies.openvla_oft.statistics import select_statistics
from vla_rl.recipe import OpenVLAOFTSection, Recipe, build_recipe
from vla_rl.recipe.sections import SUITES
from vla_rl.run.plan import plan_policy, resolve_device
from vla_rl.run.training import REPLAY, RING_FILE
from vla_rl.types import PolicyInputs, PolicyOutput

Kind = Literal["merged", "adapter"]
BATCH = 4  # observations of one forward pass
_STEP = re.compile(r"optimizer_step_(\d+)")


@dataclass(frozen=True, slots=True)
class Observations:
    """What the policy and its export are shown."""

    frames: NDArray[np.uint8]  # (n, N, H, W, 3)
    state: NDArray[np.float32]  # (n, S)
    task_index: NDArray[np.int64]  # (n,)
    origin: Literal["saved", "random"]  # from the run's replay, or drawn from a seed


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the export's answers are from those of the policy."""

    observations: int
    origin: Literal["saved", "random"]
    logits_difference: float  # largest, over 56 x 256 logits of every observation
    logits_deviation: float  # standard deviation of the policy's own logits, to compare with
    same_tokens: float  # share of tokens whose most likely bin is the same
    value_difference: float  # largest

    def __str__(self) -> str:
        return (
            f"verified on {self.observations} {self.origin} observations: logits differ by at most "
            f"{self.logits_difference:.2g} (their deviation is {self.logits_deviation:.2g}), "
            f"{100 * self.same_tokens:.1f} % of the most likely tokens are the same, values differ by at most "
            f"{self.value_difference:.2g}"
        )


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    folder: Path
    kind: Kind
    checkpoint: str
    profile: str  # that the folder is to be loaded with
    verification: Verification | None

    def __str__(self) -> str:
        lines = [f"{self.kind} export of {self.checkpoint}"]
        lines += [] if self.verification is None else [str(self.verification)]
        return "\n".join([*lines, f"load it with profile {self.profile}", f"written: {self.folder}"])


def export(
    target: Path | str,
    *,
    out: Path,
    kind: Kind = "merged",
    dtype: str | None = None,
    verify: int = 8,
    profile: str = "auto",
) -> ExportReport:
    """Export a policy. The folder appears complete and verified, or not at all.

    Args:
        target: see `vla_rl.evaluation.subject.find_subject`.
        out: must not exist.
        kind: `merged`, a checkpoint in the public layout; `adapter`, a LoRA adapter in peft's.
        dtype: of the written weights: `float32` or `bfloat16`; default: that of the policy's frozen weights (of an
            adapter's factors: float32).
        verify: observations on which policy and export are compared; 0 for none.
        profile: of a target that is a checkpoint directory.

    Raises:
        UserError: the target, `out` or the choices do not fit; nothing was written.
        OSError: it could not be written; nothing is left behind.
    """
    with preflight(), appears_whole(out) as folder:
        subject = find_subject(str(target), profile=profile)
        build = _builder(subject, profile=profile)
        policy = build()
        if subject.checkpoint is not None:
            load_policy(subject.checkpoint, policy)
        policy.eval()
        shown = observations(subject.checkpoint, policy, verify) if verify else None
        before = None if shown is None else _answers(policy, shown)
        _write(
            policy, folder, kind=kind, step=_step(subject.checkpoint), dtype=None if dtype is None else DTYPES[dtype]
        )
        resolved = policy.source.profile.name
        del policy  # with 7B weights there is no room for two
        gc.collect()
        verification = None
        if before is not None and shown is not None:
            after = _answers(_reloaded(build, folder, profile=resolved), shown)
            verification = _compared(before, after, shown)
    return ExportReport(out, kind, subject.location, resolved, verification)


def _write(policy: OpenVLAOFTPolicy, folder: Path, *, kind: Kind, step: int, dtype: torch.dtype | None) -> None:
    if kind == "merged":
        write_checkpoint(policy, folder, step=step, dtype=dtype)
    else:
        write_adapter(policy, folder, step=step, dtype=dtype)


def _step(checkpoint: Path | None) -> int:
    match = None if checkpoint is None else _STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def _builder(subject: Subject, *, profile: str) -> partial[OpenVLAOFTPolicy]:
    """Builds the policy that the subject's trained tensors belong to.

    Raises:
        ValueError: it is no OpenVLA-OFT, or its files do not fit.
    """
    recipe = subject.recipe
    if not isinstance(recipe.policy, OpenVLAOFTSection):
        raise ValueError(
            f"{subject.location}: its policy is {recipe.policy.name!r}; only 'openvla_oft' has a layout that other "
            "programs load"
        )
    if subject.checkpoint is None:
        recipe = _with_known_suite(recipe, recipe.policy.checkpoint, profile=profile)
    build = cast("partial[OpenVLAOFTPolicy]", plan_policy(recipe)[0].build)
    return partial(build_openvla_oft, *build.args, **build.keywords, device=resolve_device(recipe))


def _with_known_suite(recipe: Recipe, checkpoint: str, *, profile: str) -> Recipe:
    """A checkpoint without a run has the statistics of some suite; which one does not matter to its weights.

    Raises:
        ValueError: it has those of no LIBERO suite.
    """
    statistics = find_source(checkpoint, profile=profile, image_size=None, proprio=True).statistics
    for suite in SUITES:
        if suite in statistics or f"{suite}_no_noops" in statistics:
            return build_recipe(recipe.dump_yaml(), [f"env.suite={suite}"])
    select_statistics(statistics, next(iter(SUITES)))  # raises, and says what there is
    return recipe


def _reloaded(build: partial[OpenVLAOFTPolicy], folder: Path, *, profile: str) -> OpenVLAOFTPolicy:
    changes: dict[str, Any] = {"checkpoint": str(folder), "profile": profile, "image_size": None, "lora": None}
    return build(**changes, train_action_rows=False).eval()


def observations(checkpoint: Path | None, policy: OpenVLAOFTPolicy, number: int) -> Observations:
    """Observations to compare on: evenly spread over the replay that the checkpoint holds, or random ones.

    Args:
        checkpoint: folder of a training's checkpoint, if the policy comes from one.
        policy: tells the shapes.
        number: how many; fewer if the replay has fewer.
    """
    ring = None if checkpoint is None else checkpoint / "rank_0" / REPLAY / RING_FILE
    saved = _saved_observations(ring, number) if ring is not None and ring.is_file() else None
    if saved is not None:
        return saved
    rng = np.random.default_rng(0)
    spec = policy.observation_spec
    return Observations(
        frames=rng.integers(0, 256, (number, *spec.frames_shape), dtype=np.uint8),
        state=rng.normal(0.0, 0.5, (number, spec.state_dim)).astype(np.float32),
        task_index=np.arange(number, dtype=np.int64) % len(policy.prompt_lengths),
        origin="random",
    )


def _saved_observations(ring: Path, number: int) -> Observations | None:
    """None if no episode was committed before the checkpoint."""
    with safe_open(ring, framework="numpy") as file:
        rows_of_episodes = file.get_tensor("length") + 1
        task_of_row = np.repeat(file.get_tensor("task_index"), rows_of_episodes)
        if not len(task_of_row):
            return None
        chosen = np.unique(np.linspace(0, len(task_of_row) - 1, number).astype(np.int64))
        frames, state = file.get_slice("frames"), file.get_slice("state")
        return Observations(
            frames=np.array([frames[row] for row in chosen.tolist()]),
            state=np.array([state[row] for row in chosen.tolist()]),
            task_index=task_of_row[chosen],
            origin="saved",
        )


@torch.inference_mode()
def _answers(policy: OpenVLAOFTPolicy, shown: Observations) -> PolicyOutput:
    device = policy.prompt_ids.device

    def answer(start: int) -> PolicyOutput:
        rows = slice(start, start + BATCH)
        arrays = (shown.frames[rows], shown.state[rows], shown.task_index[rows])
        output = policy(PolicyInputs(*(torch.from_numpy(array).to(device) for array in arrays)))
        return PolicyOutput(output.logits.cpu(), output.values.cpu())

    outputs = [answer(start) for start in range(0, len(shown.frames), BATCH)]
    return PolicyOutput(torch.cat([each.logits for each in outputs]), torch.cat([each.values for each in outputs]))


def _compared(before: PolicyOutput, after: PolicyOutput, shown: Observations) -> Verification:
    return Verification(
        observations=len(shown.frames),
        origin=shown.origin,
        logits_difference=float((before.logits - after.logits).abs().max()),
        logits_deviation=float(before.logits.std()),
        same_tokens=float((before.logits.argmax(-1) == after.logits.argmax(-1)).float().mean()),
        value_difference=float((before.values - after.values).abs().max()),
    )
