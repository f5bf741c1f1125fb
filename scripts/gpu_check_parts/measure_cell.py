"""The program's own cell and learner, as the recipe `libero_spatial_gipo` has them, around invented environments."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from gpu_check_parts.invented import build_invented
from gpu_check_parts.measuring import GIB, CardPeak, forget, on_gpu, peak_gib
from gpu_check_parts.network import matrix_tflops
from gpu_check_parts.record import Record, Setting
from gpu_check_parts.tasks import TASKS
from vla_rl.envs.kind import EnvPlan
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.run.estimate import estimate_memory
from vla_rl.run.performance import Moment, rates
from vla_rl.run.plan import TrainingPlan, plan_policy, resolve_device, training_plan
from vla_rl.run.training import TrainingRun
from vla_rl.types import SegmentBatch, TaskInfo

RECIPE = "libero_spatial_gipo"
STEP_SECONDS = 0.02  # of a control step: 10 workers of 2 environments make 62 decisions/s, as LIBERO's simulators might
HORIZON = 220
UPDATES = 5
WORKSPACES = 256 << 20  # bytes that torch keeps for its matrix library, about 32 MiB for each thread that multiplied
CLOSE_S = 25.0  # kept for the end of the cell
KEPT = ("ratio/", "policy_lag/", "perf/", "system/", "memory/", "learner/micro_batches", "learner/grad_norm")
REAL = ("replay.capacity=4000", "replay.min_decisions=504")
SMALL = (
    "learner.accumulation=2", "replay.segment_length=4", "replay.capacity=512", "replay.min_decisions=16",
    "rollout.num_workers=1", "rollout.envs_per_worker=2", "rollout.max_batch=2", "rollout.max_wait_ms=5.0",
)  # fmt: skip
ON_CPU = ("policy.dtype=float32", "learner.precision=fp32")


def measure(record: Record, setting: Setting) -> None:
    """Train for some updates and count."""
    ends_at = time.monotonic() + setting.limit_s - CLOSE_S
    plan = make_plan(setting)
    estimate = estimate_memory(plan, num_ranks=1)
    record.put("estimate_gib", estimate.gpu / GIB if on_gpu() else None)
    folder = setting.scratch / "run"
    before = allocated()
    with CardPeak() as card:
        began = time.monotonic()
        with TrainingRun(plan, folder, resume_from=None, rank=0, num_ranks=1) as run:
            record.put("setup_s", time.monotonic() - began)
            train(record, run, ends_at)
            record.put("peak_gib", peaks(run, card))
            own = run.memory.counters.get("inference_own_frozen")
            record.check("one copy of the frozen weights", not own, "the inference worker loaded its own")
            record.put("restarts", run.cell.restarts)
            if record.figures["rates"]:
                record.put("utilisation", utilisation(run, record.figures["rates"], setting))
    log = folder / "logs" / "inference_worker.log"
    record.put("inference_log", log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    del run
    forget()
    lost = allocated() - before
    record.put("gib_lost", lost / GIB)
    record.check(
        "memory comes back when the cell ends", lost <= WORKSPACES, f"{lost / GIB:.2f} GiB are still allocated"
    )
    record.check("env workers are not restarted", record.figures["restarts"] == 0, f"{record.figures['restarts']}")
    updates = len(record.figures["updates"])
    record.check("updates are made", updates > 1, f"{updates} update(s) before the time was up")


def make_plan(setting: Setting) -> TrainingPlan:
    """The recipe with other environments, and with what the size of this check asks for."""
    overrides = [f"policy.checkpoint={setting.checkpoint}", "policy.profile=simplevla", "logging.tensorboard=false"]
    overrides += REAL if setting.size == "7b" else SMALL
    if setting.image_size is not None:
        overrides.append(f"policy.image_size={setting.image_size}")
    if not on_gpu():
        overrides += ON_CPU
    recipe = load_recipe(find_recipe(RECIPE), overrides)
    tasks = tuple(TaskInfo("libero_spatial", number, f"task_{number}", text) for number, text in enumerate(TASKS))
    where = resolve_device(recipe.setup.runtime.device)
    policy = plan_policy(recipe.setup, tasks=tasks, draw_on=where)
    assert policy.transform is not None
    real = setting.size == "7b"
    make = partial(
        build_invented,
        num_images=policy.observation_spec.num_images,
        size=policy.transform.input_size,
        horizon=HORIZON if real else 48,
        step_seconds=STEP_SECONDS if real else 0.0,
    )
    env = EnvPlan(
        tasks=tasks,
        builders=tuple(partial(make, task=task) for task in tasks),
        num_init_states=(None,) * len(tasks),
        horizon=HORIZON if real else 48,
        deviations=("invented environments",),
        simulator=None,
    )
    return training_plan(recipe, env=env, policy=policy, device=where)


def peaks(run: TrainingRun, card: CardPeak) -> dict[str, Any] | None:
    """GiB at most: of the learner, of the inference worker, and of the whole card; None on a CPU."""
    if not on_gpu():
        return None
    counters = run.memory.counters
    inference = {name: counters.get(f"inference_peak_{name}") / GIB for name in ("allocated", "reserved")}
    return {"learner": peak_gib(), "inference": inference, "card": card.peak / GIB, "card_before": card.before / GIB}


def train(record: Record, run: TrainingRun, ends_at: float) -> None:
    """Some updates, each with its times and metrics; rates between the first and the last."""
    record.put("updates", [])
    record.put("rates", {})
    run.start()
    began = time.monotonic()
    first: Moment | None = None
    updates: list[dict[str, Any]] = []
    while len(updates) < UPDATES:
        start = time.monotonic()
        batch = run.wait_for_batch(lambda: time.monotonic() > ends_at)
        if batch is None:
            break
        waited = time.monotonic() - start
        if first is None:
            record.put("first_batch_s", time.monotonic() - began)
            forget()
        updates.append({"wait_s": waited, **update(run, batch)})
        record.put("updates", updates)
        now = Moment.of(run)
        if first is None:
            first = now
        else:
            record.put("rates", rates(first, now, num_env_workers=run.plan.recipe.rollout.num_workers))
        share = now.inference_busy / max(1e-9, time.monotonic() - began)
        record.put("inference", {"busy_share": share, "batches": now.batches, "decisions": now.served})


def update(run: TrainingRun, batch: SegmentBatch) -> dict[str, Any]:
    """One update and its publication."""
    began = time.monotonic()
    metrics = run.update(batch)
    seconds = time.monotonic() - began
    run.publish_if_due()
    row: dict[str, Any] = {
        "update_s": seconds,
        "publish_ms": 1e3 * run.waits.last_publish,
        "decisions": int(batch.mask.sum()),
    }
    row["seconds"] = dict(run.learner.seconds)
    return row | {name: value for name, value in metrics.items() if name.startswith(KEPT)}


def utilisation(run: TrainingRun, measured: dict[str, float], setting: Setting) -> dict[str, float]:
    """The work that an update needs and that of acting, as shares of the matrix rate.

    The pass for values is not counted, because an update can do without it.
    """
    policy = run.plan.policy
    rate = 1e12 * matrix_tflops(real=setting.size == "7b")
    return {
        "training": policy.update_flops * measured["perf/learner_samples_per_s"] / rate,
        "acting": policy.inference_flops * measured["perf/decisions_per_s"] / rate,
    }


def allocated() -> int:
    """Bytes that torch has handed out in this process on the GPU."""
    return torch.cuda.memory_allocated() if on_gpu() else 0
