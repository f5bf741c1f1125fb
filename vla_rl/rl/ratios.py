"""Kinds of importance ratio: which tokens of a decision share one, and how theirs become it.

A kind is a name and an entry of `RATIOS`: recipes, the loss with its denominator, and the metrics follow from these.
Torch is imported only for type checkers, because a recipe is loaded without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

RatioName = Literal["token", "step", "joint"]


@dataclass(frozen=True)
class Ratio:
    """Product of the ratios of so many tokens in a row, as far as they were executed.

    R decisions of A tokens have P = A / tokens ratios each.
    """

    tokens: int

    def of_tokens(self, logs: Tensor, run: Tensor) -> Tensor:
        """Map log-probabilities of tokens, or log-ratios, to those of what shares a ratio; linear in them.

        Args:
            logs: (R, A).
            run: (R, A) bool, executed tokens; the others have no effect on a valid ratio, whatever they hold.

        Returns:
            (R, P); no meaning where a ratio is not valid.
        """
        return logs if self.tokens == 1 else self.shared(logs.masked_fill(~run, 0.0)).sum(dim=2)

    def valid(self, run: Tensor) -> Tensor:
        """Return the ratios with an executed token, (R, P) bool: the mean of the policy term is one over them."""
        return run if self.tokens == 1 else self.shared(run).any(dim=2)

    def num_valid(self, num_run: NDArray[np.int64]) -> int:
        """Return how many of all ratios are valid, where so many tokens of each decision, its first, were executed."""
        return int((-(-num_run // self.tokens)).sum())

    def shared(self, of_tokens: Tensor) -> Tensor:
        """Map (R, A) to (R, P, tokens)."""
        num_decisions, num_tokens = of_tokens.shape
        return of_tokens.reshape(num_decisions, num_tokens // self.tokens, self.tokens)


RATIOS: Mapping[RatioName, Callable[[int, int], Ratio]] = {
    "token": lambda _action_dim, _num_tokens: Ratio(1),
    "step": lambda action_dim, _num_tokens: Ratio(action_dim),
    "joint": lambda _action_dim, num_tokens: Ratio(num_tokens),
}
"""Every kind by the name that chooses it in a recipe, made from the tokens of a control step and of a decision."""
