"""Plan of the study of groups: which methods, from which starts, with how many seeds.

A run is one method, one start and one seed; everything else comes from one recipe, which needs a critic. Runs end by
their env steps, so that all methods of a start play equally much, and have constant learning rates.

A start is a task and a policy that succeeds at it with some probability. The preset's are the recipe `gates`, whose
untrained policy succeeds with a known probability: at random, and near the ceiling, where nearly all groups of
episodes have one outcome. Another recipe has one start: its own policy, or a given checkpoint. If that recipe replays,
with ratio R, the methods over replay do as it does, and the fresh ones take a batch R times smaller: every method then
makes an update after as many new episodes, and the two kinds differ in whether old ones join them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_rl.credit.group import Group
from vla_rl.errors import UserError
from vla_rl.recipe import Recipe, find_recipe, load_recipe
from vla_rl.recipe.sizes import decisions_per_episode, smallest_ring
from vla_rl.studies.study_plan import OF_EVERY_RUN, require_known

RECIPE = "gates"
OWN_START = "own"
SIZE = 8  # episodes of a group
KEEP = (0.1, 0.9)  # least and largest mean score of a group that dynamic sampling keeps
REPLAY_RATIO = 8  # uses of a decision over replay
REPLAY_LAG = 128  # versions; the oldest decisions that are used over replay
FRESH_LAG = 1
WINDOW = 256  # training episodes
LIBERO = "libero"  # environment whose policies can be evaluated on held-out states
PER_TASK = ("envs_per_worker", "max_batch")  # fields of rollout: one environment for each task


@dataclass(frozen=True, slots=True)
class Method:
    """One way to learn, as overrides of the recipe."""

    name: str
    title: str
    has_critic: bool
    over_replay: bool
    keeps: bool = False  # groups with one outcome are left out
    clip_high: float = 0.2

    def overrides(self, start: Start, base: Recipe) -> list[str]:
        """Return the overrides of the recipe `base`; a critic's targets are its own."""
        uses = "null" if self.over_replay else "1"
        lag = REPLAY_LAG if self.over_replay else FRESH_LAG if self.has_critic else "null"  # a group has its uses
        surrogate = (
            ["surrogate.name=gipo", "surrogate.sigma=1.0"]
            if self.over_replay
            else ["surrogate.name=ppo", "surrogate.clip_low=0.2", f"surrogate.clip_high={self.clip_high}"]
        )
        groups = [
            f"targets={{name: group, size: {SIZE}, keep: {list(KEEP) if self.keeps else 'null'}, uses: {uses}, "
            "max_rejected: 100000}",
            "policy.value_head=none",
            "loss.aggregation=trajectory",
            "loss.normalize_advantages=false",
            *(["optimizer.critic_only_steps=0"] if base.optimizer.critic_only_steps else []),
        ]
        # About equally often by episodes, except that a method which leaves groups out makes few updates.
        crowded = self.over_replay and self.has_critic and start.fresh_batch is None
        return [
            *surrogate,
            *([] if self.over_replay else _fresh_batch(start, base)),
            f"replay.replay_ratio={float(start.replay_ratio if self.over_replay else 1)}",
            f"replay.max_policy_lag={lag}",
            f"logging.every_optimizer_steps={REPLAY_RATIO if crowded else 1}",
            *([] if self.has_critic else groups),
        ]


def _fresh_batch(start: Start, base: Recipe) -> list[str]:
    """Return the overrides that make a start's batch of fresh episodes; collection waits for no more than it."""
    if start.fresh_batch is None:
        return []
    micro_batch = math.gcd(base.learner.micro_batch, start.fresh_batch)
    decisions = start.fresh_batch * base.replay.segment_length
    return [
        f"learner.micro_batch={micro_batch}",
        f"learner.accumulation={start.fresh_batch // micro_batch}",
        f"replay.min_decisions={min(base.replay.min_decisions, decisions)}",
    ]


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("ppo", "PPO with a critic, fresh", has_critic=True, over_replay=False),
        Method("grpo", "GRPO, fresh, every group", has_critic=False, over_replay=False, clip_high=0.28),
        Method("grpo_dynamic", "GRPO, fresh, mixed groups", False, False, keeps=True, clip_high=0.28),
        Method("gipo", "GIPO with a critic, over replay", has_critic=True, over_replay=True),
        Method("gipo_groups", "GIPO with groups, over replay", False, True, keeps=True),
    )
}


@dataclass(frozen=True, slots=True)
class Start:
    """Beginning of runs, and how far they should come."""

    name: str
    success: float | None  # known probability that the untrained policy succeeds; None: unknown
    target: float  # success to be reached
    env_steps: int  # budget of every run
    window: int  # training episodes that success is measured over
    overrides: tuple[str, ...] = ()
    replay_ratio: float = REPLAY_RATIO  # of methods over replay
    fresh_batch: int | None = None  # segments per update of fresh methods; None: the recipe's batch
    capacity: int | None = None  # of the ring, where groups need more than the recipe's
    checkpoint: str | None = None  # policy that all runs start from; None: the recipe's
    states: int = 0  # held-out initial states per task of the evaluations before and after; 0: none

    @property
    def is_own(self) -> bool:
        """Return whether this is the start of a recipe of one's own."""
        return self.name == OWN_START

    @property
    def deviation(self) -> float:
        """Return the standard deviation of the measured success at the target, for independent episodes."""
        return math.sqrt(self.target * (1 - self.target) / self.window)


def _gates(success: float, *, open: float, target: float, episodes: int, window: int) -> Start:
    return Start(f"{success:g}", success, target, 4 * episodes, window, (f"env.open={open}", "env.gates=4"))


STARTS: Mapping[str, Start] = {  # open^4 is the probability of success
    start.name: start
    for start in (
        _gates(0.1, open=0.562341, target=0.9, episodes=8_000, window=256),
        _gates(0.9, open=0.974004, target=0.98, episodes=12_000, window=1000),
        _gates(0.99, open=0.997491, target=0.997, episodes=20_000, window=2000),
    )
}


@dataclass(frozen=True, slots=True)
class GroupRun:
    """One run of the study."""

    start: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.start}_{self.method}_seed{self.seed}"


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Settings of a study."""

    methods: tuple[str, ...]
    starts: tuple[Start, ...]
    seeds: int  # 0 .. seeds - 1
    recipe: str = RECIPE  # name or path

    def __post_init__(self) -> None:
        require_known("--methods", self.methods, tuple(METHODS))

    def runs(self) -> list[GroupRun]:
        """Return all runs, seed by seed, so that an interrupted study has complete comparisons."""
        return [
            GroupRun(start.name, method, seed)
            for seed in range(self.seeds)
            for start in self.starts
            for method in self.methods
        ]

    def start(self, run: GroupRun) -> Start:
        """Return the start of a run."""
        return next(start for start in self.starts if start.name == run.start)

    def overrides(self, run: GroupRun) -> list[str]:
        """Return the overrides that make the recipe this run's."""
        start = self.start(run)
        updates = self._most_updates(start)
        # A run of the toy takes seconds and starts again; one of another recipe is continued.
        checkpoint = [f"checkpoint.every_optimizer_steps={updates}", "checkpoint.save_replay=false"]
        return [
            f"name={run.name}",
            f"seed={run.seed}",
            "regime=null",  # the methods set how often a decision is used
            *start.overrides,
            *([] if start.capacity is None else [f"replay.capacity={start.capacity}"]),
            *METHODS[run.method].overrides(start, load_recipe(find_recipe(self.recipe))),
            "optimizer.schedule=constant",
            f"budget.optimizer_steps={updates}",
            f"budget.env_steps={start.env_steps}",
            *OF_EVERY_RUN,
            *([] if start.is_own else checkpoint),
            "logging.tensorboard=false",
            f"logging.recent_episodes={start.window}",
        ]

    def _most_updates(self, start: Start) -> int:
        """Return more updates than the env steps of a run allow, so that it ends by those."""
        return 2 * math.ceil(max(REPLAY_RATIO, start.replay_ratio)) * start.env_steps

    def recipe_of(self, run: GroupRun) -> Recipe:
        """Return the run's recipe.

        Raises:
            UserError: recipe and overrides do not fit, or the recipe has no critic.
        """
        base = load_recipe(find_recipe(self.recipe))
        if not base.targets.needs_values:
            raise UserError(
                f"--recipe: targets.name is {base.targets.name} in {self.recipe}; methods with a critic take it from "
                "the recipe, so it needs one, as targets.name=gae has"
            )
        return load_recipe(find_recipe(self.recipe), self.overrides(run))

    def settings(self) -> dict[str, Any]:
        """Return all fields as JSON."""
        return asdict(self)


PRESET = GroupPlan(methods=tuple(METHODS), starts=tuple(STARTS.values()), seeds=5)


def group_plan_from(values: Mapping[str, Any], *, source: Path) -> GroupPlan:
    """Return the plan in the fields of a study's file.

    Raises:
        ValueError: a field is missing, unknown, or does not fit.
    """
    try:
        starts = [Start(**{**start, "overrides": tuple(start["overrides"])}) for start in values["starts"]]
        fields = dict(values) | {"starts": tuple(starts), "methods": tuple(values["methods"])}
        return GroupPlan(**fields)
    except (TypeError, UserError, KeyError) as error:
        raise ValueError(
            f"{source}: expected the settings of a study of groups, found {', '.join(values) or 'nothing'} ({error}); "
            "put the file back, or begin the study in another folder"
        ) from error


def starts_named(names: Sequence[str]) -> tuple[Start, ...]:
    """Return the preset's starts with these names.

    Raises:
        UserError: a name is not known or stands twice.
    """
    require_known("--starts", names, tuple(STARTS))
    return tuple(STARTS[name] for name in names)


def own_start(
    recipe: str,
    *,
    target: float,
    env_steps: int,
    window: int = WINDOW,
    tasks: Sequence[int] | None = None,
    checkpoint: Path | None = None,
    states: int = 0,
) -> Start:
    """Return the start of a recipe of one's own: its policy, whatever it succeeds at.

    Args:
        recipe: name or path.
        target: success to be reached.
        env_steps: budget of every run.
        window: training episodes that success is measured over.
        tasks: ids of the tasks, each with an environment of its own; None: as the recipe says.
        checkpoint: policy that all runs start from; None: the recipe's.
        states: held-out initial states per task of the evaluations before and after; 0: none.

    Raises:
        UserError: the recipe does not fit, or states are asked for where there are none.
    """
    base = load_recipe(find_recipe(recipe))
    if states and (base.env.name != LIBERO or checkpoint is None):
        raise UserError(
            f"--states: found {states} with env.name {base.env.name} and "
            f"{'no --start' if checkpoint is None else '--start'}; a checkpoint (--start) can be evaluated on held-out "
            f"states of {LIBERO}. Leave --states out, and success is that of training episodes"
        )
    of_tasks = [f"env.tasks={list(tasks)}", *(f"rollout.{it}={len(tasks)}" for it in PER_TASK)] if tasks else []
    of_policy = [f"policy.checkpoint={checkpoint}"] if checkpoint is not None else []
    replays = base.replay.replay_ratio > 1
    envs = len(tasks) if tasks else base.rollout.envs_per_worker
    capacity = _ring_of_groups(base, slots=base.rollout.num_workers * envs)
    return Start(
        OWN_START,
        None,
        target,
        env_steps,
        window,
        overrides=(*of_tasks, *of_policy),
        replay_ratio=base.replay.replay_ratio if replays else REPLAY_RATIO,
        fresh_batch=_whole_groups(base) if replays else None,
        capacity=capacity if capacity > base.replay.capacity else None,
        checkpoint=None if checkpoint is None else str(checkpoint),
        states=states,
    )


def _ring_of_groups(base: Recipe, *, slots: int) -> int:
    """Return the decisions of the smallest ring for all methods; those over replay take the recipe's batch."""
    groups = max(1, base.learner.batch_segments // _segments_of_group(base))
    needs = Group(name="group", size=SIZE).groups
    return smallest_ring(needs, slots=slots, groups=groups, longest=decisions_per_episode(base.env, base.policy))


def _whole_groups(base: Recipe) -> int:
    """Return the segments of a batch as large as the new part of the recipe's, rounded up to whole groups."""
    of_group = _segments_of_group(base)
    return of_group * math.ceil(base.learner.batch_segments / base.replay.replay_ratio / of_group)


def _segments_of_group(base: Recipe) -> int:
    return SIZE * math.ceil(decisions_per_episode(base.env, base.policy) / base.replay.segment_length)
