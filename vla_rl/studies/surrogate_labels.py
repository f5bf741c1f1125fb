"""Surrogates of a study, as written on the command line and in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vla_rl.errors import UserError
from vla_rl.rl.surrogates import KINDS, Gipo, Surrogate

PLAIN_SURROGATES = tuple(name for name in KINDS if name != "gipo")  # at their default settings


@dataclass(frozen=True, slots=True)
class StudySurrogate:
    """Surrogate with its settings, as written on the command line and in tables."""

    label: str  # gipo, gipo:0.5, gipo:0.5:0.5 (σ, then the factor on σ for bad actions), or another's name

    def __post_init__(self) -> None:
        _require_form(self.label)
        if not all(_is_positive(number) for number in self.label.split(":")[1:]):
            raise UserError(f"--surrogates: found {self.label!r}; sigma and negative scale are finite numbers above 0")

    @property
    def canonical(self) -> str:
        """Return the canonical label of these settings: gipo:1, gipo:1.0:1 and gipo are gipo."""
        if self.sigma is None:
            return self.label
        sigma, scale = (str(number).removesuffix(".0") for number in self.sigma)
        return f"gipo:{sigma}:{scale}" if scale != "1" else f"gipo:{sigma}" if sigma != "1" else "gipo"

    @property
    def sigma(self) -> tuple[float, float] | None:
        """Return GIPO's (σ, factor on σ for bad actions); None for the others."""
        name, *numbers = self.label.split(":")
        if name != "gipo":
            return None
        sigma, scale = (*map(float, numbers), 1.0, 1.0)[:2]
        return sigma, scale

    @property
    def overrides(self) -> list[str]:
        """Return the overrides of the recipe."""
        if self.sigma is None:
            return [f"surrogate.name={self.label}"]
        sigma, scale = self.sigma
        return ["surrogate.name=gipo", f"surrogate.sigma={sigma}", f"surrogate.negative_sigma_scale={scale}"]


def label_of(surrogate: Surrogate) -> str:
    """Return the canonical label of a recipe's surrogate."""
    match surrogate:
        case Gipo(sigma=sigma, negative_sigma_scale=scale):
            return StudySurrogate(f"gipo:{sigma}:{scale}").canonical
    return surrogate.kind()


def canonical_labels(labels: Sequence[str], *, besides: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the canonical labels.

    Args:
        labels: as they were written.
        besides: what the option takes besides surrogates, for messages.

    Raises:
        UserError: a label has no meaning, or two mean the same.
    """
    for label in labels:
        _require_form(label, besides=besides)
    found = tuple(StudySurrogate(label).canonical for label in labels)
    if len(set(found)) != len(found):
        raise UserError(f"--surrogates: found {','.join(labels)}; every surrogate stands once")
    return found


def _require_form(label: str, *, besides: Sequence[str] = ()) -> None:
    """Check that a label names a surrogate, and has no more numbers than this one takes.

    Raises:
        UserError: it does not.
    """
    name, *numbers = label.split(":")
    if (name != "gipo" and (name not in PLAIN_SURROGATES or numbers)) or len(numbers) > 2:
        allowed = ("gipo", "gipo:SIGMA", "gipo:SIGMA:NEGATIVE_SCALE", *PLAIN_SURROGATES, *besides)
        raise UserError(f"--surrogates: found {label!r}; allowed are {', '.join(allowed)}")


def _is_positive(text: str) -> bool:
    try:
        return 0.0 < float(text) < math.inf
    except ValueError:
        return False
