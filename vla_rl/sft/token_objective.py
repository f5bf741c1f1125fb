"""Loss of the supervised stage, and what is measured of it, per component of an action.

Shapes: B samples, A = K D action tokens of a chunk, V bins.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vla_rl.reporting.catalogue import COMPONENTS


def soft_labels(num_bins: int, sigma: float) -> Tensor:
    """Return (V, V): row j is the distribution that a label j stands for.

    Its weights are those of a normal density around j with deviation `sigma`, in bins, normalised over the bins there
    are; with sigma 0 all weight is on j.
    """
    if sigma == 0.0:
        return torch.eye(num_bins)
    bins = torch.arange(num_bins, dtype=torch.float64)
    return torch.softmax(-((bins[:, None] - bins) ** 2) / (2.0 * sigma**2), dim=1).float()


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """Terms of every token, (B, A) float32."""

    loss: Tensor  # cross-entropy with the softened label; differentiable
    cross_entropy: Tensor  # with the label itself
    correct: Tensor  # 1 if the most likely bin is the label's
    likeliest: Tensor  # int64, that bin


def token_terms(logits: Tensor, tokens: Tensor, labels: Tensor) -> TokenTerms:
    """Return the terms of some tokens.

    Args:
        logits: (B, A, V) float32.
        tokens: (B, A) int64 labels.
        labels: (V, V) of `soft_labels`.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    loss = -(labels[tokens] * logprobs).sum(dim=-1)
    plain = logprobs.detach()
    likeliest = plain.argmax(dim=-1)
    return TokenTerms(
        loss=loss,
        cross_entropy=-plain.gather(-1, tokens[..., None]).squeeze(-1),
        correct=(likeliest == tokens).float(),
        likeliest=likeliest,
    )


@dataclass(slots=True)
class Measured:
    """Sums over samples, for means over any number of them. D components."""

    loss: np.ndarray  # (D,) of all tokens of a component
    cross_entropy: np.ndarray  # (D,)
    correct: np.ndarray  # (D,)
    error: np.ndarray  # (D,) absolute difference of actions, in the environment's units
    value_error: np.ndarray  # (1,) squared
    tokens: np.ndarray  # (1,) of one component
    samples: np.ndarray  # (1,)

    @classmethod
    def nothing(cls) -> Measured:
        """Return sums over no samples."""
        sizes = [1 if field.name in ("value_error", "tokens", "samples") else len(COMPONENTS) for field in fields(cls)]
        return cls(*(np.zeros(size) for size in sizes))

    @classmethod
    def of(cls, terms: TokenTerms, error: np.ndarray, value_error: float) -> Measured:
        """Return the sums over a micro-batch.

        Args:
            terms: (B, A).
            error: (B, K, D) absolute differences.
            value_error: summed over the samples.
        """
        num_samples, chunk_size, num_components = error.shape

        def per_component(values: Tensor) -> np.ndarray:
            summed: np.ndarray = values.detach().double().view(-1, num_components).sum(dim=0).cpu().numpy()
            return summed

        return cls(
            loss=per_component(terms.loss),
            cross_entropy=per_component(terms.cross_entropy),
            correct=per_component(terms.correct),
            error=error.astype(np.float64).sum(axis=(0, 1)),
            value_error=np.array([value_error]),
            tokens=np.array([float(num_samples * chunk_size)]),
            samples=np.array([float(num_samples)]),
        )

    def __iadd__(self, other: Measured) -> Measured:
        for field in fields(self):
            getattr(self, field.name).__iadd__(getattr(other, field.name))
        return self

    def flat(self) -> dict[str, float]:
        """Return every number by a name, to be summed over ranks."""
        return {
            f"{field.name}.{place}": float(value)
            for field in fields(self)
            for place, value in enumerate(getattr(self, field.name))
        }

    @classmethod
    def from_flat(cls, numbers: dict[str, float]) -> Measured:
        """Return the sums from `flat`."""
        parts: dict[str, list[float]] = {field.name: [] for field in fields(cls)}
        for name, value in numbers.items():
            parts[name.partition(".")[0]].append(value)
        return cls(**{name: np.array(values) for name, values in parts.items()})

    def metrics(self, group: str, *, with_value: bool) -> dict[str, float]:
        """Return means, over all components and for each; nothing if there were no samples.

        Args:
            group: first part of the metrics' names.
            with_value: the value is trained.
        """
        tokens, samples = float(self.tokens[0]), float(self.samples[0])
        if not samples:
            return {}
        means = {
            "cross_entropy": self.cross_entropy / tokens,
            "accuracy": self.correct / tokens,
            "l1": self.error / tokens,
        }
        found = {f"{group}/loss": float(self.loss.mean()) / tokens}
        for name, values in means.items():
            found[f"{group}/{name}"] = float(values.mean())
            found |= {f"{group}/{name}_{part}": float(it) for part, it in zip(COMPONENTS, values, strict=True)}
        return found | ({f"{group}/value_loss": float(self.value_error[0]) / samples} if with_value else {})
