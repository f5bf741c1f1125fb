"""What the ranks of a multi-process test run. Each function returns something that JSON can carry."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import learner_fakes as fakes
import numpy as np
import torch
from accelerate.state import AcceleratorState

from vla_rl.credit import Group
from vla_rl.learner import checkpoint
from vla_rl.learner.collectives import Collectives
from vla_rl.learner.engine import Engine
from vla_rl.learner.strategies import close_process_group
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.rl.loss_weights import LossWeights

UNION = 8  # segments of all ranks together


def union_batch(index: int) -> fakes.SegmentBatch:
    return fakes.make_batch(UNION, seed=index)


def share(engine: Engine, index: int) -> fakes.SegmentBatch:
    """This rank's part of a union batch."""
    size = UNION // engine.collectives.num_ranks
    start = size * engine.collectives.rank
    return fakes.select(union_batch(index), slice(start, start + size))


def train(engine: Engine, batches: range) -> list[dict[str, float]]:
    learner = fakes.make_learner(engine, micro_batch=UNION // engine.collectives.num_ranks // 2, accumulation=2)
    return [learner.update(share(engine, index), policy_version=20 + index) for index in batches]


def one_pass(*, strategy: str, values: str) -> dict[str, Any]:
    """Three updates by running moments, of which two take one pass per micro-batch."""
    engine = fakes.make_engine(fakes.make_policy(), strategy=strategy)
    vtrace = fakes.vtrace(discount=0.9, lambda_=0.8, rho_bar=1.0, c_bar=1.0, values="acting")
    learner = fakes.make_learner(
        engine,
        targets=vtrace if values == "acting" else None,
        loss=LossWeights(value_coefficient=0.5, entropy_coefficient=0.01, advantage_moments="running"),
        micro_batch=UNION // engine.collectives.num_ranks // 2,
        accumulation=2,
    )
    metrics = [learner.update(share(engine, index), policy_version=20 + index) for index in range(3)]
    assert learner.moments.sums is not None
    return {"metrics": metrics, "weights": flat_weights(engine), "moments": learner.moments.sums.tolist()}


def groups(*, strategy: str) -> list[dict[str, Any]]:
    """An update from two groups for each aggregation; of two ranks the first has one group and the second the other."""
    results = []
    for aggregation in ("token", "trajectory", "constant"):
        AcceleratorState._reset_state()  # a process of the program has one engine in its life
        engine = fakes.make_engine(fakes.without_critic(), strategy=strategy)
        size = 4 // engine.collectives.num_ranks
        learner = fakes.make_learner(
            engine,
            targets=Group(name="group", size=2),
            loss=LossWeights(normalize_advantages=False, aggregation=aggregation),
            micro_batch=size,
            accumulation=1,
            longest_episode=5,
        )
        start = size * engine.collectives.rank
        batch = fakes.select(fakes.group_batch(lengths=(3, 1, 2, 1)), slice(start, start + size))
        results.append({"metrics": learner.update(batch, policy_version=20), "weights": flat_weights(engine)})
    return results


def described(engine: Engine) -> dict[str, Any]:
    """Where an engine stands: weights, clocks, and AdamW's own count of its steps."""
    steps = {int(entry["step"]) for entry in engine.optimizer_state().values()}
    return {"weights": flat_weights(engine), "optimizer_steps": engine.optimizer_steps, "adam_steps": sorted(steps)}


def whole_life(*, strategy: str, zero_stage: int, run_dir: str) -> dict[str, Any]:
    """Train, skip an update that one rank spoils, save, go on; then load into a second policy and go on likewise."""
    engine = fakes.make_engine(fakes.make_policy(), strategy=strategy, zero_stage=zero_stage)
    metrics = train(engine, range(3))
    trained = described(engine)
    spoiled = spoiled_update(engine)
    after_spoiled = described(engine)
    info = save(engine, Path(run_dir))
    train(engine, range(3, 5))
    uninterrupted = described(engine)
    AcceleratorState._reset_state()  # a process of the program has one engine in its life; this one gets a second
    resumed = fakes.make_engine(fakes.make_policy(seed=9), strategy=strategy, zero_stage=zero_stage)
    checkpoint.load(info, resumed)
    loaded = described(resumed)
    train(resumed, range(3, 5))
    return {
        "metrics": metrics,
        "trained": trained,
        "spoiled_metrics": spoiled,
        "after_spoiled": after_spoiled,
        "loaded": loaded,
        "uninterrupted": uninterrupted,
        "resumed": described(resumed),
    }


def spoiled_update(engine: Engine) -> dict[str, float]:
    """An update in which the last rank alone has a log-probability that is not a number."""
    learner = fakes.make_learner(engine, micro_batch=UNION // engine.collectives.num_ranks // 2, accumulation=2)
    batch = share(engine, 0)
    if engine.collectives.rank == engine.collectives.num_ranks - 1:
        logprobs = batch.behavior_logprobs.copy()
        logprobs[0, 0, 0] = np.nan
        batch = replace(batch, behavior_logprobs=logprobs)
    return learner.update(batch, policy_version=20)


def save(engine: Engine, run_dir: Path, *, fail_on_rank: int | None = None) -> checkpoint.CheckpointInfo:
    rank = engine.collectives.rank

    def write(folder: Path) -> None:
        (folder / "part.txt").write_text(f"rank {rank}")
        if rank == fail_on_rank:
            raise OSError(errno.ENOSPC, "No space left on device")

    steps = engine.optimizer_steps
    return checkpoint.save(
        run_dir,
        engine,
        progress=checkpoint.Progress(steps, env_steps=0, decisions=0, episodes=0, policy_version=0, consumed=0),
        extra={},
        writers={"replay": write},
        keep=2,
    )


def openvla_oft(*, strategy: str, zero_stage: int, precision: str, compile: str = "off") -> dict[str, Any]:
    """Two updates of the tiny OpenVLA-OFT with adapters; one rank sees all segments, two see half of them each."""
    section = OpenVLAOFTSection(
        name="openvla_oft",
        image_size=28,
        lora=LoraSection(rank=4),
        dtype="bfloat16" if precision == "bf16" else "float32",
        gradient_checkpointing=True,
    )
    tasks = ("open the drawer", "push the plate to the front of the stove")
    context = PolicyContext(seed=0, suite="libero_goal", tasks=tasks, num_images=1)
    policy = build_openvla_oft(section, context, device="cpu")
    engine = fakes.make_engine(
        policy, strategy=strategy, zero_stage=zero_stage, precision=precision, lr=1e-3, compile=compile
    )
    before = flat_weights(engine)
    size = 4 // engine.collectives.num_ranks
    learner = fakes.make_learner(engine, micro_batch=1, accumulation=size)
    segments = slice(engine.collectives.rank * size, (engine.collectives.rank + 1) * size)
    metrics = [learner.update(fakes.select(frames_batch(index), segments), policy_version=20) for index in range(2)]
    return {
        "metrics": metrics,
        "before": before,
        "after": flat_weights(engine),
        "compile_seconds": engine.compile_seconds,
    }


def flat_weights(engine: Engine) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in engine.trainable_state().items()}


def frames_batch(index: int) -> fakes.SegmentBatch:
    """Four segments with pictures, chunks of 8 x 7 tokens of 256, and prompts of two lengths."""
    generator = np.random.default_rng(index)
    plain = fakes.make_batch(4, seed=index)
    shape = plain.mask.shape
    logprobs = generator.normal(-5.5, 0.3, (*shape, 56)).astype(np.float32)
    return replace(
        plain,
        frames=generator.integers(0, 256, (4, fakes.LENGTH + 1, 1, 28, 28, 3), dtype=np.uint8),
        state=generator.normal(size=(4, fakes.LENGTH + 1, 8)).astype(np.float32),
        task_index=np.array([0, 1, 1, 0]),
        tokens=generator.integers(0, 256, (*shape, 56)).astype(np.int16),
        behavior_logprobs=logprobs,
        behavior_logits=None,
        executed=np.where(plain.mask, 8, 0).astype(np.int16),
    )


def control_plane(*, run_dir: str) -> dict[str, Any]:
    """The small collectives, a checkpoint that one rank cannot write, and one that all can."""
    engine = fakes.make_engine(fakes.make_policy(), strategy="ddp")
    ranks = engine.collectives
    results = {
        "sum": ranks.sum_over_ranks({"a": 1.0 + ranks.rank, "b": 10.0}),
        "any": [ranks.any_over_ranks(ranks.rank == 1), ranks.any_over_ranks(False)],
        "gathered": ranks.gather_over_ranks(torch.full((ranks.rank + 1, 2), ranks.rank)).tolist(),
    }
    ranks.barrier()
    try:
        save(engine, Path(run_dir), fail_on_rank=1)
    except OSError as error:
        results["error"] = str(error)
    results["left"] = sorted(path.name for path in (Path(run_dir) / "checkpoints").iterdir())
    ranks.barrier()
    info = save(engine, Path(run_dir))
    results["parts"] = [(info.rank_folder(rank, "replay") / "part.txt").read_text() for rank in range(2)]
    return results


def out_of_memory(*, limit: int) -> dict[str, Any]:
    """Three updates in which rank 1 alone has too little memory; the ranks begin with different weights."""
    rank = int(os.environ["RANK"])
    torch.manual_seed(rank)
    policy = fakes.SmallMemoryPolicy(limit=limit) if rank == 1 else fakes.FakePolicy()
    engine = fakes.make_engine(policy, strategy="ddp")
    learner = fakes.make_learner(engine, micro_batch=UNION // 2, accumulation=1)
    try:
        metrics = [learner.update(share(engine, index), policy_version=20 + index) for index in range(3)]
    except torch.cuda.OutOfMemoryError as error:
        return {"error": str(error)}
    return {"trained": described(engine), "metrics": metrics, "micro_batches": learner.num_micro_batches}


def silent_partner(*, run_dir: str, timeout_s: float, patience_s: float) -> dict[str, Any]:
    """Rank 1 never joins the collective and lives on until rank 0 has its error, at most for `patience_s`."""
    torch.distributed.init_process_group("gloo")
    collectives = Collectives(timeout_s=timeout_s)
    has_ended, began = Path(run_dir) / "rank_0_has_ended", time.monotonic()
    if collectives.rank == 1:
        while not has_ended.exists() and time.monotonic() - began < patience_s:
            time.sleep(0.05)
        return {}
    error = "no error"
    try:
        collectives.sum_over_ranks({"a": 1.0})
    except RuntimeError as raised:
        error = f"RuntimeError: {raised}"
    has_ended.touch()
    return {"error": error, "seconds": time.monotonic() - began}


def main() -> None:
    function, result, arguments = sys.argv[1:]
    torch.set_num_threads(1)
    value = globals()[function](**json.loads(arguments))
    Path(result).write_text(json.dumps(value))
    close_process_group()


if __name__ == "__main__":
    main()
