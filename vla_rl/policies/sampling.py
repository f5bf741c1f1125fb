"""Sampling of action tokens and their log-probabilities, in float32 throughout.

The inference worker and the learner use these same functions, so that behaviour and current log-probabilities differ
only where the weights do. The temperature divides the logits before the log-softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (..., V) in float32 of the policy at a temperature > 0."""
    if temperature <= 0.0:
        raise ValueError(f"temperature must be above 0, found {temperature}; ask for greedy=True to take the argmax")
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (...) of integer tokens (...) under logits (..., V)."""
    return _gather(scaled_log_softmax(logits, temperature), tokens.long())


def sample_tokens(
    logits: Tensor, temperature: float, generator: torch.Generator | None = None, greedy: bool = False
) -> tuple[Tensor, Tensor]:
    """Draw tokens (...) int64 from logits (..., V); returns them with their float32 log-probabilities (...).

    Greedy tokens are the argmax (the lowest index of equals); their log-probabilities are at the same temperature.
    """
    logprobs = scaled_log_softmax(logits, temperature)
    if greedy:
        tokens = logprobs.argmax(dim=-1)
    else:
        flat = logprobs.exp().reshape(-1, logprobs.shape[-1])
        tokens = torch.multinomial(flat, 1, generator=generator).reshape(logprobs.shape[:-1])
    return tokens, _gather(logprobs, tokens)


def _gather(logprobs: Tensor, tokens: Tensor) -> Tensor:
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
