"""Checks of a loaded network or policy that catch what fails silently: each finding is a sentence for people."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vla_rl.policies.openvla_oft.config import BOS_ID, LONE_SPACE_ID, STOP_ID
from vla_rl.policies.openvla_oft.model import OpenVLAOFT
from vla_rl.policies.openvla_oft.statistics import DatasetStatistics
from vla_rl.policies.openvla_oft.vision import CHANNELS_PER_IMAGE
from vla_rl.types import PolicyInputs

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy

UNTRAINED_ENTROPY = 0.8  # fraction of log 256, see `_action_rows`
NO_EFFECT = 1e-4  # logits that differ by less in every entry count as equal
NO_SHARE = 1e-3  # an effect that is smaller than this beside what it is compared with counts as rounding
_NUM_PATCHES = 8  # that a network is shown: enough to tell, and cheap
_SEED = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """What a test found, in sentences; both are empty where it found nothing."""

    broken: list[str]  # what no sound policy shows
    untrained: str  # action rows that hardly tell bins apart, which a sound policy may


def warn_of_faults(model: OpenVLAOFT, origin: str) -> None:
    """Warn of every fault of a network: whoever loads one may know better, and a training refuses it by itself."""
    for fault in network_faults(model):
        warnings.warn(f"{origin}: {fault}", stacklevel=3)


@torch.no_grad()
def network_faults(model: OpenVLAOFT) -> list[str]:
    """Faults that need neither a prompt nor statistics to be seen; an empty list is a pass. Costs a short pass.

    The network is shown the skeleton of a sequence: BOS, some patches, the lone space, STOP. At the lone space the
    first action component is read out.
    """
    size = model.config.image_size
    levels = torch.tensor([-1.0, 1.0], device=model.language_model.lm_head.weight.device)  # about black and white
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
        return ["the images do not matter: a white picture is answered like a black one. The weights look incomplete"]
    # Anywhere but at the disturbed token itself: one position alone, like the first, may hardly look at others.
    if _size(hidden[0, :-1] - hidden[2, :-1]) <= NO_SHARE * _size(hidden[0, -1] - hidden[2, -1]):
        return [
            "attention is causal: a change of the last token reaches none before it. OpenVLA-OFT needs bidirectional "
            "attention, and its actions are wrong without it; use a tested version of transformers"
        ]
    return []


def _not_finite(outputs: Tensor, name: str, module: nn.Module) -> str:
    """Whether outputs cannot be compared with anything, and where that begins."""
    if bool(torch.isfinite(outputs).all()):
        return ""
    damaged = next((each for each, weight in module.named_parameters() if not bool(torch.isfinite(weight).all())), None)
    if damaged is None:
        return f"its {name} are not finite although every weight is: they overflow on the way. Use another dtype"
    return f"its {name} are not finite, nor is the weight {damaged}. Take an undamaged checkpoint"


def _size(values: Tensor) -> float:
    return float(values.abs().max())


@torch.no_grad()
def self_test(policy: OpenVLAOFTPolicy) -> Findings:
    """Look for faults of a policy with its weights in place. Costs a few forward passes."""
    broken = [*_statistics(policy.statistics), *network_faults(policy.model)]
    if broken:
        return Findings(broken, "")
    output = policy(_shown(policy))
    logits = output.logits
    fault = _not_finite(logits, "logits", policy) or _not_finite(output.values, "values", policy) or _images(logits)
    if fault:
        return Findings([fault], "")
    return Findings([], "" if policy.is_regression else _action_rows(logits))


def _shown(policy: OpenVLAOFTPolicy) -> PolicyInputs:
    """Noise for pictures, a row of it for every camera and one to compare with."""
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
    """Whether actions can be scaled by them.

    One component that never moved in the data has q01 = q99, and is scaled to that number by the original code too
    (times 1e-8, the range being 0). Where no component moves there is nothing to control.
    """
    quantiles = statistics.action
    usable = bool(np.isfinite(quantiles.q01).all() and np.isfinite(quantiles.q99).all())
    if usable and not (quantiles.q99 < quantiles.q01).any() and (quantiles.q99 > quantiles.q01)[quantiles.mask].any():
        return []
    return [
        f"the statistics {statistics.key!r} scale every action to nothing, or to no number: q01 "
        f"{quantiles.q01.tolist()}, q99 {quantiles.q99.tolist()}. Take dataset_statistics.json from where the "
        "checkpoint was trained"
    ]


def _images(logits: Tensor) -> str:
    """Whether another picture gives another answer, camera by camera."""
    effects = (logits[1:] - logits[0]).abs().amax(dim=(1, 2)).tolist()
    blind = [str(camera) for camera, effect in enumerate(effects) if effect < NO_EFFECT]
    if blind:
        return f"the images do not matter: another picture of camera {' and '.join(blind)} gives the same answer"
    return ""


def _action_rows(logits: Tensor) -> str:
    """Whether the bins are told apart.

    Logits that scatter over the bins with deviation s have an entropy of about log 256 - s²/2, so the threshold lies
    at s = 1.5. Random rows give s near 1 and a fraction of 0.9, because hiddens leave the network normalised. The
    cross-entropy of demonstrations pulls the target some nats above the rest: with nine tenths of the probability on
    one bin and the rest spread evenly over the others, the fraction is 0.16. But noise is no demonstration, no
    published checkpoint was measured, and rows that fine-tuning left alone need not look random. So it is a hint.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    fraction = float(-(logprobs.exp() * logprobs).sum(dim=-1).mean()) / math.log(logits.shape[-1])
    if fraction > UNTRAINED_ENTROPY:
        return (
            f"the action rows of lm_head look untrained: the entropy over the {logits.shape[-1]} bins is "
            f"{fraction:.0%} of a uniform choice (expected of random weights and of checkpoints with an L1 head)"
        )
    return ""
