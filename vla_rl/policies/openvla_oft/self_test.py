"""Checks of a loaded policy that catch what fails silently: each finding is a sentence for people."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vla_rl.policies.openvla_oft.pixels import normalize_pixels
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.statistics import DatasetStatistics
from vla_rl.types import PolicyInputs

UNTRAINED_ENTROPY = 0.8  # fraction of log 256; random rows lie near 0.9, trained checkpoints far below
NO_EFFECT = 1e-4  # logits that differ by less in every entry count as equal
_SEED = 0


@torch.no_grad()
def self_test(policy: OpenVLAOFTPolicy, *, expect_trained: bool = True) -> list[str]:
    """Problems of a policy with its weights in place; an empty list is a pass. Costs a few forward passes.

    Args:
        policy: any.
        expect_trained: count action rows that look untrained as a problem.
    """
    device = policy.prompt_ids.device
    generator = torch.Generator().manual_seed(_SEED)
    spec = policy.observation_spec
    num_rows = 1 + spec.num_images  # row i + 1 differs from row 0 in camera i
    pictures = torch.randint(0, 256, (2, *spec.frames_shape), generator=generator, dtype=torch.uint8)
    frames = pictures[:1].repeat(num_rows, 1, 1, 1, 1)
    for camera in range(spec.num_images):
        frames[camera + 1, camera] = pictures[1, camera]
    inputs = PolicyInputs(
        frames=frames.to(device),
        state=torch.zeros(num_rows, spec.state_dim, device=device),
        task_index=torch.zeros(num_rows, dtype=torch.int64, device=device),
    )
    logits = policy(inputs).logits
    findings = [_statistics(policy.statistics), _attention(policy, inputs), _images(logits)]
    findings += [_action_rows(logits)] if expect_trained else []
    return [finding for finding in findings if finding]


def _statistics(statistics: DatasetStatistics) -> str:
    """Whether actions can be scaled by them."""
    quantiles = statistics.action
    usable = np.isfinite(quantiles.q01).all() and np.isfinite(quantiles.q99).all()
    if not usable or not (quantiles.q99 > quantiles.q01)[quantiles.mask].all():
        return (
            f"the statistics {statistics.key!r} scale an action to nothing: q01 {quantiles.q01.tolist()}, q99 "
            f"{quantiles.q99.tolist()}. Take dataset_statistics.json from the published checkpoint"
        )
    return ""


def _attention(policy: OpenVLAOFTPolicy, inputs: PolicyInputs) -> str:
    """Whether the first position sees the last one."""
    model = policy.model
    prompt = policy.prompt_ids[:1, : int(policy.prompt_lengths[0])]
    pixels = normalize_pixels(inputs.frames[:1], policy.pixel_mean, policy.pixel_std)
    embeddings = model.embed(pixels, prompt, None)
    disturbed = embeddings.clone()
    disturbed[:, -1] += embeddings[:, 0]
    first, first_disturbed = (model.language_model(sequence, None)[:, 0] for sequence in (embeddings, disturbed))
    if torch.equal(first, first_disturbed):
        return (
            "attention is causal: a change of the last token does not reach the first. OpenVLA-OFT needs bidirectional "
            "attention, and its actions are wrong without it; use a tested version of transformers"
        )
    return ""


def _images(logits: Tensor) -> str:
    """Whether another picture gives another answer, camera by camera."""
    effects = (logits[1:] - logits[0]).abs().amax(dim=(1, 2)).tolist()
    blind = [str(camera) for camera, effect in enumerate(effects) if effect < NO_EFFECT]
    if blind:
        return (
            f"the images do not matter: another picture of camera {' and '.join(blind)} gives the same logits. The "
            "weights look incomplete"
        )
    return ""


def _action_rows(logits: Tensor) -> str:
    """Whether the bins are told apart."""
    logprobs = torch.log_softmax(logits, dim=-1)
    fraction = float(-(logprobs.exp() * logprobs).sum(dim=-1).mean()) / math.log(logits.shape[-1])
    if fraction > UNTRAINED_ENTROPY:
        return (
            f"the action rows of lm_head look untrained: the entropy over the {logits.shape[-1]} bins is "
            f"{fraction:.0%} of a uniform choice (expected of the tiny model and of checkpoints with an L1 head)"
        )
    return ""
