"""Answers waiting slots with decisions: the same object in a process or in serial mode."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vla_rl.ipc.slots import ExchangeSlots
from vla_rl.rl.distributions import distribution_of
from vla_rl.types import Policy, PolicyInputs, TokenArray


class Mailbox(Protocol):
    """The reading side of the weight mailbox (`vla_rl.ipc.mailbox`)."""

    def latest_version(self) -> int:
        """Newest published version, -1 before the first."""
        ...

    def read(self, into: Mapping[str, torch.Tensor]) -> int:
        """Copy the newest snapshot into the given tensors; its version."""
        ...


class InferenceServer:
    """One policy that serves all env slots of a cell.

    `adopt()` between two batches takes newer weights over if there are any; `serve(slots)` answers waiting slots. Every
    decision is stamped with the version that made it.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        trainable: Mapping[str, torch.Tensor],
        mailbox: Mailbox,
        slots: ExchangeSlots,
        device: str,
        temperature: float,
        greedy: bool,
        seed: int,
        bf16: bool = False,
    ) -> None:
        """Create the server; it answers only after the first `adopt` that found weights.

        Args:
            policy: the module, in evaluation mode, its frozen tensors in place.
            trainable: the tensors of `policy` that the mailbox fills, by parameter name.
            mailbox: published weights.
            slots: exchange arrays of the cell.
            device: torch device of `policy`.
            temperature: divides the logits before sampling.
            greedy: take the most likely token; log-probabilities are still those of the policy at `temperature`.
            seed: of the sampling.
            bf16: run the forward pass under bfloat16 autocast, as the learner does.
        """
        self._policy = policy
        self._trainable = dict(trainable)
        self._mailbox = mailbox
        self._slots = slots
        self._device = device
        self._temperature = temperature
        self._greedy = greedy
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._bf16 = bf16
        self._distribution = distribution_of(policy.action_spec.num_bins)
        self.version = -1
        self.batches = 0
        self.decisions = 0
        self.busy_seconds = 0.0

    def adopt(self) -> bool:
        """Take the newest weights over if they are newer than those in use."""
        if self._mailbox.latest_version() <= self.version:
            return False
        self.version = self._mailbox.read(self._trainable)
        return True

    def serve(self, slot_ids: Sequence[int]) -> None:
        """Decide for the given slots in one forward pass and write the outputs back.

        Raises:
            RuntimeError: if no weights were adopted yet, or the policy gives a non-finite logit.
        """
        if self.version < 0:
            raise RuntimeError("no weights were published before the first decision was asked for")
        began = time.monotonic()
        index = np.asarray(slot_ids, dtype=np.int64)
        with torch.inference_mode(), self._autocast():
            output = self._policy(self._gather(index))
        logits, values = output.logits.float(), output.values.float()
        if not bool(torch.isfinite(logits).all()):
            raise RuntimeError(f"policy version {self.version} gives non-finite logits")
        tokens, logprobs = self._distribution.sample(
            logits, self._temperature, generator=self._generator, greedy=self._greedy
        )
        self._scatter(index, tokens, logprobs, values, logits)
        self.batches += 1
        self.decisions += len(index)
        self.busy_seconds += time.monotonic() - began

    def _gather(self, index: NDArray[np.int64]) -> PolicyInputs:
        """Copy the slots' observations to the device; fancy indexing makes the copy that decouples them."""

        def take(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array[index]).to(self._device, non_blocking=True)

        slots = self._slots
        buckets = tuple(np.unique(self._policy.bucket_of(slots.task_index[index])).tolist())
        return PolicyInputs(take(slots.frames), take(slots.state), take(slots.task_index), buckets=buckets)

    def _scatter(
        self,
        index: NDArray[np.int64],
        tokens: torch.Tensor,
        logprobs: torch.Tensor,
        values: torch.Tensor,
        logits: torch.Tensor,
    ) -> None:
        slots = self._slots
        chosen: TokenArray = tokens.cpu().numpy().astype(self._policy.action_spec.token_dtype)  # type: ignore[assignment]
        slots.tokens[index] = chosen
        slots.logprobs[index] = logprobs.cpu().numpy()
        slots.value[index] = values.cpu().numpy()
        slots.policy_version[index] = self.version
        slots.actions[index] = self._policy.decode_tokens(chosen, slots.task_index[index])
        if slots.logits is not None:
            slots.logits[index] = self._distribution.parameters(logits, self._temperature).cpu().numpy()

    def _autocast(self) -> AbstractContextManager[object]:
        if not self._bf16:
            return nullcontext()
        return torch.autocast(device_type=torch.device(self._device).type, dtype=torch.bfloat16)
