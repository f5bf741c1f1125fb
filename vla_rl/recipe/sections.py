"""The sections of a recipe, with the rules that hold inside one section. Rules across sections stand in `rules`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vla_rl.libero_suites import SUITES
from vla_rl.recipe.metaworld_tasks import METAWORLD_TASKS
from vla_rl.rl.time_limit import TimeLimit
from vla_rl.section import (
    BatchSize,
    Horizon,
    LearningRate,
    NonNegative,
    PathText,
    Positive,
    Problem,
    Processes,
    RulesError,
    Scale,
    Seconds,
    Section,
    Text,
    Weight,
    distinct,
)

OFT_CHUNK_SIZE = 8  # control steps per decision of OpenVLA-OFT, the policy of LIBERO


# --- environments ----------------------------------------------------------------------------------------------------


class LiberoSection(Section):
    """LIBERO on robosuite and MuJoCo."""

    name: Literal["libero"]
    suite: Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"] = Field(
        description="task suite"
    )
    tasks: Literal["all"] | list[NonNegative] = Field("all", description="task ids in the benchmark's own order")
    assets: PathText = Field("auto", description="auto, proxy, or a folder in the layout of LIBERO's assets/")
    init_states: Literal["standard", "spare", "sampled"] = Field(
        "sampled",
        description="standard: the evaluation's 50; spare: the unused ones; sampled: LIBERO's own sampler",
    )
    cameras: list[Literal["agentview", "wrist"]] = Field(
        ["agentview"], description="frames the policy sees, in this order"
    )
    physics: Literal["exact", "fast"] = Field(
        "exact", description="exact: LIBERO's own bit for bit; fast: one solve per substep, for training alone"
    )
    horizon: Horizon | None = Field(None, description="control steps; default: the suite's own")
    gl: Literal["auto", "egl", "osmesa"] = Field(
        "auto", description="renderer; auto takes EGL where it works, else OSMesa"
    )

    @model_validator(mode="after")
    def _suite_offers_it(self) -> Self:
        problems = distinct("tasks", self.tasks) + distinct("cameras", self.cameras)
        count = SUITES[self.suite].num_tasks
        bad = [] if self.tasks == "all" else [task for task in self.tasks if task >= count]
        if bad:
            problems.append(
                Problem("tasks", f"{self.suite} does not have these tasks", str(bad), f"0..{count - 1}, all")
            )
        if self.init_states == "spare" and not SUITES[self.suite].has_spare_states:
            problems.append(Problem("init_states", f"{self.suite} has no spare ones", "spare", "sampled, standard"))
        if problems:
            raise RulesError(problems)
        return self

    @property
    def task_ids(self) -> list[int]:
        """The task ids, in order."""
        return list(range(SUITES[self.suite].num_tasks)) if self.tasks == "all" else list(self.tasks)

    @property
    def episode_horizon(self) -> int:
        """Control steps of the longest episode."""
        return self.horizon or SUITES[self.suite].horizon

    @property
    def decisions_per_episode(self) -> int:
        """The most decisions that fit in one episode."""
        return math.ceil(self.episode_horizon / OFT_CHUNK_SIZE)


class ToySection(Section):
    """A state-only reaching task that is solved in seconds: for trying the program out and for its own tests."""

    name: Literal["toy"]
    tasks: list[NonNegative] = Field([0], description="each seeds other starts and goals")
    horizon: Horizon = Field(16, description="control steps")
    chunk_size: Horizon = Field(2, description="control steps per decision")
    step_seconds: Annotated[float, Field(ge=0.0, le=3600.0)] = Field(
        0.0, description="pretended simulation time per control step"
    )

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        problems = distinct("tasks", self.tasks)
        if problems:
            raise RulesError(problems)
        return self

    @property
    def task_ids(self) -> list[int]:
        """The task ids, in order."""
        return list(self.tasks)

    @property
    def decisions_per_episode(self) -> int:
        """The most decisions that fit in one episode."""
        return math.ceil(self.horizon / self.chunk_size)


class MetaworldSection(Section):
    """Meta-World version 3: state observations, dense rewards, episodes that go on after a success."""

    name: Literal["metaworld"]
    tasks: list[str] = Field(["door-open-v3"], description="names of tasks, like door-open-v3")
    horizon: Annotated[int, Field(ge=1, le=500)] = Field(500, description="control steps")
    chunk_size: Horizon = Field(1, description="control steps per decision")
    reward_scale: Scale = Field(0.01, description="multiplies the dense reward of 0 to 10 per control step")

    @model_validator(mode="after")
    def _benchmark_offers_it(self) -> Self:
        problems = distinct("tasks", self.tasks)
        bad = [task for task in self.tasks if task not in METAWORLD_TASKS]
        if bad:
            problems.append(Problem("tasks", "not tasks of Meta-World v3", str(bad), ", ".join(METAWORLD_TASKS)))
        if problems:
            raise RulesError(problems)
        return self

    @property
    def task_ids(self) -> list[int]:
        """The task ids, in order."""
        return [METAWORLD_TASKS.index(task) for task in self.tasks]

    @property
    def decisions_per_episode(self) -> int:
        """The most decisions that fit in one episode."""
        return math.ceil(self.horizon / self.chunk_size)


EnvSection = Annotated[LiberoSection | ToySection | MetaworldSection, Field(discriminator="name")]

USUAL_TIME_LIMIT: Mapping[str, TimeLimit] = {  # targets.time_limit by env.name, where a recipe says nothing
    "libero": "end",  # the score is success within the horizon
    "toy": "end",  # a goal that is not reached in time is missed
    "metaworld": "bootstrap",  # reward flows on after a success; the horizon only cuts it off
}


# --- policies --------------------------------------------------------------------------------------------------------


class LoraSection(Section):
    """Low-rank adapters on the language model's linear layers."""

    rank: Annotated[int, Field(ge=1, le=4096)] = Field(32, description="of the adapters")
    alpha: Scale = Field(16.0, description="adapters are scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="on the adapters' input")
    targets: list[Text] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="names of linear layers",
    )


class OpenVLAOFTSection(Section):
    """OpenVLA-OFT with the discrete token head."""

    name: Literal["openvla_oft"]
    checkpoint: PathText = Field(
        "tiny",
        description="tiny or random-7b (random weights, scaled down or of the real size), or a checkpoint directory",
    )
    profile: Literal["auto", "oft_l1", "simplevla", "rlinf"] = Field(
        "auto",
        description="who trained the checkpoint: prompt, normalisation and image details; auto reads it from the files",
    )
    statistics: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="key of the data set that actions are scaled by; default: the suite's own, or the only one",
    )
    proprio: bool = Field(True, description="feed proprioception (random weights only; a checkpoint says it itself)")
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="pixels; default: what the checkpoint was trained on"
    )
    lora: LoraSection | None = LoraSection()
    train_backbone: bool = Field(False, description="train all weights themselves, in float32; needs policy.lora=null")
    train_action_rows: bool = Field(True, description="train the 256 action rows of lm_head")
    train_proprio_projector: bool = Field(True, description="where the checkpoint has one")
    value_head: Literal["attention_pool", "last_prompt_token"] = Field(
        "attention_pool", description="what the critic reads: the action positions, pooled, or the prompt's last token"
    )
    detach_value: bool = Field(True, description="keep the value loss out of the trunk")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the frozen weights")
    gradient_checkpointing: bool = Field(False, description="less memory for activations, about a third more time")
    self_test: bool = Field(
        True,
        description="before the start, test a checkpoint for faults that fail silently, and refuse it if there are",
    )


class MLPSection(Section):
    """A multi-layer perceptron over state observations."""

    name: Literal["mlp"]
    hidden_dim: Annotated[int, Field(ge=2, le=8192)] = Field(
        128, description="width of the hidden layers; the value head has half of it"
    )
    num_bins: Annotated[int, Field(ge=2, le=256)] = Field(256, description="of a categorical action component")
    distribution: Literal["categorical", "gaussian"] = Field(
        "categorical", description="of every action component: over bins, as the VLA's, or a Gaussian"
    )


PolicySection = Annotated[OpenVLAOFTSection | MLPSection, Field(discriminator="name")]


# --- the algorithm ---------------------------------------------------------------------------------------------------


class OptimizerSection(Section):
    """AdamW with separate learning rates for policy and value; linear warm-up, then cosine to zero or constant."""

    policy_lr: LearningRate = Field(1e-5, description="peak learning rate of the policy")
    value_lr: LearningRate = Field(1e-4, description="peak learning rate of the value head")
    policy_warmup: NonNegative = Field(0, description="optimizer steps")
    value_warmup: NonNegative = Field(0, description="optimizer steps")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="after the warm-up; cosine ends at 0 with budget.optimizer_steps"
    )
    weight_decay: Weight = Field(0.0, description="decoupled")
    max_grad_norm: Annotated[float, Field(gt=0.0, le=1e12)] = Field(
        1.0, description="the gradient is clipped to this norm"
    )


class ReplaySection(Section):
    """The replay ring and the lag dial. All counts are decisions per cell."""

    capacity: Positive = Field(10_000, description="decisions kept; the oldest leave first")
    min_decisions: Positive = Field(64, description="committed decisions before the first update")
    segment_length: Positive = Field(8, description="consecutive decisions of one episode per sample")
    replay_ratio: Annotated[float, Field(ge=1e-3, le=1e6)] = Field(
        1.0, description="decisions consumed per decision collected"
    )
    max_policy_lag: NonNegative | None = Field(None, description="versions; older segments are never sampled")
    old_threshold: Positive = Field(10, description="versions; a sample is old at this lag or more (metrics)")


# --- the machinery ---------------------------------------------------------------------------------------------------


class LearnerSection(Section):
    """Batches, precision and ranks. Batch sizes are per rank."""

    strategy: Literal["single", "ddp", "deepspeed"] = Field("single", description="engine of the ranks")
    zero_stage: Literal[1, 2, 3] = Field(
        2, description="of DeepSpeed: 1 shards optimizer states, 2 gradients too, 3 weights too"
    )
    num_ranks: Literal["auto"] | Processes = Field(
        "auto", description="learners, each with its own cell; auto: one per GPU"
    )
    micro_batch: BatchSize = Field(4, description="segments per forward pass")
    accumulation: BatchSize = Field(1, description="micro-batches per optimizer step")
    publish_every: Positive = Field(1, description="optimizer steps between published policy versions")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward and backward pass")
    compile: Literal["off", "layers"] = Field(
        "off",
        description="layers: compile each layer of the language model, forward and backward; minutes at the start",
    )

    @property
    def batch_segments(self) -> int:
        """Segments of one optimizer step, on each rank."""
        return self.micro_batch * self.accumulation

    @model_validator(mode="after")
    def _ranks_match_strategy(self) -> Self:
        if self.strategy == "single" and self.num_ranks not in ("auto", 1):
            allowed = "auto, 1, or strategy 'ddp' or 'deepspeed'"
            raise RulesError([Problem("num_ranks", "strategy 'single' has one rank", str(self.num_ranks), allowed)])
        return self


class RolloutSection(Section):
    """Env workers and the inference worker of one cell."""

    num_workers: Processes = Field(1, description="simulator processes")
    envs_per_worker: Processes = Field(1, description="simulators in each, stepped in turn")
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = Field(
        1.0, description="of sampling in training; evaluation is greedy"
    )
    max_batch: BatchSize = Field(32, description="decisions per inference batch")
    max_wait_ms: Annotated[float, Field(ge=0.0, le=60_000.0)] = Field(
        5.0, description="how long a started batch waits for more"
    )
    compile: bool = Field(
        False,
        description="compile inference at up to four batch sizes, with CUDA graphs on a GPU; minutes each at the start",
    )
    step_timeout_s: Seconds = Field(120.0, description="a worker silent for longer is restarted")
    start_timeout_s: Seconds = Field(300.0, description="for building an environment or a policy")
    max_restarts: NonNegative = Field(5, description="env worker restarts per cell before the run ends with the cause")


class RuntimeSection(Section):
    """Where and how things run."""

    mode: Literal["async", "serial"] = Field(
        "async",
        description="serial: one process in a fixed order, for debugging, and for runs that repeat bit by bit on a CPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if torch sees one")
    threads_per_process: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="torch threads per process; 0: shared evenly"
    )
    share_frozen: Literal["auto"] | bool = Field(
        "auto",
        description="one copy of the frozen weights for learner and inference worker; auto: two where processes cannot "
        "share GPU memory, true: end with the reason there, false: always two",
    )


class BudgetSection(Section):
    """When the run ends: at the first limit that is reached."""

    optimizer_steps: Positive = Field(description="also the length of the learning-rate schedule")
    env_steps: Positive | None = Field(None, description="control steps simulated, all ranks together")
    minutes: Annotated[float, Field(gt=0.0, le=1e8)] | None = Field(None, description="wall-clock time")


class CheckpointSection(Section):
    """Atomic checkpoints. One is always written at the end and on Ctrl-C."""

    every_optimizer_steps: Positive = Field(100, description="optimizer steps between checkpoints")
    keep: Positive = Field(3, description="newest checkpoints that stay")
    save_replay: bool = Field(True, description="resume with the experience, not with an empty ring")


class EvaluationSection(Section):
    """The closing evaluation, greedy, on the benchmark's standard initial states."""

    episodes_per_task: Annotated[int, Field(ge=0, le=100_000)] = Field(0, description="0: no closing evaluation")
    tasks: Literal["all"] | list[NonNegative] = Field("all", description="of env.tasks")
    horizon: Horizon | None = Field(None, description="control steps; default: the environment's")

    @model_validator(mode="after")
    def _tasks_are_distinct(self) -> Self:
        problems = distinct("tasks", self.tasks)
        if problems:
            raise RulesError(problems)
        return self


class LoggingSection(Section):
    """What is written while the run goes on."""

    every_optimizer_steps: Positive = Field(1, description="optimizer steps between rows of metrics")
    recent_episodes: Positive = Field(100, description="training episodes that returns and success rates are means of")
    tensorboard: bool = Field(True, description="also write TensorBoard event files")
