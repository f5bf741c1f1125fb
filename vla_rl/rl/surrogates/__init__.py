"""Policy surrogates: per-element objectives to maximise.

With x = log π_θ(a|s) − log μ(a|s), ρ = e^x, and m the factor in front of A ∇log π_θ:

    name           J (maximised)                               m / ρ
    no_clip        ρ A                                         1
    ppo            min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A)  0 on the clipped side, else 1
    sapo           (4 / τ) sigmoid(τ (ρ − 1)) A                sech²(τ (ρ − 1) / 2)
    gipo           sg(ω) ρ A,  ω = exp(−x² / (2σ²))            ω
    decoupled_ppo  sg(w) min(r A, clip(r, …) A),  w r = ρ      0 on the clipped side of r and for a large w, else 1

At ρ = 1 every m is 1. Values of different surrogates are not comparable (SAPO's gate is 2/τ at ρ = 1); gradients are.

A surrogate is one class in one file here, and a member of `AnySurrogate`. Everything else follows from that union: the
kinds of a recipe, the plain functions, the methods of the studies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from vla_rl.rl.surrogates.base import MAX_LOG_RATIO, Surrogate, bounded_log_ratio
from vla_rl.rl.surrogates.decoupled_ppo import DecoupledPpo
from vla_rl.rl.surrogates.gipo import Gipo
from vla_rl.rl.surrogates.loss import policy_loss, policy_objective_sum
from vla_rl.rl.surrogates.no_clip import NoClip
from vla_rl.rl.surrogates.plain import as_function, multiplier
from vla_rl.rl.surrogates.ppo import Ppo
from vla_rl.rl.surrogates.sapo import Sapo

if TYPE_CHECKING:
    from torch import Tensor

AnySurrogate = Annotated[
    Union[  # noqa: UP007 - a member a line
        Gipo,
        Ppo,
        Sapo,
        NoClip,
        DecoupledPpo,
    ],
    Field(discriminator="name"),
]
"""The section of a recipe: one of the kinds, chosen by its name. This is the one list of them."""

KINDS: Mapping[str, type[Surrogate]] = {kind.kind(): kind for kind in get_args(get_args(AnySurrogate)[0])}
"""Every surrogate by the name that chooses it in a recipe."""

SURROGATES: Mapping[str, Callable[..., Tensor]] = {
    name: as_function(kind, kind.objective) for name, kind in KINDS.items()
}
"""Every objective as a function `(log_ratio, advantages, *, <the fields>)`, by name."""

gipo, ppo = SURROGATES["gipo"], SURROGATES["ppo"]
sapo, no_clip = SURROGATES["sapo"], SURROGATES["no_clip"]

__all__ = [
    "KINDS",
    "MAX_LOG_RATIO",
    "SURROGATES",
    "AnySurrogate",
    "DecoupledPpo",
    "Gipo",
    "NoClip",
    "Ppo",
    "Sapo",
    "Surrogate",
    "bounded_log_ratio",
    "gipo",
    "multiplier",
    "no_clip",
    "policy_loss",
    "policy_objective_sum",
    "ppo",
    "sapo",
]
