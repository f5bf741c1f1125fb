"""The network with random weights, and batches for it: what the phases `model` and `graphs` share."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_check_parts.measuring import device, on_gpu
from gpu_check_parts.record import Setting
from gpu_check_parts.tasks import TASKS
from vla_rl.policies.devices import use_device
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.flops import DecisionFlops, decision_flops
from vla_rl.policies.openvla_oft.plan import num_tokens
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.types import PolicyInputs

DTYPE = torch.bfloat16 if on_gpu() else torch.float32


def build(setting: Setting) -> OpenVLAOFTPolicy:
    """The policy of the recipe `libero_spatial_gipo`, with random weights."""
    use_device(device())
    section = OpenVLAOFTSection(
        name="openvla_oft",
        checkpoint=setting.checkpoint,
        profile="simplevla",
        image_size=setting.image_size,
        proprio=False,
        train_proprio_projector=False,
        dtype="bfloat16" if torch.bfloat16 == DTYPE else "float32",
    )
    context = PolicyContext(seed=0, suite="libero_spatial", tasks=TASKS, num_images=1)
    return build_openvla_oft(section, context, device=str(device()))


def batch_of(
    policy: OpenVLAOFTPolicy, rows: int, *, tasks: tuple[int, ...] = (0,), mixed: bool = False
) -> PolicyInputs:
    """Rows of random frames; the first ones are the same whatever the number of rows.

    Args:
        policy: whose shapes they have.
        rows: at most 64.
        tasks: of the rows, in turn. The first rows of a larger batch have to be of the same tasks to be compared.
        mixed: as the inference worker sees it: any prompt may occur, so attention gets a mask.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (64, *policy.observation_spec.frames_shape)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)[:rows]
    index = torch.tensor([tasks[row % len(tasks)] for row in range(rows)])
    buckets = tuple(sorted({int(bucket) for bucket in policy.bucket_of(index.numpy())}))
    state = torch.zeros(rows, policy.observation_spec.state_dim, device=device())
    return PolicyInputs(frames.to(device()), state, index.to(device()), buckets=None if mixed else buckets)


def forward(policy: OpenVLAOFTPolicy, inputs: PolicyInputs) -> TokenOutput:
    """One pass under the autocast that learner and inference worker have around theirs."""
    with torch.autocast(device().type, dtype=torch.bfloat16, enabled=on_gpu()):
        return policy.network(inputs)


def log_probabilities(output: TokenOutput, rows: int) -> Tensor:
    """(rows, A, V) of the first rows."""
    return torch.log_softmax(output.logits[:rows].float(), dim=-1)


def difference(one: Tensor, other: Tensor, tokens: Tensor) -> dict[str, float]:
    """|log ratio| of tokens (R, A) under two sets of log-probabilities (R, A, V): per token, and of whole decisions."""
    gap = (one - other).gather(-1, tokens[..., None]).squeeze(-1).double()
    each, joint = gap.abs().flatten(), gap.sum(dim=-1).abs()
    return {
        "token_mean": float(each.mean()),
        "token_p95": float(each.quantile(0.95)),
        "token_max": float(each.max()),
        "joint_mean": float(joint.mean()),
        "joint_max": float(joint.max()),
    }


def flops_of(policy: OpenVLAOFTPolicy) -> DecisionFlops:
    """FLOPs of one decision with the first task's prompt."""
    return decision_flops(
        policy.model.config,
        num_tokens=num_tokens(policy, int(policy.prompt_lengths[0])),
        num_images=policy.observation_spec.num_images,
    )


def matrix_tflops(*, real: bool) -> float:
    """Rate of a large bfloat16 product (float32 on a CPU), which utilisation is measured against."""
    from gpu_check_parts.measuring import seconds_of

    n = 8192 if real else 512
    left, right = (torch.randn(n, n, device=device(), dtype=DTYPE) for _ in range(2))
    return 2e-12 * n**3 / seconds_of(lambda: left @ right)
