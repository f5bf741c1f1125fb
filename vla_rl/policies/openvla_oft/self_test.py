"""Checks of a loaded network or policy for silent faults: each finding is a sentence for people."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vla_rl.policies.openvla_oft.config import BOS_ID, LONE_SPACE_ID, STOP_ID
from vla_rl.policies.openvla_oft.dataset_statistics import DatasetStatistics
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.vision import CHANNELS_PER_IMAGE
from vla_rl.policies.value_heads import NoCritic
from vla_rl.types import PolicyInputs

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy

UNTRAINED_ENTROPY = 0.8  # fraction of log 256, see `_action_rows`
NO_EFFECT = 1e-4  # logits that differ by less in every entry count as equal
NO_SHARE = 1e-3  # a relative effect smaller than this counts as rounding
_NUM_PATCHES = 8  # patches shown to a network: sufficient, and cheap
_SEED = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings of a test, in sentences; both are empty if it found nothing."""

    broken: list[str]  # faults that no sound policy has
    untrained: str  # action rows that hardly distinguish bins, which may also happen in a sound policy


def warn_of_faults(model: OFTNetwork, origin: str) -> None:
    """Warn of every fault of a network, but load it: the caller may know better, and training refuses it anyway."""
    for fault in network_faults(model):
        warnings.warn(f"{origin}: {fault}", stacklevel=3)


@torch.no_grad()
def network_faults(model: OFTNetwork) -> list[str]:
    """Return faults that show without a prompt or statistics; an empty list is a pass. Costs a short pass.

    The network is shown the skeleton of a sequence: BOS, some patches, the lone space, STOP. At the lone space the
    first action component is read out.
    """
    size = model.config.image_size
    levels = torch.tensor([-1.0, 1.0], device=model.language_model.lm_head.weight.device)  # roughly black and white
    pictures = levels[:, None, None, None].expand(-1, CHANNELS_PER_IMAGE, size, size)
    patches = model.projector(model.vision_features(pictures))[:, :_NUM_PATCHES]
    ids = torch.tensor([[BOS_ID, LONE_SPACE_ID, STOP_ID]], device=levels.device)
    text = model.language_model.model.embed_tokens(ids).expand(2, -1, -1)
    black, white = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
    disturbed = torch.cat([black[:-1], torch.zeros_like(black[-1:])])
    hidden = model.language_model(torch.stack([black, white, disturbed]), None).float()
    if fault := _not_finite(hidden, "hiddens", model):
        return [fault]
    if _size(hidden[0, -2] - hidden[1, -2]) <= NO_SHARE * _size(hidden[0, -2]):
        return ["the images do not matter: white and black images give the same output. The weights look incomplete"]
    # Compare all positions but the disturbed token itself: a single one, like the first, may hardly attend to others.
    if _size(hidden[0, :-1] - hidden[2, :-1]) <= NO_SHARE * _size(hidden[0, -1] - hidden[2, -1]):
        return [
            "attention is causal: a change of the last token reaches none before it. OpenVLA-OFT needs bidirectional "
            "attention, and its actions are wrong without it; use a tested version of transformers"
        ]
    return []


def _not_finite(outputs: Tensor, name: str, module: nn.Module) -> str:
    """Describe outputs that are not finite and where that begins; empty if all are finite."""
    if bool(torch.isfinite(outputs).all()):
        return ""
    damaged = next((each for each, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())), None)
    if damaged is None:
        return f"its {name} are not finite although every weight is: they overflow in between. Use another dtype"
    return f"its {name} are not finite, nor is the weight {damaged}. Take an undamaged checkpoint"


def _size(values: Tensor) -> float:
    return float(values.abs().max())


def check_policy(policy: OpenVLAOFTPolicy, *, way_on: str) -> None:
    """Refuse a policy from a checkpoint that has silent faults; random weights pass.

    Untrained-looking action rows only cause a warning, because a sound checkpoint may have them.

    Args:
        policy: policy with its weights loaded.
        way_on: what to add to the command to skip the test.

    Raises:
        ValueError: one sentence per fault.
    """
    if policy.source.files is None:
        return
    findings = self_test(policy)
    if findings.untrained:
        warnings.warn(f"{policy.source.origin}: {findings.untrained}", stacklevel=3)
    if findings.broken:
        raise ValueError(
            f"{policy.source.origin} does not pass the test of checkpoints:"
            + "".join(f"\n  {fault}" for fault in findings.broken)
            + f"\n{way_on} starts anyway"
        )


@torch.no_grad()
def self_test(policy: OpenVLAOFTPolicy) -> Findings:
    """Look for faults of a policy with its weights in place. Costs a few forward passes."""
    broken = [*_statistics(policy.statistics), *network_faults(policy.model)]
    if broken:
        return Findings(broken, "")
    output = policy.network(_shown(policy))
    logits = output.logits
    values = output.values[:0] if isinstance(policy.value_head, NoCritic) else output.values
    fault = _not_finite(logits, "logits", policy) or _not_finite(values, "values", policy) or _images(logits)
    if fault:
        return Findings([fault], "")
    return Findings([], "" if policy.is_regression else _action_rows(logits))


def _shown(policy: OpenVLAOFTPolicy) -> PolicyInputs:
    """Return noise as images, a row for every camera and one to compare with."""
    device = policy.prompt_ids.device
    generator = torch.Generator().manual_seed(_SEED)
    spec = policy.observation_spec
    num_rows = 1 + spec.num_images  # row i + 1 differs from row 0 in camera i
    pictures = torch.randint(0, 256, (2, *spec.frames_shape), generator=generator, dtype=torch.uint8)
    frames = pictures[:1].repeat(num_rows, 1, 1, 1, 1)
    for camera in range(spec.num_images):
        frames[camera + 1, camera] = pictures[1, camera]
    return PolicyInputs(
        frames=frames.to(device),
        state=torch.zeros(num_rows, spec.state_dim, device=device),
        task_index=torch.zeros(num_rows, dtype=torch.int64, device=device),
    )


def _statistics(statistics: DatasetStatistics) -> list[str]:
    """Check that actions can be scaled by the statistics.

    A component that never moved in the data has q01 = q99; the original code also scales it to that number (plus 1e-8
    of the range, which is 0). If no component moves, there is nothing to control.
    """
    quantiles = statistics.action
    usable = bool(np.isfinite(quantiles.q01).all() and np.isfinite(quantiles.q99).all())
    if usable and not (quantiles.q99 < quantiles.q01).any() and (quantiles.q99 > quantiles.q01)[quantiles.mask].any():
        return []
    return [
        f"the statistics {statistics.key!r} scale every action to 0 or to a non-finite number: q01 "
        f"{quantiles.q01.tolist()}, q99 {quantiles.q99.tolist()}. Take dataset_statistics.json from where the "
        "checkpoint was trained"
    ]


def _images(logits: Tensor) -> str:
    """Check, camera by camera, that another image changes the output."""
    effects = (logits[1:] - logits[0]).abs().amax(dim=(1, 2)).tolist()
    blind = [str(camera) for camera, effect in enumerate(effects) if effect < NO_EFFECT]
    if blind:
        return f"the images do not matter: another image of camera {' and '.join(blind)} gives the same output"
    return ""


def _action_rows(logits: Tensor) -> str:
    """Check that the action rows distinguish the bins.

    Logits that scatter over the bins with deviation s have an entropy of about log 256 - s²/2, so the threshold lies
    at s = 1.5. Random rows give s near 1 and a fraction of 0.9, because hiddens leave the network normalised. The
    cross-entropy of demonstrations pulls the target some nats above the rest: with nine tenths of the probability on
    one bin and the rest spread evenly over the others, the fraction is 0.16. But noise is not a demonstration, no
    published checkpoint was measured, and rows that fine-tuning did not change need not look random. So this is only a
    hint.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    fraction = float(-(logprobs.exp() * logprobs).sum(dim=-1).mean()) / math.log(logits.shape[-1])
    if fraction > UNTRAINED_ENTROPY:
        return (
            f"the action rows of lm_head look untrained: the entropy over the {logits.shape[-1]} bins is "
            f"{fraction:.0%} of a uniform choice (expected of random weights and of checkpoints with an L1 head)"
        )
    return ""
