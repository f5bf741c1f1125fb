"""Interface of every surrogate, and the arithmetic that they share.

A surrogate is one class in one file: its fields are its section of a recipe, its methods are what the learner calls.
Loading a recipe must not load torch, so these modules name torch only for type checkers and inside functions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, get_args

from vla_rl.rl.masking import lift
from vla_rl.section import Section

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG_RATIO = math.log(1e9)
"""B: every log-ratio is clamped to ±B, once, before any exponential.

e^x overflows float32 from x = 88.7, and 0 · inf in a backward pass poisons the whole batch; at 1e9 even a sum over a
large batch is finite in float32. Inside ±B nothing changes; outside it J is constant and the gradient 0. GIPO's peak
x = σ² lies inside for σ < √B = 4.55.
"""


class Surrogate(Section, ABC):
    """Policy objective with its settings: a section of a recipe, and what the learner maximises.

    Both methods take tensors of one broadcastable shape. They compute in float64 for float64 inputs and in float32
    otherwise, and their results are never NaN for any log-ratio, ±inf included.
    """

    name: str  # each kind narrows it to its own literal

    @abstractmethod
    def objective(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return J per element, to be maximised. Value and gradient are finite.

        Args:
            log_ratio: x = log π_θ(a|s) − log μ(a|s), with the graph of π_θ.
            advantages: A, constants.
        """

    @abstractmethod
    def log_weight(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """Return log m per element, where ∂J/∂log π_θ = m A; −inf where the gradient is 0 by construction.

        Diagnostics need the logarithm: GIPO's m underflows to 0 in float32 for a small σ although its kernel is
        nowhere 0. Such a weight keeps its exponent here.
        """

    def at_lag(self, lag: Tensor) -> Surrogate:  # noqa: ARG002 - most do not depend on it
        """Return the surrogate of elements with these policy lags; by default the same.

        Args:
            lag: versions, broadcastable with the log-ratios that the result's methods are called with.
        """
        return self

    def limited_log_ratio(self, log_ratio: Tensor) -> Tensor:
        """Return the logarithm of the ratio that `clip_range` is a range of; by default of ρ."""
        return log_ratio

    @property
    def clip_range(self) -> tuple[float, float]:
        """Return (low, high): ratios below 1 − low and above 1 + high count in the clip fraction.

        0.2 if nothing clips.
        """
        return (0.2, 0.2)

    @property
    def label(self) -> str:
        """Return the name for tables and legends: the kind, and the settings that are not at their defaults."""
        fields = type(self).model_fields
        changed = {key: value for key, value in self if key != "name" and value != fields[key].default}
        return " ".join([self.name, *(f"{key}={value}" for key, value in changed.items())])

    @classmethod
    def kind(cls) -> str:
        """Return the value of `surrogate.name` that chooses this class."""
        return str(get_args(cls.model_fields["name"].annotation)[0])


def bounded_log_ratio(log_ratio: Tensor) -> Tensor:
    """Clamp x to ±B, in at least float32. Every factor of an objective must be made of this one x."""
    return lift(log_ratio).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def by_sign(advantages: Tensor, positive: float, otherwise: float) -> Tensor:
    """Return `positive` where A > 0, `otherwise` elsewhere (also at A = 0), in the dtype of `advantages`."""
    if positive == otherwise:
        return advantages.new_full(advantages.shape, positive)
    return advantages.new_tensor(positive).where(advantages > 0, advantages.new_tensor(otherwise))


def log_ratio_weight(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Return log ρ in the broadcast shape, −inf outside ±B: the part that every log-weight has."""
    import torch

    x, _ = torch.broadcast_tensors(lift(log_ratio), advantages)
    return dead_where(x.abs() > MAX_LOG_RATIO, bounded_log_ratio(x))


def dead_where(condition: Tensor, log_weight: Tensor) -> Tensor:
    """Return `log_weight` with −inf, the logarithm of a weight of 0, where `condition` holds."""
    return log_weight.masked_fill(condition, -math.inf)
