"""Plan of the LIBERO study: demonstrations, a cloned policy that often fails, RL from there, before and after.

A run is one arm, one regime and one seed; everything else comes from one recipe and is the same for all of them. All
runs start from the same checkpoint: a cloned policy, or one that the user has. An arm is a surrogate, or `lr0`: a
policy that never changes, whose training curve shows how far success wanders by chance. Every regime has the recipe's
replay ratio, so that all runs use as many env steps for as many updates; a stale one has a larger ring, so that its
samples are older.

Initial states never meet. Demonstrations and training draw states with seeds below `SAMPLED_STATES`; the choice of the
start draws them with one seed above, evaluation before and after with another, or it plays the benchmark's stored
states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from vla_rl.envs.kind import DRAWN, SAMPLED
from vla_rl.errors import UserError
from vla_rl.libero_suites import SUITES
from vla_rl.recipe import Recipe, find_recipe, load_recipe
from vla_rl.studies.held_out import held_out_states
from vla_rl.studies.study_plan import OF_EVERY_RUN, base_recipe, require_known
from vla_rl.studies.surrogate_labels import StudySurrogate, canonical_labels
from vla_rl.workers.episodes import SAMPLED_STATES

ENV = "libero"
RECIPE = "libero_tiny_gipo"
SFT_RECIPE = "libero_sft_tiny"
TINY = "tiny"  # stands for a cloned policy that is not there yet
UNCHANGED = "lr0"  # arm whose learning rates are 0
RING_SIZES: Mapping[str, int] = {"fresh": 1, "stale": 4}  # capacity of a regime's ring, in recipe's capacities
CHOICE_SEED = SAMPLED_STATES + 1  # seed of the states on which the start is chosen: above every seed of training

Actions = Literal["sampled", "greedy"]
ACTIONS: tuple[Actions, ...] = ("sampled", "greedy")


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run of the grid."""

    arm: str
    regime: str
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.arm.replace(':', '-')}_{self.regime}_seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of a study."""

    suite: str = "libero_spatial"
    tasks: tuple[int, ...]
    init_states: str = "widened"  # states of demonstrations and training: sampled or widened
    demonstrations: int  # per task
    sft_steps: tuple[int, ...]  # optimizer steps of the cloned policies that are candidates for the start
    window: tuple[float, float] = (0.2, 0.5)  # success of the start at the rollout's temperature, if a candidate has it
    choice_states: int  # initial states per task on which a candidate is judged
    arms: tuple[str, ...]  # surrogates, made canonical, and perhaps `UNCHANGED`
    regimes: tuple[str, ...]
    seeds: int  # 0 .. seeds - 1
    optimizer_steps: int  # budget of every run
    states: int  # held-out initial states per task of every evaluation before and after
    recipe: str = RECIPE  # name or path
    start: str | None = None  # checkpoint that all runs start from; None: a policy is cloned and chosen
    sft_recipe: str = SFT_RECIPE

    def __post_init__(self) -> None:
        arms = canonical_labels([arm for arm in self.arms if arm != UNCHANGED], besides=[UNCHANGED])
        unchanged = [arm for arm in self.arms if arm == UNCHANGED]
        if len(unchanged) > 1 or not arms:
            raise UserError(
                f"--surrogates: found {','.join(self.arms)}; at least one surrogate, and {UNCHANGED} once at most"
            )
        object.__setattr__(self, "arms", (*arms, *unchanged))
        require_known("--regimes", self.regimes, tuple(RING_SIZES))
        require_known("--tasks", [str(task) for task in self.tasks], [str(task) for task in range(self._num_tasks)])
        assert all(first < second for first, second in pairwise(self.sft_steps))
        require_known("--init-states", [self.init_states], DRAWN)

    @property
    def held_out(self) -> str:
        """Return the set of states of evaluation: stored ones for LIBERO's own sampler, else other draws."""
        return held_out_states(self.init_states)

    @property
    def _num_tasks(self) -> int:
        return SUITES[self.suite].num_tasks

    def runs(self) -> list[StudyRun]:
        """Return all runs, seed by seed, so that an interrupted study has complete comparisons."""
        return [
            StudyRun(arm, regime, seed) for seed in range(self.seeds) for regime in self.regimes for arm in self.arms
        ]

    def overrides(self, run: StudyRun, *, start: str) -> list[str]:
        """Return the overrides that make the recipe this run's; `start` is the checkpoint it starts from.

        Raises:
            UserError: as of `base`.
        """
        base = self.base()
        critic_only = min(base.optimizer.critic_only_steps, self.optimizer_steps - 1)
        return [
            f"name={run.name}",
            f"seed={run.seed}",
            f"env.suite={self.suite}",
            f"env.tasks={list(self.tasks)}",
            f"env.init_states={self.init_states}",
            f"policy.checkpoint={start}",
            f"rollout.envs_per_worker={len(self.tasks)}",
            f"rollout.max_batch={len(self.tasks)}",
            "regime=null",  # the recipe's would set another ratio for a larger ring and for another budget
            f"replay.replay_ratio={base.replay.replay_ratio}",
            f"replay.capacity={base.replay.capacity * RING_SIZES[run.regime]}",
            f"budget.optimizer_steps={self.optimizer_steps}",
            f"optimizer.critic_only_steps={critic_only}",
            f"optimizer.policy_warmup={min(base.optimizer.policy_warmup, self.optimizer_steps - critic_only - 1)}",
            f"optimizer.value_warmup={min(base.optimizer.value_warmup, self.optimizer_steps - 1)}",
            "budget.env_steps=null",
            *OF_EVERY_RUN,
            *_overrides_of_arm(run.arm),
        ]

    def base(self) -> Recipe:
        """Return the recipe that all runs share.

        Raises:
            UserError: it is not valid, or not one of LIBERO.
        """
        return base_recipe(self.recipe, env=ENV)

    def recipe_of(self, run: StudyRun, *, start: str | None = None) -> Recipe:
        """Return the run's recipe, from `start`, else from the study's own start, else from random weights.

        Raises:
            UserError: recipe and overrides do not fit.
        """
        return load_recipe(find_recipe(self.recipe), self.overrides(run, start=start or self.start or TINY))

    def settings(self) -> dict[str, Any]:
        """Return all fields as JSON."""
        return asdict(self)


def _overrides_of_arm(arm: str) -> list[str]:
    if arm == UNCHANGED:
        return ["surrogate.name=gipo", "optimizer.policy_lr=0.0", "optimizer.value_lr=0.0"]
    return StudySurrogate(arm).overrides


def choose_start(success: Mapping[int, float], window: tuple[float, float]) -> int:
    """Return the step of the candidate that RL starts from.

    It is the earliest whose success lies in the window. If none does, it is the one that succeeds most among those
    below the window, the earliest of equals; if all are above, the earliest.

    Args:
        success: success rate by optimizer step.
        window: lowest and highest success, both included.
    """
    low, high = window
    inside = [step for step, rate in success.items() if low <= rate <= high]
    below = [step for step, rate in success.items() if rate < low]
    if inside:
        return min(inside)
    return min(below, key=lambda step: (-success[step], step)) if below else min(success)


def plan_from(values: Mapping[str, Any], *, source: Path) -> Plan:
    """Return the plan in the fields of a study's file.

    Raises:
        ValueError: a field is missing, unknown, or does not fit.
    """
    fields: dict[str, Any] = {name: tuple(it) if isinstance(it, list) else it for name, it in values.items()}
    try:
        return Plan(**fields)
    except (TypeError, UserError, AssertionError, KeyError) as error:
        raise ValueError(
            f"{source}: expected the settings of a LIBERO study, found {', '.join(values) or 'nothing'} ({error}); "
            "restore the file, or start the study in another folder"
        ) from error


def grown(before: Plan, now: Plan) -> Plan:
    """Return the plan of both calls together: a study may gain arms, regimes and seeds."""

    def union(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*first, *second]))

    values = now.settings() | {
        "arms": union(before.arms, now.arms),
        "regimes": union(before.regimes, now.regimes),
        "seeds": max(before.seeds, now.seeds),
    }
    return plan_from(values, source=Path())


PRESETS: Mapping[str, Plan] = {
    "tiny": Plan(
        tasks=(0, 1),
        demonstrations=1,
        sft_steps=(24, 32),  # beyond the warm-up
        choice_states=1,
        arms=("gipo", UNCHANGED),
        regimes=("fresh",),
        seeds=1,
        optimizer_steps=2,
        states=1,
    ),
    "small": Plan(
        tasks=(2, 7),
        init_states=SAMPLED,
        demonstrations=60,
        sft_steps=(1500, 2000),
        choice_states=16,
        arms=("gipo", "ppo", "sapo", UNCHANGED),
        regimes=("fresh",),
        seeds=1,
        optimizer_steps=160,
        states=20,
    ),
    "full": Plan(
        tasks=(1, 2, 7),
        init_states=SAMPLED,
        demonstrations=60,
        sft_steps=(2000, 3000),
        choice_states=20,
        arms=("gipo", "ppo", "sapo", UNCHANGED),
        regimes=("fresh", "stale"),
        seeds=3,
        optimizer_steps=300,
        states=50,
    ),
}
