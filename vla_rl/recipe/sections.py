"""Sections of a recipe, with the rules inside one section. `rules` has those across sections."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from vla_rl.section import (
    BatchSize,
    Horizon,
    NonNegative,
    Positive,
    Problem,
    Processes,
    RulesError,
    Seconds,
    Section,
    Text,
    distinct,
)
from vla_rl.tracking import TrackersSection

# --- the algorithm ---------------------------------------------------------------------------------------------------


class ReplaySection(Section):
    """The replay ring, and what controls policy lag. All counts are decisions per cell."""

    capacity: Positive = Field(10_000, description="decisions kept; the oldest are overwritten first")
    min_decisions: Positive = Field(64, description="decisions of ended episodes that the first update waits for")
    segment_length: Positive = Field(8, description="consecutive decisions of one episode in a segment")
    replay_ratio: Annotated[float, Field(ge=1e-3, le=1e6)] = Field(
        1.0, description="decisions consumed per decision collected"
    )
    max_policy_lag: NonNegative | None = Field(
        None, description="in versions; segments with a larger lag are never sampled; null: no limit"
    )
    old_threshold: Positive = Field(10, description="in versions; metrics count a sample as old from this lag on")


# --- the machinery ---------------------------------------------------------------------------------------------------


Precision = Literal["fp32", "bf16"]


class EngineSection(Section):
    """Precision, ranks and batches of whatever is trained. Batch sizes are per rank."""

    strategy: Literal["single", "ddp", "deepspeed"] = Field(
        "single", description="how several GPUs share the training; single: one rank"
    )
    zero_stage: Literal[1, 2, 3] = Field(
        2, description="DeepSpeed: 1 shards optimizer states, 2 gradients too, 3 weights too"
    )
    num_ranks: Literal["auto"] | Processes = Field(
        "auto", description="ranks: learners, each with its own workers and ring; auto: one per GPU"
    )
    precision: Precision = Field("fp32", description="precision of the forward and backward pass")
    compile: Literal["off", "layers"] = Field(
        "off",
        description="layers: compile each layer of the language model, forward and backward; takes minutes at first",
    )

    micro_batch: BatchSize = Field(description="items per forward pass")
    accumulation: BatchSize = Field(1, description="micro-batches per optimizer step")

    @property
    def batch_size(self) -> int:
        """Items of one optimizer step, on each rank."""
        return self.micro_batch * self.accumulation

    @model_validator(mode="after")
    def _ranks_match_strategy(self) -> Self:
        if self.strategy == "single" and self.num_ranks not in ("auto", 1):
            allowed = "auto, 1, or strategy 'ddp' or 'deepspeed'"
            raise RulesError([Problem("num_ranks", "strategy 'single' has one rank", str(self.num_ranks), allowed)])
        return self


class LearnerSection(EngineSection):
    """Updates of the policy from segments."""

    micro_batch: BatchSize = Field(4, description="segments per forward pass")
    reuse_passes: bool = Field(
        False,
        description="pass each observation through the policy only once; needs memory for all micro-batches at once",
    )
    publish_every: Positive = Field(1, description="optimizer steps between published policy versions")

    @property
    def batch_segments(self) -> int:
        """Segments of one optimizer step, on each rank."""
        return self.batch_size

    @model_validator(mode="after")
    def _passes_can_be_kept(self) -> Self:
        if self.strategy == "deepspeed" and self.reuse_passes:
            rule = "DeepSpeed runs the backward pass of a micro-batch before the next one's forward pass"
            raise RulesError([Problem("reuse_passes", rule, "true", "false, or strategy 'single' or 'ddp'")])
        return self


_HOST_AND_PORT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?:([0-9]{1,5})")


def _is_address(text: str) -> str:
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or not 1 <= int(found[1]) <= 65_535:
        raise PydanticCustomError("not_an_address", "not the address of a port")
    return text


Address = Annotated[Text, AfterValidator(_is_address)]


class RolloutSection(Section):
    """Env workers and the inference worker of one cell."""

    num_workers: Processes = Field(1, description="env workers: processes with simulators")
    envs_per_worker: Processes = Field(
        1, description="simulators per env worker, stepped in turn; those on other machines run in parallel"
    )
    remote: list[Address] = Field(
        [], description="host:port of Ray's client servers on other machines, which run the simulators"
    )
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = Field(
        1.0, description="sampling temperature in training; evaluation is greedy"
    )
    inference: Literal["shared", "local"] = Field(
        "shared",
        description="shared: one inference worker decides for all env workers; local: each env worker decides for its "
        "own simulators, without messages, which is faster for small policies. The same in runtime.mode 'serial'",
    )
    max_batch: BatchSize = Field(32, description="decisions per inference batch")
    max_wait_ms: Annotated[float, Field(ge=0.0, le=60_000.0)] = Field(
        5.0, description="longest time that a batch waits for more decisions"
    )
    compile: bool = Field(
        False,
        description="compile inference at up to four batch sizes, with CUDA graphs on a GPU; takes minutes for each",
    )
    step_timeout_s: Seconds = Field(120.0, description="an env worker that is silent for longer is restarted")
    start_timeout_s: Seconds = Field(300.0, description="longest time for building an environment or a policy")
    max_restarts: NonNegative = Field(
        5, description="restarts of env workers per cell before the run ends with an error"
    )


class RuntimeSection(Section):
    """Mode, device, threads and memory of a run's processes."""

    mode: Literal["async", "serial"] = Field(
        "async",
        description="serial: one process in a fixed order, for debugging and for runs that are bit-identical on a CPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if torch sees one")
    threads_per_process: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="torch threads per process; 0: the usable cores, shared evenly"
    )
    share_frozen: Literal["auto"] | bool = Field(
        "auto",
        description="one copy of the frozen weights for learner and inference worker. auto: two copies where processes "
        "cannot share GPU memory; true: an error there; false: always two",
    )


class OptimizerSteps(Section):
    """Limits of any training, which ends at the first one reached."""

    optimizer_steps: Positive = Field(
        description="optimizer steps of the run, and length of the learning-rate schedule"
    )
    minutes: Annotated[float, Field(gt=0.0, le=1e8)] | None = Field(None, description="wall-clock time")


class BudgetSection(OptimizerSteps):
    """Limits of a run, which ends at the first one reached."""

    env_steps: Positive | None = Field(None, description="simulated control steps of all ranks together")
    stop_at_success: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="end the run at an evaluation while training with at least this success rate"
    )
    stop_after_evaluations_without_gain: Positive | None = Field(
        None,
        description="end the run after this many evaluations in a row, none distinguishably better than the best",
    )


class KeptCheckpoints(Section):
    """Atomic checkpoints. One is always written at the end and on Ctrl-C."""

    every_optimizer_steps: Positive = Field(100, description="optimizer steps between checkpoints")
    keep: Positive = Field(3, description="number of newest checkpoints to keep")


class CheckpointSection(KeptCheckpoints):
    """Atomic checkpoints of a run with a replay ring."""

    save_replay: bool = Field(True, description="save the replay ring too, so that a resumed run keeps its experience")
    keep_best: bool = Field(
        False, description="also keep the checkpoint that is best in evaluations while training, as checkpoints/best"
    )


class PlayedSection(Section):
    """Greedy episodes that show how good a policy is: at the end of training and, if wanted, during it."""

    episodes_per_task: Annotated[int, Field(ge=0, le=100_000)] = Field(
        0, description="episodes of each task in an evaluation; 0: no evaluation"
    )
    every_optimizer_steps: Positive | None = Field(
        None, description="optimizer steps between evaluations while training; null: only at the end"
    )
    tasks: Literal["all"] | list[NonNegative] = Field("all", description="tasks to evaluate, out of env.tasks")
    horizon: Horizon | None = Field(None, description="control steps; default: the environment's")
    video: Literal["failures", "all"] | None = Field(
        None, description="episodes to record as videos; renders every control step"
    )

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        problems = distinct("tasks", self.tasks)
        if problems:
            raise RulesError(problems)
        return self


class EvaluationSection(PlayedSection):
    """Evaluations at the end and, if wanted, while training: greedy, on the benchmark's standard initial states."""

    init_states: Literal["standard", "spare", "sampled", "widened"] | None = Field(
        None, description="LIBERO's initial states, as in `vla-rl eval --init-states`; null: standard, or the only ones"
    )


class AlarmsSection(Section):
    """Limits of the alarms, which say what is wrong with a run and what to try; null turns one off."""

    success_drop: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        0.3, description="fall of the recent training episodes' success rate from its highest, if more than noise"
    )
    all_fail_episodes: Positive | None = Field(500, description="training episodes in a row without a success")
    all_succeed_episodes: Positive | None = Field(500, description="training episodes in a row without a failure")
    entropy_min: Literal["auto"] | Annotated[float, Field(ge=-50.0, le=50.0)] | None = Field(
        "auto", description="lowest entropy, in nat per token; auto: 0.01 for bins, -4 for a Gaussian"
    )
    entropy_max: Literal["auto"] | Annotated[float, Field(ge=-50.0, le=50.0)] | None = Field(
        "auto",
        description="highest entropy after it was lower, in nat per token; auto: 95 % of a uniform choice of bins",
    )
    kl_max: Annotated[float, Field(gt=0.0, le=1e6)] | None = Field(
        0.5, description="KL(behaviour || policy) in nat per token"
    )
    value_loss_growth: Annotated[float, Field(ge=1.0, le=1e9)] | None = Field(
        10.0, description="value loss, as a multiple of the largest one of the first ten log points"
    )
    explained_variance_min: Annotated[float, Field(ge=-1e9, le=1.0)] = Field(
        -1.0, description="value_loss_growth counts only where the critic's explained variance is below this"
    )


class MetricsSection(TrackersSection):
    """Metrics of any training, and the trackers that get them too."""

    every_optimizer_steps: Positive = Field(1, description="optimizer steps between rows of metrics")
    tensorboard: bool = Field(True, description="also write TensorBoard event files")


class LoggingSection(MetricsSection):
    """Output during the run."""

    recent_episodes: Positive = Field(
        100, description="number of latest training episodes over which returns and success rates are averaged"
    )
