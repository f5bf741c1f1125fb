"""The policy loss: a surrogate's objective over the valid elements of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vla_rl.rl.masking import lift, masked_mean, masked_sum, select_valid

if TYPE_CHECKING:
    from torch import Tensor

    Objective = Callable[[Tensor, Tensor], Tensor]
    """(log_ratio, advantages) to J: a surrogate's `objective`, or one of `SURROGATES` with its settings bound."""


def policy_objective_sum(
    surrogate: Objective,
    *,
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of J over valid elements, and their number: the quantities that add over micro-batches.

    Args:
        surrogate: (log_ratio, advantages) to J: `surrogate.objective`, or `functools.partial(gipo, sigma=1.0)`.
        logprobs: log π_θ of the taken actions, e.g. (B, T, A). Half precision is lifted before the subtraction; but a
            bfloat16 log-probability has already lost up to 3 % of the ratio, so make them in float32.
        behavior_logprobs: log μ of the same actions, as stored when they were taken.
        advantages: broadcastable, e.g. (B, T, 1): one advantage per decision. Constants: no gradient flows into them.
        mask: bool, True = valid, broadcastable. Masked places have no effect on value or gradient, whatever they hold.
        weights: constants that J is multiplied by, broadcastable; None for 1.

    Returns:
        (sum, count) over the broadcast shape. The gradient of the sum in a valid `logprobs` is m A, times its weight.

    Raises:
        NonFiniteError: a valid place holds a NaN log-ratio or an advantage that is not finite.
    """
    import torch

    log_ratio = lift(logprobs) - lift(behavior_logprobs.detach())
    log_ratio, advantages, mask = torch.broadcast_tensors(log_ratio, advantages.detach(), mask)
    valid_log_ratio = select_valid("log_ratio", log_ratio, mask, allow_infinite=True)
    objective = surrogate(valid_log_ratio, select_valid("advantages", advantages, mask))
    return masked_sum(objective if weights is None else objective * weights, mask)


def policy_loss(
    surrogate: Objective, *, logprobs: Tensor, behavior_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """Return minus the mean of J over valid elements; 0, still connected to the graph, if none is valid.

    Arguments and errors are those of `policy_objective_sum`. The denominator is the number of valid elements, not of
    rows: an advantage that is broadcast over the tokens of a decision counts once per token.
    """
    total, count = policy_objective_sum(
        surrogate, logprobs=logprobs, behavior_logprobs=behavior_logprobs, advantages=advantages, mask=mask
    )
    return -masked_mean(total, count)
