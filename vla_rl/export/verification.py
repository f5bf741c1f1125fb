"""Comparison of a policy with its export: observations, outputs, and allowed differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from vla_rl.errors import RunFailureError
from vla_rl.export.layers import LayerComparison
from vla_rl.policies.action_tokens import FIRST_ACTION_ID
from vla_rl.policies.openvla_oft.config import BOS_ID
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.vision import CHANNELS_PER_IMAGE
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.replay.ring_file import REPLAY, RING_FILE
from vla_rl.types import PolicyInputs

BATCH = 4  # observations per forward pass
FIRST_WORD, PROMPT_LENGTH = 259, 24  # for random prompts: ids below are special or bytes

# Allowed differences: of logits in root mean square, as a share of their standard deviation; of other outputs at most,
# as a share of the largest (of 1 if that is less). Measured on the tiny model with adapters that move its logits by 1.4
# deviations: 3e-6 in float32, 0.03 to 0.05 in bfloat16, and 1.1 with adapters merged at half their scale.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@dataclass(frozen=True, slots=True)
class Observations:
    """Observations for the policy and its export."""

    frames: NDArray[np.uint8]  # (n, N, H, W, 3)
    state: NDArray[np.float32]  # (n, S)
    task_index: NDArray[np.int64]  # (n,)
    origin: Literal["saved", "random"]  # from the run's replay, or drawn from a seed


@dataclass(frozen=True, slots=True)
class Answers:
    """Outputs of a policy, or of a network alone, for observations."""

    logits: Tensor  # (n, 56, 256) float32
    others: Mapping[str, Tensor]  # by name: `values` (n,) of a policy, `L1 actions` (n, 8, 7) of a network

    @property
    def are_finite(self) -> bool:
        """Return whether all outputs are finite."""
        return all(bool(answer.isfinite().all()) for answer in (self.logits, *self.others.values()))


@dataclass(frozen=True, slots=True)
class Verification:
    """Difference between the outputs of the export and of its original."""

    observations: int
    origin: Literal["saved", "random"]
    logits_difference: float  # largest, over the 56 x 256 logits of every observation
    logits_deviation: float  # standard deviation of the original's logits, for comparison
    logits_error: float  # root mean square of the differences, as a share of that deviation
    tolerance: float  # of this share, and of the other outputs
    same_tokens: float  # share of tokens whose most likely bin is the same
    others_difference: Mapping[str, float]  # largest, of each of the other outputs
    layers: LayerComparison | None = None  # None if no layer was adapted

    @property
    def differences(self) -> str:
        """Return all differences in words."""
        others = "".join(
            f", {name} differ by at most {difference:.2g}" for name, difference in self.others_difference.items()
        )
        return (
            f"on {self.observations} {self.origin} observations: logits differ by at most "
            f"{self.logits_difference:.2g}, in root mean square by {self.logits_error:.2g} of their deviation "
            f"{self.logits_deviation:.2g} (allowed is {self.tolerance:g}), "
            f"{100 * self.same_tokens:.1f} % of the most likely tokens are the same{others}"
        )

    def __str__(self) -> str:
        layers = "" if self.layers is None else f"; {self.layers}"
        return f"verified {self.differences}{layers}"


def observations(checkpoint: Path, policy: OpenVLAOFTPolicy, number: int) -> Observations:
    """Return observations to compare on: evenly spread over the replay in the checkpoint, or random ones.

    Args:
        checkpoint: folder of a training's checkpoint.
        policy: gives the shapes.
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
    """Return observations of the replay; None if no episode was committed before the checkpoint."""
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
def policy_answers(policy: OpenVLAOFTPolicy, shown: Observations) -> Answers:
    """Return logits, and values if there is a critic, of every observation, on the CPU."""
    device = policy.prompt_ids.device

    def answer(start: int) -> TokenOutput:
        rows = slice(start, start + BATCH)
        arrays = (shown.frames[rows], shown.state[rows], shown.task_index[rows])
        return policy.network(PolicyInputs(*(torch.from_numpy(array).to(device) for array in arrays)))

    outputs = [answer(start) for start in range(0, len(shown.frames), BATCH)]
    has_critic = policy.section.has_critic
    return _joined([Answers(output.logits, {"values": output.values} if has_critic else {}) for output in outputs])


@torch.inference_mode()
def network_answers(model: OFTNetwork, number: int) -> Answers:
    """Return a network's outputs for noise images and random words."""
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


def refuse_infinite(before: Answers | None, location: str) -> None:
    """Raise ValueError if a policy's outputs are not finite, because nothing can be compared with them."""
    if before is not None and not before.are_finite:
        raise ValueError(
            f"{location}: answers with numbers that are not finite, so its weights hold NaN or infinity or overflow; "
            "export an earlier checkpoint, or this one as it is with --verify 0"
        )


def compare(before: Answers, after: Answers, *, origin: Literal["saved", "random"], dtype: torch.dtype) -> Verification:
    """Compare the outputs of the original with those of its export.

    Args:
        before: outputs of the original, all finite.
        after: outputs for the same observations.
        origin: source of the observations.
        dtype: the coarser one of the exported and the written weights.

    Raises:
        RunFailureError: the outputs differ by more than rounding to `dtype` explains.
    """
    difference, deviation = before.logits - after.logits, float(before.logits.std())
    verification = Verification(
        observations=len(before.logits),
        origin=origin,
        logits_difference=float(difference.abs().max()),
        logits_deviation=deviation,
        logits_error=float(difference.square().mean().sqrt()) / max(deviation, torch.finfo(torch.float32).tiny),
        tolerance=TOLERANCES[dtype],
        same_tokens=float((before.logits.argmax(-1) == after.logits.argmax(-1)).float().mean()),
        others_difference={
            name: float((answer - after.others[name]).abs().max()) for name, answer in before.others.items()
        },
    )
    allowed = {name: verification.tolerance * max(1.0, float(each.abs().max())) for name, each in before.others.items()}
    # Negated, so that NaN fails too.
    passed = verification.logits_error <= verification.tolerance and all(
        verification.others_difference[name] <= limit for name, limit in allowed.items()
    )
    if not passed:
        raise RunFailureError(
            f"the export's outputs differ from the original's, so it was removed: "
            f"{verification.differences}. Export once more; if it fails again, the program is at fault"
        )
    return verification
