"""Density of policies that decide token by token: drawing tokens, and evaluating stored ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from vla_rl.rl.distributions import Distribution, distribution_of
from vla_rl.types import Acted, ActionSpec, Evaluation, Policy, PolicyInputs, PolicyOutput


class NonFiniteOutputError(ValueError):
    """A policy's output is not finite, so nothing can be drawn from it."""


class TokenDensity:
    """Base of policies with one distribution per token, which follows from `action_spec`, at a temperature."""

    action_spec: ActionSpec
    temperature: float = 1.0  # divides the log-density, in acting and evaluating alike

    def act(
        self,
        inputs: PolicyInputs,
        *,
        greedy: bool = False,
        generator: torch.Generator | None = None,
        with_behavior: bool = False,
        network: Callable[[PolicyInputs], PolicyOutput] | None = None,
    ) -> Acted:
        """Decide for a batch; see `vla_rl.types.Policy.act`."""
        output = (network or cast(Policy, self))(inputs)
        logits = output.logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteOutputError("the policy's logits are not finite")
        tokens, logprobs = self._distribution.sample(logits, self.temperature, generator=generator, greedy=greedy)
        behavior = self._distribution.parameters(logits, self.temperature) if with_behavior else None
        return Acted(tokens, logprobs, output.values.float(), behavior)

    def evaluate(
        self, output: PolicyOutput, tokens: Tensor, *, behavior: Tensor | None = None, with_entropy: bool = False
    ) -> Evaluation:
        """Evaluate stored tokens; see `vla_rl.types.Policy.evaluate`."""
        terms = self._distribution.terms(
            output.logits, tokens, self.temperature, behavior=behavior, with_entropy=with_entropy
        )
        return Evaluation(terms.logprobs, output.values, terms.entropy, terms.kl)

    @property
    def _distribution(self) -> Distribution:
        return distribution_of(self.action_spec.num_bins)
