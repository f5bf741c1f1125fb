"""Policies with one distribution per token: drawing tokens, and evaluating stored ones.

The only place where logits, bins and the temperature meet.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vla_rl.policies.kind import NonFiniteOutputError
from vla_rl.rl.distributions import Distribution, distribution_of
from vla_rl.rl.masking import all_finite
from vla_rl.rl.random_numbers import RandomSource
from vla_rl.types import Acted, ActionSpec, Evaluation, PolicyInputs


def unrounded(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast rounds nothing; where it is off anyway, one that takes no time."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


class TokenOutput(NamedTuple):
    """Output of the network's pass."""

    logits: Tensor  # (B, A, V) float32, before temperature (of a Gaussian: mean and width)
    values: Tensor  # (B,) float32


class TokenPolicy(nn.Module):
    """Base of policies whose tokens are independent given the observation.

    The distribution of a token follows from `action_spec`: a categorical over its bins, or a Gaussian. A subclass has
    the network, and `bucket_of`, `decode_tokens` and `is_value_parameter` of `vla_rl.types.Policy`.
    """

    action_spec: ActionSpec
    temperature: float = 1.0  # divides the log-density, in acting and evaluating alike

    @abstractmethod
    def network(self, inputs: PolicyInputs) -> TokenOutput:
        """Compute logits and values; see `vla_rl.types.Policy.network`."""

    def token_logits(self, inputs: PolicyInputs) -> Tensor:
        """Return only the logits (B, A, V), before temperature, differentiable."""
        return self.network(inputs).logits

    def forward(
        self,
        inputs: PolicyInputs,
        tokens: Tensor | None = None,
        *,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Evaluation:
        """Value observations and evaluate stored tokens; see `vla_rl.types.Policy.__call__`."""
        output = self.network(inputs)
        values = output.values.float()
        if tokens is None:
            return Evaluation(values)
        with unrounded(values.device):
            terms = self._distribution.terms(
                output.logits.float(), tokens, self.temperature, behavior=behavior, with_entropy=with_entropy
            )
        return Evaluation(values, terms.logprobs, terms.entropy, terms.kl)

    def act(
        self,
        inputs: PolicyInputs,
        *,
        greedy: bool = False,
        generator: RandomSource | None = None,
        with_behavior: bool = False,
        network: Callable[[PolicyInputs], tuple[Tensor, ...]] | None = None,
    ) -> Acted:
        """Decide for a batch; see `vla_rl.types.Policy.act`."""
        logits, values = (network or self.network)(inputs)
        logits = logits.float()
        if not all_finite(logits):
            raise NonFiniteOutputError("the policy's logits are not finite")
        drawn = self._distribution.sample(logits, self.temperature, generator=generator, greedy=greedy)
        return Acted(drawn.taken, drawn.logprobs, values.float(), drawn.parameters if with_behavior else None)

    @property
    def _distribution(self) -> Distribution:
        return distribution_of(self.action_spec.num_bins)
