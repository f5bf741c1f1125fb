"""Server that answers waiting slots with decisions: the same object in a process or in serial mode."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vla_rl.errors import RunFailureError
from vla_rl.ipc.slots import ExchangeSlots
from vla_rl.policies.devices import PeakMemory, free_failed_pass, is_out_of_memory, peak_memory
from vla_rl.policies.kind import NonFiniteOutputError
from vla_rl.types import Acted, Policy, PolicyInputs, TokenArray
from vla_rl.workers.compiled import CompiledForward, cuda_graph_skips

log = logging.getLogger(__name__)


class Mailbox(Protocol):
    """Reading side of the weight mailbox (`vla_rl.ipc.mailbox`)."""

    def latest_version(self) -> int:
        """Return the newest published version, -1 before the first."""
        ...

    def read(self, into: Mapping[str, torch.Tensor]) -> int:
        """Copy the newest snapshot into the given tensors; return its version."""
        ...


class InferenceServer:
    """Server of one policy for all env slots of a cell.

    `adopt()` loads newer weights, if any, between two batches; `serve(slots)` answers waiting slots. Every decision is
    marked with the version that made it.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        trainable: Mapping[str, torch.Tensor],
        mailbox: Mailbox,
        slots: ExchangeSlots,
        device: str,
        greedy: bool,
        seed: int | None,
        max_batch: int,
        bf16: bool = False,
        compiled: CompiledForward | None = None,
    ) -> None:
        """Create the server; it can answer only after an `adopt` that found weights.

        Args:
            policy: the module, in evaluation mode, its frozen tensors in place.
            trainable: the tensors of `policy` that the mailbox fills, by parameter name.
            mailbox: published weights.
            slots: exchange arrays of the cell.
            device: torch device of `policy`.
            greedy: take the most likely tokens; log-probabilities are those of drawing them.
            seed: seed of the sampling, with one stream of random numbers for all decisions; None: each decision is
                drawn with the seed in its slot, so that it does not depend on which others are decided with it.
            max_batch: decisions per forward pass at most; fewer once the device has run out of memory.
            bf16: run the forward pass under bfloat16 autocast, as the learner does.
            compiled: the policy's forward pass at fixed batch sizes, to use in place of the policy.
        """
        self._policy = policy
        self._compiled = compiled
        self._max_batch = max_batch
        self._trainable = dict(trainable)
        self._mailbox = mailbox
        self._slots = slots
        self._device = device
        self._greedy = greedy
        self._generator = None if seed is None else torch.Generator(device=device).manual_seed(seed)
        self._bf16 = bf16
        self.version = -1
        self.batches = 0
        self.decisions = 0
        self.busy_seconds = 0.0
        self.adopt_seconds = 0.0  # duration of the last one

    def adopt(self) -> bool:
        """Load the newest weights if they are newer than those in use."""
        if self._mailbox.latest_version() <= self.version:
            return False
        began = time.monotonic()
        self.version = self._mailbox.read(self._trainable)  # complete when it returns, also on a GPU
        self.adopt_seconds = time.monotonic() - began
        return True

    @property
    def peak_memory(self) -> PeakMemory | None:
        """Return this process's peak memory use on its GPU; None on a CPU."""
        return peak_memory(self._device)

    def serve(self, slot_ids: Sequence[int]) -> None:
        """Decide for the given slots and write the outputs back, in one forward pass or several of `max_batch`.

        If the device runs out of memory, batches are half as large from then on. A batch takes all waiting slots, with
        prompts of any length: the longest pads the others by a few of about 300 tokens, whereas a pass per length would
        read all weights several times.

        Raises:
            RuntimeError: no weights were adopted yet, or the policy gives non-finite outputs.
            torch.cuda.OutOfMemoryError: memory does not suffice for a single decision.
        """
        if self.version < 0:
            raise RuntimeError("no weights were published before the first decision was asked for")
        began = time.monotonic()
        waiting = np.asarray(slot_ids, dtype=np.int64)
        while len(waiting):
            part = waiting[: self._max_batch]
            if self._has_memory_for(part):
                waiting = waiting[len(part) :]
        self.batches += 1
        self.decisions += len(slot_ids)
        self.busy_seconds += time.monotonic() - began

    def warm_up(self) -> None:
        """Compile every batch size, a minute or more each, before a decision is requested. Writes no outputs."""
        with cuda_graph_skips() as reasons:
            for size in () if self._compiled is None else self._compiled.sizes:
                for _ in range(2):  # the graph is recorded, or skipped, after a first run
                    self._network(self._gather(np.zeros(size, dtype=np.int64)))
                log.info("compiled for batches of %d", size)
        for reason in reasons:
            log.warning("rollout.compile: computing without CUDA graphs, at least in part: %s", reason)

    def _has_memory_for(self, index: NDArray[np.int64]) -> bool:
        """Decide, or halve the batches if memory does not suffice."""
        try:
            self._decide(index)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(index) == 1:
                error.add_note(
                    "one decision at a time is too much for the inference worker: lower learner.micro_batch and raise "
                    "learner.accumulation by the same factor, which leaves it more of the device"
                )
                raise
            self._max_batch = len(index) // 2
        else:
            return True
        free_failed_pass(cast(nn.Module, self._policy))
        log.warning("out of memory: at most %d decisions per batch from now on (rollout.max_batch)", self._max_batch)
        return False

    def _decide(self, index: NDArray[np.int64]) -> None:
        try:
            acted = self._policy.act(
                self._gather(index),
                greedy=self._greedy,
                generator=self._random_source(index),
                with_behavior=self._slots.logits is not None,
                network=self._network,
            )
        except NonFiniteOutputError as error:
            raise RunFailureError(
                f"policy version {self.version} gives non-finite outputs: lower optimizer.policy_lr, "
                "optimizer.weight_decay or optimizer.max_grad_norm"
            ) from error
        self._scatter(index, acted)

    def _network(self, inputs: PolicyInputs) -> tuple[torch.Tensor, ...]:
        """Run the network's pass, compiled if it is, in the run's precision and without gradients."""
        with torch.inference_mode(self._compiled is None), self._autocast():
            return (self._compiled or self._policy.network)(inputs)

    def _random_source(self, index: NDArray[np.int64]) -> torch.Generator | list[torch.Generator] | None:
        if self._greedy or self._generator is not None:
            return self._generator
        seeds = self._slots.sampling_seed[index].tolist()
        assert min(seeds) >= 0, "neither the jobs nor the cell have a seed"
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def _gather(self, index: NDArray[np.int64]) -> PolicyInputs:
        """Copy the slots' observations to the device; fancy indexing makes a copy that is independent of the slots."""

        def take(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array[index]).to(self._device, non_blocking=True)

        slots = self._slots
        buckets = tuple(np.unique(self._policy.bucket_of(slots.task_index[index])).tolist())
        return PolicyInputs(take(slots.frames), take(slots.state), take(slots.task_index), buckets=buckets)

    def _scatter(self, index: NDArray[np.int64], acted: Acted) -> None:
        slots = self._slots
        chosen: TokenArray = acted.tokens.cpu().numpy().astype(self._policy.action_spec.token_dtype)  # type: ignore[assignment]
        slots.tokens[index] = chosen
        slots.logprobs[index] = acted.logprobs.cpu().numpy()
        slots.value[index] = acted.values.cpu().numpy()
        slots.policy_version[index] = self.version
        slots.actions[index] = self._policy.decode_tokens(chosen, slots.task_index[index])
        if slots.logits is not None and acted.behavior is not None:
            slots.logits[index] = acted.behavior.cpu().numpy()

    def _autocast(self) -> AbstractContextManager[object]:
        if not self._bf16:
            return nullcontext()
        return torch.autocast(device_type=torch.device(self._device).type, dtype=torch.bfloat16)
