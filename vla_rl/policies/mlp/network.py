"""Actor-critic over state observations, with action tokens like the VLA's, or with Gaussian actions.

The layers follow the state policy used for GIPO on Meta-World (arXiv 2603.03955): a shared trunk, a policy head with
its own hidden layer, and a value head on the trunk's detached features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_rl.policies.mlp.block import Block
from vla_rl.policies.mlp.linear import Linear
from vla_rl.policies.parameters import META, fill_linear_and_norms, set_parameter
from vla_rl.policies.token_policy import TokenOutput, TokenPolicy
from vla_rl.policies.value_heads import NoCritic
from vla_rl.rl.distributions import width_of
from vla_rl.types import ActionSpec, FloatArray, ObservationSpec, PolicyInputs, TokenArray

if TYPE_CHECKING:
    from vla_rl.policies.kind import PolicyContext
    from vla_rl.policies.mlp.section import MLPSection


class MLPPolicy(TokenPolicy):
    """Multi-layer perceptron that satisfies `vla_rl.types.Policy`.

    Bin b of a component means the action -1 + 2 b / (V - 1). Without bins a component is drawn from a Gaussian, and
    decoding clips it to [-1, 1]. Its mean depends on the state and may be bounded; its deviation depends on the state
    too, or is a parameter.
    """

    def __init__(
        self,
        *,
        state_dim: int,
        action_spec: ActionSpec,
        hidden_dim: int,
        has_critic: bool = True,
        state_dependent_std: bool = True,
        has_bounded_mean: bool = False,
    ) -> None:
        super().__init__()
        self._has_bounded_mean = has_bounded_mean
        self.observation_spec = ObservationSpec(num_images=0, image_size=0, state_dim=state_dim)
        self.action_spec = action_spec
        num_tokens = action_spec.num_tokens
        self.width = None if state_dependent_std else nn.Parameter(torch.zeros(num_tokens))
        num_outputs = num_tokens * (action_spec.num_behavior if state_dependent_std else 1)
        self.trunk = Block(state_dim, hidden_dim)
        self.policy_head = nn.Sequential(Block(hidden_dim, hidden_dim), Linear(hidden_dim, num_outputs))
        critic = nn.Sequential(Block(hidden_dim, hidden_dim // 2), Linear(hidden_dim // 2, 1))
        self.value_head = critic if has_critic else NoCritic()

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        """Return logits (B, A, V) and values (B,), NaN without a critic; frames and task_index are ignored."""
        features: Tensor = self.trunk(inputs.state.float())
        logits: Tensor = self.policy_head(features)
        values: Tensor = self.value_head(features.detach())
        if self.width is None:
            logits = logits.reshape(-1, self.action_spec.num_tokens, self.action_spec.num_behavior)
        if self._has_bounded_mean or self.width is not None:
            mean, width = (logits, self.width.to(logits.dtype)) if self.width is not None else logits.unbind(dim=-1)
            logits = torch.stack([mean.tanh() if self._has_bounded_mean else mean, width.expand_as(mean)], dim=-1)
        return TokenOutput(logits=logits.float(), values=values.reshape(-1).float())

    def fill(
        self, *, seed: int, device: torch.device, output_scale: float = 1.0, initial_std: float | None = None
    ) -> None:
        """Give all parameters their values before training; see `vla_rl.policies.parameters.fill_linear_and_norms`.

        Args:
            seed: the run's seed.
            device: device of the parameters.
            output_scale: factor on the weights of the policy's last layer.
            initial_std: deviation of a Gaussian; where it depends on the state, its middle. None: that of width 0.
        """
        for name, part in self.named_children():
            fill_linear_and_norms(part, seed=seed, device=device, prefix=f"{name}.")
        weight, bias = (self.policy_head.get_parameter(f"1.{name}") for name in ("weight", "bias"))
        width = 0.0 if initial_std is None else width_of(initial_std)
        with torch.no_grad():
            weight.mul_(output_scale)
            bias.mul_(output_scale)
            if self.width is None and self.action_spec.num_bins is None:
                bias[1::2] += width
        if self.width is not None:
            set_parameter(self, "width", torch.full(self.width.shape, width, device=device))

    def bucket_of(self, task_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return zeros: nothing is padded, so there is one bucket."""
        return np.zeros_like(task_index)

    def decode_tokens(self, tokens: TokenArray, task_index: NDArray[np.int64]) -> FloatArray:  # noqa: ARG002
        """Decode (B, A) tokens to (B, K, D) actions in [-1, 1]; every task has the same scale."""
        spec = self.action_spec
        values = tokens.astype(np.float64)
        if spec.num_bins is not None:
            values = -1.0 + 2.0 * values / (spec.num_bins - 1)
        return values.clip(-1.0, 1.0).reshape(-1, spec.chunk_size, spec.action_dim).astype(np.float32)

    def is_value_parameter(self, name: str) -> bool:
        """Return whether a parameter belongs to the critic's head."""
        return name.startswith("value_head.")


def build_mlp(section: MLPSection, context: PolicyContext, *, device: str, empty: bool = False) -> MLPPolicy:
    """Build the policy, initialised from the context's seed; with `empty` its parameters stay on the meta device."""
    states = context.states
    assert states is not None, "the recipe's rules pair this policy with environments of states"
    num_bins = section.num_bins if section.distribution == "categorical" else None
    with META:
        policy = MLPPolicy(
            state_dim=states.state_dim,
            action_spec=ActionSpec(states.chunk_size, states.action_dim, num_bins),
            hidden_dim=section.hidden_dim,
            has_critic=section.has_critic,
            state_dependent_std=num_bins is not None or section.state_dependent_std,
            has_bounded_mean=num_bins is None and section.mean == "tanh",
        )
    policy.temperature = context.temperature
    if not empty:
        policy.fill(
            seed=context.seed,
            device=torch.device(device),
            output_scale=section.output_scale,
            initial_std=section.initial_std,
        )
    return policy
