"""Computable parts of the paper's section 5 (arXiv 2603.03955): bias, variance and a lower bound for GIPO.

Symbols: ε_A = max |A^π| over states and actions; γ the discount; α = max_s D_TV(π′, π) between the candidate π′ and the
reference π whose advantage is used; β = max_s D_TV(π′, μ) to the behaviour policy μ.

*Certain*: `multiplier_bound` (Lemma 5.3) and every inequality as mathematics; each was checked on random distributions
and small decision processes. *Reconstructed*: the constants of `trust_penalty`, `lower_bound_penalty` (Theorem 5.2) and
`finite_sample_half_width` (Theorem 5.4). They are proved and consistent with the paper's text, but its printed
constants may differ; do not quote them as the paper's.
"""

from __future__ import annotations

import math


def multiplier_bound(sigma: float) -> float:
    """Return the largest weight of GIPO (Lemma 5.3, certain): ω(ρ; σ) ρ ≤ exp(σ² / 2), equality only at ρ = exp(σ²).

    The program clamps log ρ to ±ln(1e9), so for σ above 4.55 the peak itself is never reached.
    """
    return math.exp(0.5 * _positive("sigma", sigma) ** 2)


def lambert_w(z: float) -> float:
    """Return the w ≥ 0 with w e^w = z, for z ≥ 0, by Newton's method; relative error below 1e-12."""
    if not 0.0 <= z < math.inf:
        raise ValueError(f"lambert_w: z must be finite and at least 0; found {z}")
    w = math.log1p(z)  # above the root, where Newton's method on a convex function descends monotonically
    for _ in range(64):
        step = (w - z * math.exp(-w)) / (1.0 + w)
        w -= step
        if abs(step) <= 1e-15 * w:
            break
    return w


def optimal_tau(sigma: float) -> float:
    """Return the τ that minimises `trust_penalty`: τ e^τ = 2σ², so τ = W(2σ²) (reconstructed)."""
    return lambert_w(2.0 * _positive("sigma", sigma) ** 2)


def trust_penalty(sigma: float, *, tau: float | None = None) -> float:
    """Return f(τ) = τ² / (2σ²) + 2 e^{−τ}, the mass the trust weight may discard, up to β (Lemma 5.1, reconstructed).

    E_μ[(1 − ω) ρ′] ≤ f(τ) + β for every τ > 0. The left side is at most 1, and the best f is at least 1 for σ below
    about 1.34: there the bound is vacuous.

    Args:
        sigma: σ > 0.
        tau: τ > 0; by default the optimal one, where f = W (W + 2) / (2σ²) with W = W(2σ²).
    """
    chosen = optimal_tau(sigma) if tau is None else _positive("tau", tau)
    return chosen**2 / (2.0 * sigma**2) + 2.0 * math.exp(-chosen)


def lower_bound_penalty(*, sigma: float, max_advantage: float, discount: float, alpha: float, beta: float) -> float:
    """Return P in J(π′) ≥ L^GIPO(π′) − P, at the optimal τ (Theorem 5.2, reconstructed).

    P = 4 ε_A γ α β / (1 − γ)² + ε_A / (1 − γ) · (f* + β). The first part is the price of evaluating π′ on the states of
    μ, the second that of the trust weight; as σ → ∞, f* → 0.

    Args:
        sigma: σ > 0.
        max_advantage: ε_A ≥ 0.
        discount: γ in [0, 1).
        alpha: max_s D_TV(π′, π), in [0, 1].
        beta: max_s D_TV(π′, μ), in [0, 1].
    """
    horizon = _horizon(discount)
    max_advantage = _not_negative("max_advantage", max_advantage)
    states = 4.0 * max_advantage * discount * _fraction("alpha", alpha) * _fraction("beta", beta) * horizon**2
    return states + max_advantage * horizon * (trust_penalty(sigma) + beta)


def finite_sample_half_width(
    *, sigma: float, max_advantage: float, discount: float, num_samples: int, delta: float
) -> float:
    """Return the half-width h: |L̂ − L^GIPO| ≤ h in at least 1 − δ of all draws.

    Theorem 5.4, reconstructed; two-sided Hoeffding.

    h = ε_A e^{σ²/2} / (1 − γ) · √(2 ln(2/δ) / N), for N *independent* samples. Tokens of one decision and decisions of
    one episode are not independent: put the number of episodes here, or read h as optimistic.

    Args:
        sigma: σ > 0.
        max_advantage: ε_A ≥ 0.
        discount: γ in [0, 1).
        num_samples: N ≥ 1.
        delta: δ in (0, 1).
    """
    if num_samples < 1 or not 0.0 < delta < 1.0:
        raise ValueError(f"num_samples must be at least 1 and delta in (0, 1); found {num_samples} and {delta}")
    scale = _not_negative("max_advantage", max_advantage) * multiplier_bound(sigma) * _horizon(discount)
    return scale * math.sqrt(2.0 * math.log(2.0 / delta) / num_samples)


def _horizon(discount: float) -> float:
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must lie in [0, 1); found {discount}")
    return 1.0 / (1.0 - discount)


def _positive(name: str, value: float) -> float:
    if not value > 0.0:
        raise ValueError(f"{name} must be greater than 0; found {value}")
    return value


def _not_negative(name: str, value: float) -> float:
    if not value >= 0.0:
        raise ValueError(f"{name} must be at least 0; found {value}")
    return value


def _fraction(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1]; found {value}")
    return value
