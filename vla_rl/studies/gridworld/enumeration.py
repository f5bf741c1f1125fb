"""The paper's GridWorld (arXiv 2603.03955, appendix C.8): bias and variance of one gradient step, by exact enumeration.

Four states on a 2 × 2 grid, start S0, absorbing goal SG; every action outside the goal costs 1:

        column 0   column 1          actions, in this order: up, down, left, right;
    row 0    S0         S1           a move off the grid stays in place
    row 1    S2         SG

A tabular softmax policy π is improved from data of an older policy μ. The estimated quantity is the derivative of the
objective with respect to the logit of "right" in S0, from one sampled action a ~ μ(·|S0):

    g(a) = m(ρ(a), A(a)) A(a) ∂log π(a)/∂θ,   ρ = π/μ,   A exact from the Bellman equation
    E[g] = Σ_a μ(a) g(a),   Var[g] = Σ_a μ(a) (g(a) − E[g])²,   bias = |E[g] − Σ_a π(a) A(a) ∂log π(a)/∂θ|

g(a) is computed by `vla_rl.rl.surrogates` and automatic differentiation, the code that trains policies. There is no
sampling and no random number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_rl.rl.surrogates import KINDS, Gipo, Surrogate, policy_loss

DISCOUNT = 0.9
SIGMAS = (0.1, 0.3, 0.5, 1.0, 2.0)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right as (row, column)
STATES = ((0, 0), (0, 1), (1, 0))  # S0, S1, S2; the goal (1, 1) has value 0
RIGHT = 3

TARGET_LOGITS = (0.0, 1.0, 0.0, 1.0)  # π, in every state
BASE_LOGITS = ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0))  # uniform, right, down
CASES: Mapping[str, tuple[float, float, float]] = {  # weights of the base policies' *probabilities* in μ
    "A": (1.0, 0.0, 0.0),
    "B": (0.4, 0.3, 0.3),
    "C": (0.2, 0.4, 0.4),
}


@dataclass(frozen=True, slots=True)
class Method:
    """One estimator."""

    surrogate: Surrogate
    sigma: float | None  # GIPO's σ

    @property
    def name(self) -> str:
        """Return the kind of the surrogate."""
        return self.surrogate.name


@dataclass(frozen=True, slots=True)
class Record:
    """Exact bias and variance of one method in one case."""

    case: str  # "A", "B" or "C": μ comes closer to π
    method: str
    sigma: float | None  # null unless gipo
    bias: float  # absolute
    variance: float  # of the one-sample estimator


def methods() -> tuple[Method, ...]:
    """Return the compared estimators: GIPO by σ, every other surrogate at its default settings."""
    plain = [Method(kind(name=name), None) for name, kind in KINDS.items() if kind is not Gipo]
    return (*plain, *(Method(Gipo(name="gipo", sigma=sigma), sigma) for sigma in SIGMAS))


def labels() -> dict[tuple[str, float | None], str]:
    """Return names for tables and legends, by method and σ."""
    return {(method.name, method.sigma): method.surrogate.label for method in methods()}


def study() -> list[Record]:
    """Evaluate every method in every case."""
    advantages = start_advantages()
    return [
        Record(case, method.name, method.sigma, *bias_and_variance(method.surrogate, behavior_probs(case), advantages))
        for case in CASES
        for method in methods()
    ]


def target_probs() -> Tensor:
    """Return π(·|s), the same in every state, shape (4,), float64."""
    return torch.tensor(TARGET_LOGITS, dtype=torch.float64).softmax(dim=-1)


def behavior_probs(case: str) -> Tensor:
    """Return μ(·|S0) of a case, a mixture of probabilities, shape (4,), float64."""
    weights = torch.tensor(CASES[case], dtype=torch.float64)
    return weights @ torch.tensor(BASE_LOGITS, dtype=torch.float64).softmax(dim=-1)


def start_advantages() -> Tensor:
    """Return A^π(S0, ·) from the exact solution of the Bellman equation, shape (4,), float64."""
    probs = target_probs()
    transitions = torch.zeros(len(STATES), len(MOVES), len(STATES), dtype=torch.float64)  # the goal has no column
    for state, action, successor in _transitions():
        transitions[state, action, successor] = 1.0
    policy_transitions = torch.einsum("a,sat->st", probs, transitions)
    identity, costs = torch.eye(len(STATES), dtype=torch.float64), -torch.ones(len(STATES), dtype=torch.float64)
    values = torch.linalg.solve(identity - DISCOUNT * policy_transitions, costs)
    return torch.mv(transitions[0], values).mul(DISCOUNT).sub(1.0 + values[0])


def _transitions() -> Iterator[tuple[int, int, int]]:
    for state, (row, column) in enumerate(STATES):
        for action, (down, right) in enumerate(MOVES):
            successor = (min(max(row + down, 0), 1), min(max(column + right, 0), 1))
            if successor in STATES:
                yield state, action, STATES.index(successor)


def bias_and_variance(surrogate: Surrogate, behavior: Tensor, advantages: Tensor) -> tuple[float, float]:
    """Return exact |bias| and variance of the estimator g(a) with a drawn from `behavior`; arguments of shape (4,)."""
    estimates = torch.stack([_estimate(surrogate, behavior, advantages, action) for action in range(len(MOVES))])
    mean = behavior @ estimates
    variance = behavior @ (estimates - mean).square()
    return float((mean - true_gradient(advantages)).abs()), float(variance)


def _estimate(surrogate: Surrogate, behavior: Tensor, advantages: Tensor, action: int) -> Tensor:
    """Return g(a): the derivative of minus the policy loss of one sample with respect to the logit of "right"."""
    logits = torch.tensor(TARGET_LOGITS, dtype=torch.float64, requires_grad=True)
    loss = policy_loss(
        surrogate.objective,
        logprobs=logits.log_softmax(dim=-1)[action],
        behavior_logprobs=behavior[action].log(),
        advantages=advantages[action],
        mask=torch.tensor(True),
    )
    (gradient,) = torch.autograd.grad(-loss, logits)
    return gradient[RIGHT]


def true_gradient(advantages: Tensor) -> Tensor:
    """Return Σ_a π(a) A(a) (1[a = right] − π(right)), scalar. Written out, to be independent of the surrogates."""
    probs = target_probs()
    scores = torch.eye(len(MOVES), dtype=torch.float64)[RIGHT] - probs[RIGHT]
    return (probs * advantages * scores).sum()


def pareto_front(records: list[Record]) -> list[Record]:
    """Return the records of one case that no other record beats in both bias and variance, by rising bias."""
    return sorted((r for r in records if not any(_dominates(other, r) for other in records)), key=lambda r: r.bias)


def _dominates(one: Record, other: Record) -> bool:
    better_or_equal = one.bias <= other.bias and one.variance <= other.variance
    return better_or_equal and (one.bias < other.bias or one.variance < other.variance)
