"""`export`: from a checkpoint of a run to a folder that other programs load, compared with the policy it came from."""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from vla_rl.errors import preflight
from vla_rl.evaluation.subject import TINY, Subject, find_subject
from vla_rl.learner.checkpoint import load_policy
from vla_rl.policies.action_tokens import FIRST_ACTION_ID
from vla_rl.policies.build import build_openvla_oft
from vla_rl.policies.openvla_oft.checkpoint import DTYPES
from vla_rl.policies.openvla_oft.config import BOS_ID
from vla_rl.policies.openvla_oft.export import write_adapter, write_checkpoint, write_network
from vla_rl.policies.openvla_oft.export_files import appears_whole
from vla_rl.policies.openvla_oft.model import OpenVLAOFT
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.self_test import network_faults
from vla_rl.policies.openvla_oft.source import Source, find_checkpoint, find_source
from vla_rl.policies.openvla_oft.vision import CHANNELS_PER_IMAGE
from vla_rl.recipe import OpenVLAOFTSection
from vla_rl.replay.store import REPLAY, RING_FILE
from vla_rl.run.plan import plan_policy, resolve_device
from vla_rl.types import PolicyInputs, PolicyOutput

Kind = Literal["merged", "adapter"]
BATCH = 4  # observations of one forward pass
FIRST_WORD, PROMPT_LENGTH = 259, 24  # of random prompts: ids below are special or bytes
_STEP = re.compile(r"optimizer_step_(\d+)")


@dataclass(frozen=True, slots=True)
class Observations:
    """What the policy and its export are shown."""

    frames: NDArray[np.uint8]  # (n, N, H, W, 3)
    state: NDArray[np.float32]  # (n, S)
    task_index: NDArray[np.int64]  # (n,)
    origin: Literal["saved", "random"]  # from the run's replay, or drawn from a seed


@dataclass(frozen=True, slots=True)
class Answers:
    """What a policy, or a network alone, answers to observations."""

    logits: Tensor  # (n, 56, 256) float32
    others: Mapping[str, Tensor]  # by what they are: `values` (n,) of a policy, `L1 actions` (n, 8, 7) of a network


@dataclass(frozen=True, slots=True)
class Verification:
    """How far the export's answers are from those of what was exported."""

    observations: int
    origin: Literal["saved", "random"]
    logits_difference: float  # largest, over 56 x 256 logits of every observation
    logits_deviation: float  # standard deviation of the logits before, to compare with
    same_tokens: float  # share of tokens whose most likely bin is the same
    others_difference: Mapping[str, float]  # largest, of each of the other answers

    def __str__(self) -> str:
        others = "".join(
            f", {name} differ by at most {difference:.2g}" for name, difference in self.others_difference.items()
        )
        return (
            f"verified on {self.observations} {self.origin} observations: logits differ by at most "
            f"{self.logits_difference:.2g} (their deviation is {self.logits_deviation:.2g}), "
            f"{100 * self.same_tokens:.1f} % of the most likely tokens are the same{others}"
        )


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written."""

    folder: Path
    kind: Kind
    checkpoint: str
    profile: str  # of the folder, recorded in it
    faults: Sequence[str]  # what the test of networks found, in sentences
    verification: Verification | None

    def __str__(self) -> str:
        lines = [f"{self.kind} export of {self.checkpoint}", *(f"warning: {fault}" for fault in self.faults)]
        lines += [] if self.verification is None else [str(self.verification)]
        return "\n".join([*lines, f"profile {self.profile}", f"written: {self.folder}"])


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
        target: a run, one of its checkpoints, or anything else that `vla_rl.evaluation.subject.find_subject` knows: a
            checkpoint directory, also one with an L1 head, is copied; an adapter alone is merged into its base.
        out: must not exist.
        kind: `merged`, a checkpoint in the public layout; `adapter`, a LoRA adapter in peft's.
        dtype: of the written shards: `float32` or `bfloat16`; default: that of a run's frozen weights, the stored one
            of a checkpoint directory (of an adapter's factors: float32).
        verify: observations on which the answers before and after are compared; 0 for none.
        profile: of a target that is a checkpoint directory.

    Raises:
        UserError: the target, `out` or the choices do not fit; nothing was written.
        OSError: it could not be written; nothing is left behind.
    """
    chosen = None if dtype is None else DTYPES[dtype]
    with preflight(), appears_whole(out) as folder:
        subject = find_subject(str(target), profile=profile)
        if subject.checkpoint is not None:
            return _export_trained(subject, subject.checkpoint, out, folder, kind=kind, dtype=chosen, verify=verify)
        if kind == "adapter":
            raise ValueError(f"{subject.location} was not trained here, so there is no adapter: export it merged")
        return _export_network(subject, out, folder, profile=profile, dtype=chosen, verify=verify)


def _export_trained(
    subject: Subject,
    checkpoint: Path,
    out: Path,
    folder: Path,
    *,
    kind: Kind,
    dtype: torch.dtype | None,
    verify: int,
) -> ExportReport:
    """A policy with what a run has trained of it."""
    build = _builder(subject)
    policy = build()
    load_policy(checkpoint, policy)
    policy.eval()
    resolved, faults = policy.source.profile.name, network_faults(policy.model)
    shown = observations(checkpoint, policy, verify) if verify else None
    before = None if shown is None else _answers(policy, shown)
    (write_checkpoint if kind == "merged" else write_adapter)(policy, folder, step=_step(checkpoint), dtype=dtype)
    del policy  # with 7B weights there is no room for two
    gc.collect()
    verification = None
    if before is not None and shown is not None:
        changes: dict[str, Any] = {"checkpoint": str(folder), "profile": "auto", "image_size": None, "lora": None}
        again = build(**changes, train_action_rows=False).eval()
        verification = _compared(before, _answers(again, shown), shown.origin)
    return ExportReport(out, kind, subject.location, resolved, faults, verification)


def _export_network(
    subject: Subject, out: Path, folder: Path, *, profile: str, dtype: torch.dtype | None, verify: int
) -> ExportReport:
    """A network as its files have it: neither statistics nor prompts matter, so neither is asked for."""
    policy = subject.recipe.policy
    assert isinstance(policy, OpenVLAOFTSection), "what is no run is OpenVLA-OFT"
    device = torch.device(resolve_device(subject.recipe))
    if policy.checkpoint == TINY:
        source = find_source(TINY, profile=profile, image_size=None, proprio=policy.proprio)
    else:
        source = find_checkpoint(Path(policy.checkpoint), profile=profile)
    # float32 that was asked for reaches back to the merging of an adapter: else it would widen what was rounded.
    model = _network(source, device, dtype=torch.float32 if dtype == torch.float32 else source.stored_dtype)
    faults = network_faults(model)
    before = _network_answers(model, verify) if verify else None
    write_network(model, source, folder, dtype=dtype)
    del model
    gc.collect()
    verification = None
    if before is not None:
        written = find_checkpoint(folder, profile="auto")
        again = _network(written, device, dtype=written.stored_dtype)
        verification = _compared(before, _network_answers(again, verify), "random")
    return ExportReport(out, "merged", subject.location, source.profile.name, faults, verification)


def _network(source: Source, device: torch.device, *, dtype: torch.dtype) -> OpenVLAOFT:
    model = source.empty_network(dtype=dtype, l1_head=True)
    source.fill(model, seed=0, device=device)
    return model.eval()


def _step(checkpoint: Path) -> int:
    match = _STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def _builder(subject: Subject) -> partial[OpenVLAOFTPolicy]:
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
    build = cast("partial[OpenVLAOFTPolicy]", plan_policy(recipe)[0].build)
    return partial(build_openvla_oft, *build.args, **build.keywords, device=resolve_device(recipe))


def observations(checkpoint: Path, policy: OpenVLAOFTPolicy, number: int) -> Observations:
    """Observations to compare on: evenly spread over the replay that the checkpoint holds, or random ones.

    Args:
        checkpoint: folder of a training's checkpoint.
        policy: tells the shapes.
        number: how many; fewer if the replay has fewer.
    """
    ring = checkpoint / "rank_0" / REPLAY / RING_FILE
    saved = _saved_observations(ring, number) if ring.is_file() else None
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
def _answers(policy: OpenVLAOFTPolicy, shown: Observations) -> Answers:
    device = policy.prompt_ids.device

    def answer(start: int) -> PolicyOutput:
        rows = slice(start, start + BATCH)
        arrays = (shown.frames[rows], shown.state[rows], shown.task_index[rows])
        return policy(PolicyInputs(*(torch.from_numpy(array).to(device) for array in arrays)))  # type: ignore[no-any-return]

    outputs = [answer(start) for start in range(0, len(shown.frames), BATCH)]
    return _joined([Answers(output.logits, {"values": output.values}) for output in outputs])


@torch.inference_mode()
def _network_answers(model: OpenVLAOFT, number: int) -> Answers:
    """To noise instead of pictures, and random words."""
    device, config = model.language_model.lm_head.weight.device, model.config
    size = (CHANNELS_PER_IMAGE * model.profile.num_images, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(FIRST_WORD, FIRST_ACTION_ID, (number, PROMPT_LENGTH), generator=generator)
    prompts = torch.cat([torch.full((number, 1), BOS_ID), words], dim=1)
    pictures = torch.randn((number, *size), generator=generator)
    state = 2.0 * torch.rand((number, config.proprio_dim), generator=generator) - 1.0

    def answer(row: int) -> Answers:
        fed = None if model.proprio_projector is None else state[row : row + 1].to(device)
        hidden = model.action_hidden(pictures[row : row + 1].to(device), prompts[row : row + 1].to(device), proprio=fed)
        others = {} if model.action_head is None else {"L1 actions": model.l1_actions(hidden).float()}
        return Answers(model.action_logits(hidden), others)

    return _joined([answer(row) for row in range(number)])


def _joined(parts: Sequence[Answers]) -> Answers:
    others = {name: torch.cat([part.others[name].cpu() for part in parts]) for name in parts[0].others}
    return Answers(torch.cat([part.logits.cpu() for part in parts]), others)


def _compared(before: Answers, after: Answers, origin: Literal["saved", "random"]) -> Verification:
    return Verification(
        observations=len(before.logits),
        origin=origin,
        logits_difference=float((before.logits - after.logits).abs().max()),
        logits_deviation=float(before.logits.std()),
        same_tokens=float((before.logits.argmax(-1) == after.logits.argmax(-1)).float().mean()),
        others_difference={
            name: float((answer - after.others[name]).abs().max()) for name, answer in before.others.items()
        },
    )
