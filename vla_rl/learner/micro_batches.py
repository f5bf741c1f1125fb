"""Updates that are cut into smaller micro-batches after running out of memory, on all ranks alike."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from vla_rl.learner.engine import Engine
from vla_rl.policies.devices import free_failed_pass, is_out_of_memory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class MicroBatched:
    """Base of what makes updates in micro-batches.

    Args:
        engine: carries out the updates.
        num_micro_batches: parts that an update is cut into on each rank; more after running out of memory.
        what: one element of a batch, in words.
    """

    def __init__(self, engine: Engine, *, num_micro_batches: int, what: str) -> None:
        self.num_micro_batches = num_micro_batches
        self._engine = engine
        self._what = what

    def _with_memory(self, work: Callable[[int], Result], *, most: int) -> Result:
        """Run `work(micro-batches)`; if a rank runs out of memory, all restart with twice as many from then on.

        Args:
            work: of this rank.
            most: elements of this rank's batch: more parts than these would be empty.

        Raises:
            torch.cuda.OutOfMemoryError: one element at a time is still too much, or the ranks meet inside `work`.
        """
        while True:
            result, shortage = self._attempt(work)
            short = shortage is not None
            hopeless = short and not self._can_keep_less and self._num_parts >= most
            union = self._engine.collectives.sum_over_ranks({"short": float(short), "hopeless": float(hopeless)})
            if result is not None and not union["short"]:
                return result
            if union["hopeless"]:
                raise torch.cuda.OutOfMemoryError(
                    f"{shortage or 'another rank ran out of memory'}. One {self._what} at a time is still too much: "
                    "free the device, or set policy.gradient_checkpointing=true, policy.dtype=bfloat16 and "
                    "learner.precision=bf16"
                )
            result = None  # it may hold the activations of a rank with sufficient memory
            self._take_less_memory()

    def _attempt(self, work: Callable[[int], Result]) -> tuple[Result | None, str | None]:
        """Return the result, or the error's message. The error itself would keep all activations in its traceback."""
        try:
            return work(self._num_parts), None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if not self._engine.can_retry:
                error.add_note(
                    f"DeepSpeed's ranks wait for each other in every micro-batch, so {self.num_micro_batches} stay "
                    "what they are: lower learner.micro_batch and raise learner.accumulation by the same factor, or "
                    "use learner.strategy=ddp, which then makes micro-batches smaller by itself"
                )
                raise
            return None, str(error)

    @property
    def _num_parts(self) -> int:
        """Return the micro-batches of this update."""
        return self.num_micro_batches

    @property
    def _can_keep_less(self) -> bool:
        """Return whether something is kept in memory that can be given up before micro-batches become smaller."""
        return False

    def _keep_less(self) -> None:
        """Give that up, for good."""

    def _take_less_memory(self) -> None:
        """Prepare another attempt with less memory: on all ranks alike, as they are asked alike."""
        self._engine.discard_gradients()
        free_failed_pass(self._engine.policy)
        if self._can_keep_less:
            self._keep_less()
            return
        self.num_micro_batches *= 2
        logger.warning(
            "out of memory: the batch is cut into %d micro-batches from now on; set learner.accumulation to that and "
            "learner.micro_batch accordingly to avoid the first failure",
            self.num_micro_batches,
        )
