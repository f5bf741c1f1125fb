"""Run of one rank of the supervised stage: its learner, its frames, its clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_rl.learner.checkpoint import CheckpointInfo, Progress, load, save
from vla_rl.learner.engine import LogitsEngine, UpdateResult
from vla_rl.learner.optimizer import POLICY_GROUP, VALUE_GROUP
from vla_rl.policies.devices import peak_memory, use_device
from vla_rl.recipe import OptimizerSteps
from vla_rl.reporting.metrics_file import Clocks
from vla_rl.run.ranks import make_engine
from vla_rl.run.statistics_key import STATISTICS
from vla_rl.run.trained_network import NETWORK, check_network, network_record
from vla_rl.sft.demo_batches import Batch, Loader
from vla_rl.sft.frames import prepare_frames, remove_frames
from vla_rl.sft.plan import SupervisedPlan
from vla_rl.sft.samples import Rows
from vla_rl.sft.supervised_learner import SupervisedLearner

logger = logging.getLogger(__name__)

RANKS_TIMEOUT_S = 7200.0  # longest wait of one rank for another: while rank 0 evaluates, for instance
RANK_SEED_STRIDE = 1_000_003  # ranks draw dropout from seeds this far apart
GIB = 2**30
VERB = "sft"
Say = Callable[[str], None]


class SupervisedRun:
    """Everything that exists while one rank learns from demonstrations."""

    def __init__(
        self,
        plan: SupervisedPlan,
        run_dir: Path,
        *,
        resume_from: CheckpointInfo | None,
        rank: int,
        num_ranks: int,
        built: Callable[[nn.Module], None] = lambda _policy: None,
    ) -> None:
        """Build policy and engine; frames are prepared by `prepare`.

        Args:
            plan: the recipe in plain values.
            run_dir: the run's folder.
            resume_from: checkpoint with the weights, optimizer and clock to resume from.
            rank: rank of this process.
            num_ranks: ranks.
            built: called with the policy before the ranks form a group; it may raise.

        Raises:
            ValueError: the checkpoint is of another architecture or of other demonstrations.
        """
        recipe = plan.recipe
        self.plan, self.run_dir, self.rank, self.num_ranks = plan, run_dir, rank, num_ranks
        self.resumed_from = resume_from
        torch.manual_seed(recipe.seed + RANK_SEED_STRIDE * rank)
        torch.set_num_threads(plan.threads)
        use_device(plan.device)
        policy = plan.policy.build(device="cpu")
        recipe.policy.check(policy)
        built(policy)
        self.engine = make_engine(
            LogitsEngine,
            policy,
            plan.recipe.learner,
            device=plan.device_kind,
            optimizer=plan.recipe.optimizer,
            total_steps=plan.recipe.budget.optimizer_steps,
            collective_timeout_s=RANKS_TIMEOUT_S,
        )
        self.learner = SupervisedLearner(
            self.engine,
            label_sigma=recipe.loss.label_sigma,
            value_coefficient=recipe.loss.value_coefficient,
            num_micro_batches=recipe.learner.accumulation,
        )
        self.batches = 0  # that updates were made from, skipped ones included
        self._seconds_before, self._began = 0.0, time.monotonic()
        if resume_from is not None:
            self._restore(resume_from)
        self._loader: Loader | None = None
        self._stack = ExitStack()

    def __enter__(self) -> SupervisedRun:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def prepare(
        self,
        progress: Callable[[int, int], None],
        *,
        waits: Callable[[], None] = lambda: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare the frames and start the threads that load them, unless a rank is asked to stop first.

        All ranks call it together.

        Args:
            progress: called with episodes that are done, and all of this rank's.
            waits: called once, on rank 0, if another run is preparing the same frames.
            stop: whether this rank was asked to stop.

        Raises:
            DemosError: a picture cannot be read.
            OSError: the disk is full.
        """
        plan, recipe = self.plan, self.plan.recipe
        frames = prepare_frames(
            plan.frames_file(self.run_dir),
            plan.demos,
            plan.samples.rollouts,
            cameras=recipe.demos.cameras,
            transform=plan.transform,
            threads=plan.loader_threads,
            collectives=self.engine.collectives,
            progress=progress,
            waits=waits,
            stop=stop,
        )
        self._began = time.monotonic()
        if frames is None:
            return
        self._loader = Loader(
            plan.samples,
            frames,
            transform=plan.transform,
            augmentation=plan.augmentation,
            discount=recipe.loss.discount,
            batch_size=recipe.learner.batch_samples,
            rank=self.rank,
            num_ranks=self.num_ranks,
            seed=recipe.seed,
            threads=plan.loader_threads,
        )
        self._stack.callback(self._loader.close)

    @property
    def optimizer_steps(self) -> int:
        """Return the updates so far."""
        return self.engine.optimizer_steps

    @property
    def clocks(self) -> Clocks:
        """Return the clocks; those of an environment stand still."""
        seconds = self._seconds_before + time.monotonic() - self._began
        return Clocks(optimizer_steps=self.optimizer_steps, seconds=seconds)

    def is_spent(self, budget: OptimizerSteps | None = None) -> bool:
        """Return whether a budget of optimizer steps or of time is used up: by default the recipe's."""
        budget = budget or self.plan.recipe.budget
        out_of_time = budget.minutes is not None and self.clocks.seconds > 60 * budget.minutes
        return out_of_time or self.optimizer_steps >= budget.optimizer_steps

    @property
    def samples_per_batch(self) -> int:
        """Return the samples of one update over all ranks."""
        return self.plan.recipe.learner.batch_samples * self.num_ranks

    def update(self) -> UpdateResult:
        """Make one update from the next batch.

        Raises:
            NonFiniteUpdateError: too many updates in a row were skipped.
        """
        result = self.learner.update(self._load.batch(self.batches))
        self.batches += 1
        return result

    def metrics(self, result: UpdateResult) -> dict[str, float]:
        """Return everything measured since the last call. All ranks call it together."""
        found = self.learner.take_metrics() | {
            "supervised/epochs": self.batches * self.samples_per_batch / len(self.plan.samples.train),
            "learner/grad_norm": result.grad_norm,
            "learner/policy_lr": result.learning_rates[POLICY_GROUP],
            "learner/value_lr": result.learning_rates[VALUE_GROUP],
            "learner/skipped_updates": float(self.engine.skipped_updates),
            "learner/micro_batches": float(self.learner.num_micro_batches),
        }
        peak = peak_memory(self.plan.device)
        if peak is not None:
            found |= {
                "memory/learner_allocated": peak.allocated / GIB,
                "memory/learner_reserved": peak.reserved / GIB,
            }
        return found

    def measure_held_out(self) -> dict[str, float]:
        """Return what is measured on held-out episodes; nothing if there are none. All ranks call it together."""
        rows, most = self.plan.samples.held_out, self.plan.recipe.demos.held_out_samples
        if not len(rows):
            return {}
        chosen: Rows = rows[np_spread(len(rows), most)]
        micro_batch = -(-self.plan.recipe.learner.batch_samples // self.learner.num_micro_batches)
        return self.learner.measure(chosen, self._measured, micro_batch=micro_batch)

    def save(self) -> CheckpointInfo:
        """Write a checkpoint. All ranks call it together.

        Raises:
            OSError: it could not be written; earlier checkpoints are unchanged.
        """
        progress = Progress(
            optimizer_steps=self.optimizer_steps,
            env_steps=0,
            decisions=0,
            episodes=0,
            policy_version=0,
            consumed=self.batches * self.samples_per_batch,
        )
        extra = {
            "seconds": self.clocks.seconds,
            "batches": self.batches,
            "samples_per_batch": self.samples_per_batch,
            "demos": self.plan.digest(),
            STATISTICS: self.plan.key,
            NETWORK: network_record(self.plan.policy),
        }
        keep = self.plan.recipe.checkpoint.keep
        return save(self.run_dir, self.engine, progress=progress, extra=extra, writers={}, keep=keep)

    def forget_frames(self) -> None:
        """Remove the run's own frames: it has ended and will not read them again."""
        self._stack.close()
        self._loader = None
        if self.rank == 0 and self.plan.recipe.demos.cache is None:
            file = self.plan.frames_file(self.run_dir)
            remove_frames(file)
            with suppress(OSError):  # something else lies there, as on NFS while another rank still has the frames open
                file.parent.rmdir()

    @property
    def _load(self) -> Loader:
        assert self._loader is not None, "prepare comes first"
        return self._loader

    def _measured(self, rows: Rows) -> Batch:
        return self._load.measured(rows)

    def _restore(self, info: CheckpointInfo) -> None:
        restored = load(info, self.engine)
        check_network(self.plan.policy, info.path, restored.extra.get(NETWORK))
        extra, samples = restored.extra, restored.progress.consumed
        check_demonstrations(self.plan, info.path, extra)
        self.batches = samples // self.samples_per_batch  # exact unless the size of a batch has changed
        self._seconds_before = float(extra["seconds"])


def check_demonstrations(plan: SupervisedPlan, checkpoint: Path, extra: Mapping[str, Any]) -> None:
    """Refuse to resume with other demonstrations than a checkpoint's `extra` tells.

    Raises:
        ValueError: they differ.
    """
    if extra["demos"] != plan.digest():
        raise ValueError(
            f"{checkpoint}: the demonstrations have changed since the run began: {plan.recipe.demos.path} "
            "holds other numbers. Restore them, or start another run with --run-dir"
        )


def np_spread(length: int, most: int) -> Rows:
    """Return at most `most` indices below `length`, evenly spread."""
    import numpy as np

    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))
