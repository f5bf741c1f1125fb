"""What a policy's outputs mean: the distribution of every component of an action.

Both sides use these: the inference worker to draw and to note the log-probability, the learner to compute it again, so
that the two differ only where the weights do. All arithmetic is in float32 at least.

Shapes: `outputs` is (..., A, V), V numbers for each of A components; `taken` and all results are (..., A).

    categorical  V logits of V bins             taken is the bin's index      at temperature T: softmax(logits / T)
    gaussian     V = 2: mean, width             taken is the number drawn     at temperature T: deviation · √T

A temperature divides the logarithm of the density in both, before it is normalised again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vla_rl.rl.masking import lift

MIN_STD, MAX_STD = 0.1, 1.0
"""Bounds of a Gaussian's deviation, of actions in [-1, 1]. A policy that grows narrower without one has log-ratios that
grow without bound on everything it did before, and no surrogate can use such data."""
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss needs of a distribution, per component; differentiable in the outputs."""

    logprobs: Tensor  # (..., A) of what was taken
    entropy: Tensor | None  # (..., A) nats, where it was asked for
    kl: Tensor | None  # (..., A) nats, exact KL(behaviour ‖ policy), where the behaviour was given


class Distribution(Protocol):
    """One family of distributions."""

    def sample(
        self, outputs: Tensor, temperature: float, *, generator: torch.Generator | None = None, greedy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw (..., A), with the log-probabilities (..., A); greedy takes the mode, at the same temperature."""
        ...

    def parameters(self, outputs: Tensor, temperature: float) -> Tensor:
        """(..., A, V) normalised parameters: what is stored of a behaviour for the exact KL."""
        ...

    def terms(
        self,
        outputs: Tensor,
        taken: Tensor,
        temperature: float,
        *,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Terms:
        """Log-probabilities of what was taken, and the other terms that are asked for.

        Args:
            outputs: (..., A, V) of the current policy.
            taken: (..., A).
            temperature: above 0.
            behavior: (..., A, V) `parameters` of the policy that acted, a constant; None for no KL.
            with_entropy: whether the entropy is wanted.
        """
        ...


def distribution_of(num_bins: int | None) -> Distribution:
    """The family of an `ActionSpec`: a categorical over its bins, a Gaussian where it has none."""
    return Gaussian() if num_bins is None else Categorical()


class Categorical:
    """One of V bins per component."""

    def sample(
        self, outputs: Tensor, temperature: float, *, generator: torch.Generator | None = None, greedy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Bins, int64; the mode is the lowest index of equals."""
        log_probs = self.parameters(outputs, temperature)
        if greedy:
            taken = log_probs.argmax(dim=-1)
        else:
            # The inverse of the distribution function, in float64: one random number per component, where
            # `torch.multinomial` draws one per bin and takes most of a small policy's decision for it.
            cumulative = log_probs.double().exp().cumsum(dim=-1)
            levels = torch.rand(
                cumulative[..., :1].shape, generator=generator, dtype=torch.float64, device=cumulative.device
            )
            taken = torch.searchsorted(cumulative, levels * cumulative[..., -1:], right=True).squeeze(-1)
            taken = taken.clamp(max=log_probs.shape[-1] - 1)
        return taken, _gather(log_probs, taken)

    def parameters(self, outputs: Tensor, temperature: float) -> Tensor:
        """Log-probabilities of all bins."""
        return torch.log_softmax(_tempered(outputs, temperature), dim=-1)

    def terms(
        self,
        outputs: Tensor,
        taken: Tensor,
        temperature: float,
        *,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Terms:
        """All terms from one log-softmax, with one gradient for all of them."""
        constant = None if behavior is None else behavior.detach()
        return Terms(*_CategoricalTerms.apply(_tempered(outputs, temperature), taken.long(), constant, with_entropy))


class _CategoricalTerms(torch.autograd.Function):
    """log π(taken), H(π) and KL(μ ‖ π) from logits z, keeping one (..., A, V) tensor (two with the KL).

    With p = softmax(z), e the taken bin's unit vector and g the incoming gradients, summed over the terms:

        ∂ log π(taken) / ∂z = e − p        ∂H / ∂z = −p (log p + H)        ∂KL / ∂z = p − μ

    Written out term by term, autograd keeps five such tensors and walks over each several times, which costs a small
    policy as much as its own layers.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type is not public
        logits: Tensor,
        taken: Tensor,
        behavior: Tensor | None,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        log_probs = torch.log_softmax(logits, dim=-1)
        entropy = -torch.linalg.vecdot(log_probs.exp(), log_probs) if with_entropy else None
        probs = kl = None
        if behavior is not None:
            probs = behavior.to(log_probs.dtype).exp()
            kl = torch.linalg.vecdot(probs, behavior - log_probs)
        ctx.save_for_backward(log_probs, taken, entropy, probs)
        ctx.set_materialize_grads(False)
        return _gather(log_probs, taken), entropy, kl

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        of_logprob: Tensor | None,
        of_entropy: Tensor | None,
        of_kl: Tensor | None,
    ) -> tuple[Tensor | None, None, None, None]:
        log_probs, taken, entropy, behavior_probs = ctx.saved_tensors
        if of_logprob is None and of_entropy is None and of_kl is None:
            return None, None, None, None
        probs = log_probs.exp()
        weight = torch.zeros_like(probs[..., 0])
        if of_logprob is not None:
            weight -= of_logprob
        if of_kl is not None:
            weight += of_kl
        if of_entropy is not None:
            weight = weight.unsqueeze(-1) - of_entropy.unsqueeze(-1) * (log_probs + entropy.unsqueeze(-1))
        else:
            weight = weight.unsqueeze(-1)
        gradient = probs.mul_(weight)
        if of_kl is not None:
            gradient.addcmul_(behavior_probs, of_kl.unsqueeze(-1), value=-1.0)
        if of_logprob is not None:
            gradient.scatter_add_(-1, taken.unsqueeze(-1), of_logprob.unsqueeze(-1))
        return gradient, None, None, None


class Gaussian:
    """A number per component, unbounded; the environment clips what it cannot execute.

    An output w means the deviation MIN_STD^(1 − s) · MAX_STD^s with s = sigmoid(w): their geometric mean at 0.
    """

    def sample(
        self, outputs: Tensor, temperature: float, *, generator: torch.Generator | None = None, greedy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Numbers, float32; the mode is the mean."""
        mean, log_std = self.parameters(outputs, temperature).unbind(-1)
        noise = 0.0 if greedy else torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        taken = mean + noise * log_std.exp()
        return taken, _gaussian_logprob(taken, mean, log_std)

    def parameters(self, outputs: Tensor, temperature: float) -> Tensor:
        """Mean and log deviation, the latter at the temperature."""
        _require_positive(temperature)
        mean, width = lift(outputs).unbind(-1)
        log_std = math.log(MIN_STD) + math.log(MAX_STD / MIN_STD) * width.sigmoid()
        return torch.stack([mean, log_std + 0.5 * math.log(temperature)], dim=-1)

    def terms(
        self,
        outputs: Tensor,
        taken: Tensor,
        temperature: float,
        *,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Terms:
        """All in closed form."""
        mean, log_std = self.parameters(outputs, temperature).unbind(-1)
        kl = None
        if behavior is not None:
            behavior_mean, behavior_log_std = lift(behavior.detach()).unbind(-1)
            spread = (2.0 * (behavior_log_std - log_std)).exp() + ((behavior_mean - mean) / log_std.exp()).square()
            kl = log_std - behavior_log_std + 0.5 * (spread - 1.0)
        entropy = log_std + (0.5 + _HALF_LOG_2PI) if with_entropy else None
        return Terms(_gaussian_logprob(lift(taken), mean, log_std), entropy, kl)


def _gaussian_logprob(taken: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return -0.5 * ((taken - mean) / log_std.exp()).square() - log_std - _HALF_LOG_2PI


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    _require_positive(temperature)
    return lift(logits) if temperature == 1.0 else lift(logits) / temperature


def _require_positive(temperature: float) -> None:
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, found {temperature}; ask for greedy=True to take the mode")


def _gather(log_probs: Tensor, taken: Tensor) -> Tensor:
    return log_probs.gather(-1, taken.unsqueeze(-1)).squeeze(-1)
