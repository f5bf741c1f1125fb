"""Distributions of action components, given by a policy's outputs.

Both sides use these: the inference worker to sample and record the log-probability, the learner to recompute it, so
that the two differ only if the weights do. All arithmetic is in float32 at least.

Shapes: `outputs` is (..., A, V), V numbers for each of A components; `taken` and all results are (..., A).

    categorical  V logits of V bins             taken is the bin's index      at temperature T: softmax(logits / T)
    gaussian     V = 2: mean, width             taken is the number drawn     at temperature T: deviation · √T

In both, a temperature divides the log-density, which is then normalised again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vla_rl.rl.masking import lift
from vla_rl.rl.random_numbers import RandomSource, normal, uniform

MIN_STD, MAX_STD = 0.1, 1.0
"""Bounds of a Gaussian's deviation, of actions in [-1, 1]. A policy that grows narrower without one has log-ratios that
grow without bound on everything it did before, and no surrogate can use such data."""
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of a loss from a distribution, per component; differentiable in the outputs."""

    logprobs: Tensor  # (..., A) of the taken action
    entropy: Tensor | None  # (..., A) nats, if requested
    kl: Tensor | None  # (..., A) nats, exact KL(behaviour ‖ policy), if the behaviour was given


class Drawn(NamedTuple):
    """Actions that were drawn, and what from."""

    taken: Tensor  # (..., A)
    logprobs: Tensor  # (..., A), the same for the mode as if it had been drawn
    parameters: Tensor  # (..., A, V) normalised, at the temperature: `Distribution.parameters`


class Distribution(Protocol):
    """One family of distributions."""

    def sample(
        self, outputs: Tensor, temperature: float, *, generator: RandomSource | None = None, greedy: bool = False
    ) -> Drawn:
        """Sample at the temperature; greedy takes the mode.

        The random numbers come from one generator, or from one for each place of the first dimension.
        """
        ...

    def parameters(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return (..., A, V) normalised parameters, stored of a behaviour for the exact KL."""
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
        """Compute log-probabilities of the taken action, and the other requested terms.

        Args:
            outputs: (..., A, V) of the current policy; if of more decisions than were taken, the first ones are meant.
            taken: (..., A).
            temperature: above 0.
            behavior: (..., A, V) `parameters` of the policy that acted, a constant; None for no KL.
            with_entropy: compute the entropy too.
        """
        ...


def width_of(std: float) -> float:
    """Return the output that means this deviation of a Gaussian, which lies between the bounds."""
    share = math.log(std / MIN_STD) / math.log(MAX_STD / MIN_STD)
    return math.log(share / (1.0 - share))


def distribution_of(num_bins: int | None) -> Distribution:
    """Return the family of an `ActionSpec`: a categorical over its bins, or a Gaussian if it has none."""
    return Gaussian() if num_bins is None else Categorical()


class Categorical:
    """Categorical distribution over V bins per component."""

    def sample(
        self, outputs: Tensor, temperature: float, *, generator: RandomSource | None = None, greedy: bool = False
    ) -> Drawn:
        """Sample bins, int64; the mode is the lowest index of the largest logits."""
        log_probs = self.parameters(outputs, temperature)
        if greedy:
            taken = log_probs.argmax(dim=-1)
        else:
            # The inverse of the distribution function, in float64: one random number per component, where
            # `torch.multinomial` draws one per bin and takes most of a small policy's decision for it.
            cumulative = log_probs.double().exp().cumsum(dim=-1)
            levels = uniform(cumulative[..., :1].shape, generator, dtype=torch.float64, device=cumulative.device)
            taken = torch.searchsorted(cumulative, levels * cumulative[..., -1:], right=True).squeeze(-1)
            taken = taken.clamp(max=log_probs.shape[-1] - 1)
        return Drawn(taken, _gather(log_probs, taken), log_probs)

    def parameters(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return the log-probabilities of all bins."""
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
        """Compute all terms from one log-softmax, with one gradient for all of them."""
        constant = None if behavior is None else behavior.detach()
        return Terms(*_CategoricalTerms.apply(_tempered(outputs, temperature), taken.long(), constant, with_entropy))


class _CategoricalTerms(torch.autograd.Function):
    """Autograd of log π(taken), H(π) and KL(μ ‖ π) from logits z, keeping one (..., A, V) tensor (two with KL).

    Logits beyond those of the taken actions are left out here, not by the caller: the gradient is then written once,
    in its full size, where that of a slice would be filled with zeros and copied into.

    With p = softmax(z), e the taken bin's unit vector and g the incoming gradients, summed over the terms:

        ∂ log π(taken) / ∂z = e − p        ∂H / ∂z = −p (log p + H)        ∂KL / ∂z = p − μ

    Written term by term, autograd would keep five such tensors and read each several times, which costs a small policy
    as much as its own layers.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type is not public
        logits: Tensor,
        taken: Tensor,
        behavior: Tensor | None,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.num_outputs = len(logits)
        log_probs = torch.log_softmax(logits[: len(taken)], dim=-1)
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
        gradient = log_probs.new_empty(ctx.num_outputs, *log_probs.shape[1:])
        gradient[len(taken) :] = 0.0
        own = torch.exp(log_probs, out=gradient[: len(taken)])
        weight = torch.zeros_like(own[..., 0])
        if of_logprob is not None:
            weight -= of_logprob
        if of_kl is not None:
            weight += of_kl
        if of_entropy is not None:
            weight = weight.unsqueeze(-1) - of_entropy.unsqueeze(-1) * (log_probs + entropy.unsqueeze(-1))
        else:
            weight = weight.unsqueeze(-1)
        own.mul_(weight)
        if of_kl is not None:
            own.addcmul_(behavior_probs, of_kl.unsqueeze(-1), value=-1.0)
        if of_logprob is not None:
            own.scatter_add_(-1, taken.unsqueeze(-1), of_logprob.unsqueeze(-1))
        return gradient, None, None, None


class Gaussian:
    """Gaussian distribution of one unbounded number per component; the environment clips it.

    An output w means the deviation MIN_STD^(1 − s) · MAX_STD^s with s = sigmoid(w): their geometric mean at 0.
    """

    def sample(
        self, outputs: Tensor, temperature: float, *, generator: RandomSource | None = None, greedy: bool = False
    ) -> Drawn:
        """Sample numbers, float32; the mode is the mean."""
        parameters = self.parameters(outputs, temperature)
        mean, log_std = parameters.unbind(-1)
        noise = 0.0 if greedy else normal(mean.shape, generator, device=mean.device, dtype=mean.dtype)
        taken = mean + noise * log_std.exp()
        return Drawn(taken, _gaussian_logprob(taken, mean, log_std), parameters)

    def parameters(self, outputs: Tensor, temperature: float) -> Tensor:
        """Return mean and log standard deviation, the latter at the temperature."""
        _require_positive(temperature)
        mean, width = lift(outputs).unbind(-1)
        return torch.stack([mean, _log_std(width.sigmoid(), temperature)], dim=-1)

    def terms(
        self,
        outputs: Tensor,
        taken: Tensor,
        temperature: float,
        *,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Terms:
        """Compute all terms in closed form, with one gradient for all of them."""
        _require_positive(temperature)
        constant = None if behavior is None else lift(behavior.detach())
        return Terms(*_GaussianTerms.apply(lift(outputs), lift(taken), temperature, constant, with_entropy))


class _GaussianTerms(torch.autograd.Function):
    """Autograd of log π(a), H(π) and KL(μ ‖ π) from mean m and width w; outputs beyond the taken ones get 0.

    With z = (a − m) / σ, d = (m_μ − m) / σ, r = σ_μ / σ and s = sigmoid(w), so that
    ∂ log σ / ∂w = log(MAX_STD / MIN_STD) s (1 − s):

        ∂ log π(a) / ∂m = z / σ            ∂ log π(a) / ∂ log σ = z² − 1
        ∂H / ∂m = 0                        ∂H / ∂ log σ = 1
        ∂KL / ∂m = −d / σ                  ∂KL / ∂ log σ = 1 − r² − d²

    As for the categorical, the terms one by one would take a small policy as long as its own layers.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own type is not public
        outputs: Tensor,
        taken: Tensor,
        temperature: float,
        behavior: Tensor | None,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        ctx.num_outputs = len(outputs)
        mean, width = outputs[: len(taken)].unbind(-1)
        share = width.sigmoid()
        log_std = _log_std(share, temperature)
        std = log_std.exp()
        z = (taken - mean) / std
        logprobs = -0.5 * z.square() - log_std - _HALF_LOG_2PI
        entropy = log_std + (0.5 + _HALF_LOG_2PI) if with_entropy else None
        kl = distance = spread = None
        if behavior is not None:
            behavior_mean, behavior_log_std = behavior.unbind(-1)
            distance = (behavior_mean - mean) / std
            spread = (2.0 * (behavior_log_std - log_std)).exp() + distance.square()
            kl = log_std - behavior_log_std + 0.5 * (spread - 1.0)
        ctx.save_for_backward(share, std, z, distance, spread)
        ctx.set_materialize_grads(False)
        return logprobs, entropy, kl

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        of_logprob: Tensor | None,
        of_entropy: Tensor | None,
        of_kl: Tensor | None,
    ) -> tuple[Tensor | None, None, None, None, None]:
        share, std, z, distance, spread = ctx.saved_tensors
        gradient = z.new_zeros(ctx.num_outputs, *z.shape[1:], 2)
        of_mean, of_width = gradient[: len(z)].unbind(-1)
        if of_logprob is not None:
            of_mean += of_logprob * z
            of_width += of_logprob * (z.square() - 1.0)
        if of_entropy is not None:
            of_width += of_entropy
        if of_kl is not None:
            of_mean -= of_kl * distance
            of_width += of_kl * (1.0 - spread)
        of_mean /= std
        of_width *= math.log(MAX_STD / MIN_STD) * share * (1.0 - share)
        return gradient, None, None, None, None


def _log_std(share: Tensor, temperature: float) -> Tensor:
    """Return log σ from sigmoid(width)."""
    log_std = math.log(MIN_STD) + math.log(MAX_STD / MIN_STD) * share
    return log_std + 0.5 * math.log(temperature)


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
