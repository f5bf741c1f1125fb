"""Surrogates as plain functions, for mathematics that has no recipe."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from vla_rl.rl.surrogates.base import Surrogate

if TYPE_CHECKING:
    from torch import Tensor


def as_function(kind: type[Surrogate], method: Callable[[Surrogate, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a method as a function `(log_ratio, advantages, *, <the fields>)`, e.g. `gipo(x, advantages, sigma=0.5)`.

    The limits of a recipe are not checked. A keyword that is not a field of the kind raises TypeError.
    """
    fields = {key: field.default for key, field in kind.model_fields.items() if key != "name"}
    positional = [Parameter(key, Parameter.POSITIONAL_OR_KEYWORD) for key in ("log_ratio", "advantages")]
    keywords = [Parameter(key, Parameter.KEYWORD_ONLY, default=default) for key, default in fields.items()]
    signature = Signature([*positional, *keywords])

    def function(*args: Tensor, **settings: Any) -> Tensor:  # noqa: ANN401 - the fields have types of their own
        given = signature.bind(*args, **settings).arguments
        log_ratio, advantages = given.pop("log_ratio"), given.pop("advantages")
        return method(kind.model_construct(name=kind.kind(), **given), log_ratio, advantages)

    function.__name__ = function.__qualname__ = kind.kind()
    function.__doc__ = f"{kind.__doc__}\n\n{method.__doc__}"
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def multiplier(log_weight: Callable[[Tensor, Tensor], Tensor], log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Return the weight m itself, e.g. `multiplier(surrogate.log_weight, log_ratio, advantages)`: ∂J/∂log π_θ = m A."""
    return log_weight(log_ratio, advantages).exp()
