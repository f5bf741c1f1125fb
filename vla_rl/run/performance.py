"""Rates, shares of time, utilisation and peak memory of a run's processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vla_rl.ipc.counters import CellCounters
from vla_rl.policies.devices import PeakMemory
from vla_rl.run.training import TrainingRun
from vla_rl.run.utilisation import bf16_peak, utilisation

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Moment:
    """Counters at one moment; rates are differences of two."""

    seconds: float
    env_steps: int
    decisions: int
    consumed: int
    learner_wait: float
    env_wait: float
    env_held_back: float
    inference_busy: float
    batches: int
    served: int

    @classmethod
    def of(cls, run: TrainingRun) -> Moment:
        """Return this rank's counters now."""
        counters, clocks = run.memory.counters, run.clocks
        return cls(
            seconds=clocks.seconds,
            env_steps=clocks.env_steps,
            decisions=clocks.decisions,
            consumed=run.totals.consumed,
            learner_wait=run.waits.for_experience,
            env_wait=float(counters.total("env_worker_wait_seconds")),
            env_held_back=float(counters.total("env_worker_held_back_seconds")),
            inference_busy=float(counters.total("inference_busy_seconds")),
            batches=int(counters.total("inference_batches")),
            served=int(counters.total("inference_decisions")),
        )


def rates(before: Moment, now: Moment, *, num_env_workers: int) -> dict[str, float]:
    """Return rates and shares of time between two moments of one rank."""
    seconds = max(now.seconds - before.seconds, 1e-9)
    return {
        "perf/env_steps_per_s": (now.env_steps - before.env_steps) / seconds,
        "perf/decisions_per_s": (now.decisions - before.decisions) / seconds,
        "perf/learner_samples_per_s": (now.consumed - before.consumed) / seconds,
        "perf/learner_wait_fraction": min(1.0, (now.learner_wait - before.learner_wait) / seconds),
        "perf/env_wait_fraction": min(1.0, (now.env_wait - before.env_wait) / seconds / num_env_workers),
        "perf/env_held_back_fraction": min(1.0, (now.env_held_back - before.env_held_back) / seconds / num_env_workers),
        "perf/inference_batch_size": (now.served - before.served) / max(1, now.batches - before.batches),
    }


def utilisation_metrics(
    before: Moment, now: Moment, *, update_flops: float, inference_flops: float, peak: float | None
) -> dict[str, float]:
    """Return model FLOPs utilisation of learner and inference worker while not waiting; none without a known peak."""
    if peak is None:
        return {}
    learner = utilisation(
        decisions=now.consumed - before.consumed,
        flops_each=update_flops,
        seconds=(now.seconds - before.seconds) - (now.learner_wait - before.learner_wait),
        peak=peak,
    )
    inference = utilisation(
        decisions=now.served - before.served,
        flops_each=inference_flops,
        seconds=now.inference_busy - before.inference_busy,
        peak=peak,
    )
    return {"perf/learner_mfu": learner, "perf/inference_mfu": inference}


def memory_metrics(learner: PeakMemory | None, counters: CellCounters, *, estimated: int) -> dict[str, float]:
    """Return peak GPU memory of learner and inference worker, beside the estimate (bytes); none on a CPU."""
    if learner is None:
        return {}
    in_bytes = {
        "memory/learner_allocated": learner.allocated,
        "memory/learner_reserved": learner.reserved,
        "memory/inference_allocated": counters.total("inference_peak_allocated"),
        "memory/inference_reserved": counters.total("inference_peak_reserved"),
        "memory/estimated": estimated,
    }
    return {name: value / GIB for name, value in in_bytes.items()}


def peak_of(run: TrainingRun) -> float | None:
    """Return the peak FLOP/s of the run's GPU if they are known and the policy computes in bfloat16."""
    plan = run.plan
    if plan.device_kind != "cuda" or plan.recipe.learner.precision != "bf16" or not plan.policy.update_flops:
        return None
    return bf16_peak(torch.cuda.get_device_name(plan.device))
