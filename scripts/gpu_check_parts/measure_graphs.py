"""Inference through `rollout.compile`: CUDA graphs, what they skip and why, and whether they follow new weights.

First the tiny network, which compiles in seconds; then the real one at a single batch size, which takes minutes.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
import torch._inductor.cudagraph_utils  # its loggers have to be there
from torch._dynamo.utils import counters

from gpu_check_parts.measuring import device, on_gpu, once, seconds_of
from gpu_check_parts.network import batch_of, build, difference, forward, log_probabilities
from gpu_check_parts.record import Record, Setting
from vla_rl.workers.compiled import CompiledForward

BATCH = 16
CLOSE = 1e-2  # of logits: compiled kernels round differently
SKIPPING = "skipping cudagraph"


class Reasons(logging.Handler):
    """Keeps what torch says of CUDA graphs, each sentence once."""

    def __init__(self) -> None:
        """Listen to torch's loggers of that; where another release calls them otherwise, nothing is heard."""
        super().__init__()
        self.found: list[str] = []
        torch._logging.set_logs(perf_hints=True, cudagraphs=True)  # type: ignore[attr-defined]
        for name in list(logging.root.manager.loggerDict):
            if name.endswith(("__cudagraphs", "__perf_hints")):
                logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        text = record.getMessage().strip()[:300]
        if SKIPPING in text.lower() and text not in self.found:
            self.found.append(text)


def measure(record: Record, setting: Setting) -> None:
    """Compile and compare."""
    reasons = Reasons()
    for size in dict.fromkeys(("tiny", setting.size)):
        record.put(size, compiled(replace(setting, size=size), reasons, batch=BATCH if size == "7b" else 2))
        found = record.figures[size]
        record.check(f"{size}: compiled inference follows new weights", found["follows"], found["follows_found"])
        if on_gpu():
            skipped = found["skips"]
            record.check(f"{size}: CUDA graphs are used", not skipped, f"{skipped} skipped: {found['skip_reasons']}")


def compiled(setting: Setting, reasons: Reasons, *, batch: int) -> dict[str, Any]:
    """Time of compiling, time of a pass beside the plain one, distance from it."""
    policy = build(setting).eval()
    inputs = batch_of(policy, batch, mixed=True)
    run = CompiledForward(policy, max_batch=batch, **({} if on_gpu() else {"backend": "aot_eager"}))
    run.sizes = (batch,)
    counters.clear()
    reasons.found.clear()
    enabled = on_gpu()

    def call() -> torch.Tensor:
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=enabled):
            return run(inputs)[0]

    with torch.no_grad():
        plain = forward(policy, inputs)
        plain_ms = 1e3 * seconds_of(lambda: forward(policy, inputs))
    compile_s = once(call)
    before = call()
    one, other = log_probabilities(plain, batch), torch.log_softmax(before, dim=-1)
    tokens = torch.distributions.Categorical(logits=one).sample()
    milliseconds = 1e3 * seconds_of(call)
    follows, found = follows_new_weights(policy, call, before)
    return {
        "batch": batch,
        "compile_s": compile_s,
        "plain_ms": plain_ms,
        "ms": milliseconds,
        "noise": difference(one, other, tokens),
        "skips": int(counters["inductor"].get("cudagraph_skips", 0)),
        "skip_reasons": list(reasons.found),
        "follows": follows,
        "follows_found": found,
    }


def follows_new_weights(policy: Any, call: Any, before: torch.Tensor) -> tuple[bool, str]:  # noqa: ANN401
    """Logits are linear in the action rows, so rows of half the size give half the logits."""
    with torch.no_grad():
        policy.action_rows.mul_(0.5)
    after = call()
    gap = float((after - 0.5 * before).abs().max())
    return gap < CLOSE, f"half the action rows give half the logits, but for {gap:.2g}"
