"""Checks of a loaded policy that catch what fails silently: each finding is a sentence for people."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vla_rl.policies.openvla_oft.pixels import normalize_pixels
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.types import PolicyInputs

UNTRAINED_ENTROPY = 0.8  # fraction of log 256; random rows lie near 0.9, trained checkpoints far below
NO_EFFECT = 1e-4  # logits that differ by less in every entry count as equal
_SEED = 0


@torch.no_grad()
def self_test(policy: OpenVLAOFTPolicy) -> list[str]:
    """Problems of a policy with its weights in place; an empty list is a pass. Costs four forward passes."""
    device = policy.prompt_ids.device
    generator = torch.Generator().manual_seed(_SEED)
    shape = (2, *policy.observation_spec.frames_shape)
    inputs = PolicyInputs(
        frames=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device),
        state=torch.zeros(2, policy.observation_spec.state_dim, device=device),
        task_index=torch.zeros(2, dtype=torch.int64, device=device),
    )
    logits = policy(inputs).logits
    findings = [_attention(policy, inputs), _images(logits), _action_rows(logits)]
    return [finding for finding in findings if finding]


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
    """Whether two different pictures give two different answers."""
    if (logits[0] - logits[1]).abs().max() < NO_EFFECT:
        return "the images do not matter: two different pictures give the same logits. The weights look incomplete"
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
