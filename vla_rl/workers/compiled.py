"""Forward pass of a policy through torch.compile, at a few fixed batch sizes; on a GPU with CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vla_rl.types import Policy, PolicyInputs

# Loggers on which torch reports skipped CUDA graphs: the former up to 2.11, the latter since.
_SKIP_LOGS = ("torch._inductor.cudagraph_utils.__perf_hints", "torch._inductor.cudagraph_utils.__cudagraphs")
MAX_SIZES = 4  # each is compiled separately, which takes minutes with 7B parameters; torch gives up after 8


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the sizes to compile for, ascending: `max_batch`, its half (rounded up), ..., at most `MAX_SIZES`.

    A batch is padded to the next size, so it is at most doubled.
    """
    sizes = [max_batch]
    while sizes[-1] > 1 and len(sizes) < MAX_SIZES:
        sizes.append((sizes[-1] + 1) // 2)
    return tuple(reversed(sizes))


class _Collector(logging.Handler):
    """Log handler that keeps each distinct text once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts:
            self.texts.append(text)


@contextmanager
def cuda_graph_skips() -> Iterator[list[str]]:
    """Collect torch's reasons for skipping CUDA graphs, each once, because its own logs of them are often disabled."""
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in _SKIP_LOGS]
    before = [(logger.level, logger.disabled) for logger in loggers]
    for logger in loggers:
        logger.addHandler(collector)
        logger.setLevel(logging.WARNING)
        logger.disabled = False
    try:
        yield collector.texts
    finally:
        for logger, (level, disabled) in zip(loggers, before, strict=True):
            logger.removeHandler(collector)
            logger.setLevel(level)
            logger.disabled = disabled


class CompiledForward:
    """Forward pass without gradients. The first call at a size compiles it.

    Args:
        policy: in evaluation mode, its parameters in place: later values must be copied into the same memory, because a
            CUDA graph reads from addresses.
        max_batch: largest batch that will be requested.
        backend: backend of torch.compile; tests use those that generate no code.
    """

    def __init__(self, policy: Policy, *, max_batch: int, backend: str = "inductor") -> None:
        self.sizes = batch_sizes(max_batch)

        def forward(frames: Tensor, state: Tensor, task_index: Tensor) -> tuple[Tensor, ...]:
            # No buckets: any prompt may occur, so that each size has one shape.
            return tuple(policy.network(PolicyInputs(frames, state, task_index)))

        # "reduce-overhead" means CUDA graphs, which launch a whole forward pass at once instead of kernel by kernel.
        mode = "reduce-overhead" if backend == "inductor" else None
        self._forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    @torch.no_grad()  # torch.compile supports this better than inference_mode
    def __call__(self, inputs: PolicyInputs) -> tuple[Tensor, ...]:
        """Compute the policy's output. Autocast, where it is on, is compiled in."""
        rows = len(inputs.task_index)
        missing = next(size for size in self.sizes if size >= rows) - rows
        filled = (
            torch.cat([each, each[-1:].expand(missing, *each.shape[1:])])
            for each in (inputs.frames, inputs.state, inputs.task_index)
        )
        torch.compiler.cudagraph_mark_step_begin()
        # Copies, because the next replay of the graph overwrites its outputs.
        return tuple(output[:rows].clone() for output in self._forward(*filled))
