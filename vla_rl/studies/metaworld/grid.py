"""Grid of runs of the paper's Meta-World experiment (arXiv 2603.03955, section 4 and appendix C).

A run is one task, one surrogate, one regime (`vla_rl.recipe.regimes`) and one seed; everything else comes from one
recipe and is the same for all of them. Runs of one seed start from the same weights and the same initial states.
The ring's size is proportional to the budget, so that a decision is used as often in a short study as in a long one,
which then has more experience. Warm-ups of the learning rates and the distance of checkpoints are too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from vla_rl.envs.metaworld.env import HORIZON
from vla_rl.envs.metaworld.tasks import METAWORLD_TASKS
from vla_rl.errors import UserError
from vla_rl.recipe import Recipe, decisions_per_episode, find_recipe, load_recipe
from vla_rl.recipe.regimes import SPANS, regime_of
from vla_rl.replay.layout import capacity_for
from vla_rl.studies.study_plan import OF_EVERY_RUN, base_recipe, in_words, require_known
from vla_rl.studies.surrogate_labels import StudySurrogate, canonical_labels

ENV = "metaworld"
RECIPE = "metaworld_stale"
LOG_POINTS = 250  # at least, of a run: closing values are means over the last fifth of them
REGIMES = tuple(SPANS)
FRESH = "fresh"


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run of the grid."""

    task: str
    surrogate: str  # label
    regime: str
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return f"{self.task}_{self.surrogate.replace(':', '-')}_{self.regime}_seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Share:
    """One of several equal shares of a grid, for one of several machines."""

    number: int  # from 1
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read "1/4".

        Raises:
            UserError: the text is something else.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
        share = cls(int(match[1]), int(match[2])) if match else None
        if share is None or share.number > share.of:
            raise UserError(f"--share: found {text!r}; write 1/4 to 4/4 on the first to the fourth of four machines")
        return share


WHOLE = Share(1, 1)


@dataclass(frozen=True, slots=True)
class Grid:
    """Runs of a study."""

    tasks: tuple[str, ...]
    surrogates: tuple[str, ...]  # labels, made canonical
    regimes: tuple[str, ...]
    seeds: int  # 0 .. seeds - 1
    optimizer_steps: int  # budget of every run
    recipe: str = RECIPE  # name or path

    def __post_init__(self) -> None:
        object.__setattr__(self, "surrogates", canonical_labels(self.surrogates))
        require_known("--tasks", self.tasks, METAWORLD_TASKS)
        require_known("--regimes", self.regimes, REGIMES)

    def runs(self) -> list[StudyRun]:
        """Return all runs, seed by seed, so that an interrupted study has complete comparisons."""
        return [
            StudyRun(task, surrogate, regime, seed)
            for seed in range(self.seeds)
            for regime in self.regimes
            for task in self.tasks
            for surrogate in self.surrogates
        ]

    def share_of(self, share: Share) -> list[StudyRun]:
        """Return the runs of one share, in the order of the grid; every run is in exactly one of them.

        Runs that differ in their surrogate alone are in one share, for they are compared: machines differ in rounding.
        A regime's are dealt out in turn, so that shares take equally long, up to one task of one seed. A study that
        gains seeds, surrogates or a regime moves no run to another share; one that gains tasks does.

        Raises:
            UserError: there are so many shares that this one is empty.
        """
        own = [run for run in self.runs() if self._turn(run) % share.of == share.number - 1]
        if not own:
            most = len(self.regimes) * self.seeds * len(self.tasks)
            raise UserError(
                f"--share: {share.number}/{share.of} has no runs: those that differ in their surrogate alone are in "
                f"one share, so this study has at most {most} shares, 1/{most} to {most}/{most}"
            )
        return own

    def _turn(self, run: StudyRun) -> int:
        """Return when a run is dealt out; a negative turn counts from the last share.

        Fresh runs go from the last share backwards, stale ones from the first forwards: the shares that get one run
        fewer of a regime are the last to get one fewer of the other, and no turn depends on what the study may gain.
        """
        turn = run.seed * len(self.tasks) + self.tasks.index(run.task)
        return -1 - turn if run.regime == FRESH else turn

    def overrides(self, run: StudyRun, base: Recipe) -> list[str]:
        """Return the overrides that make the recipe `base` this run's."""
        return [
            f"name={run.name}",
            f"seed={run.seed}",
            f"regime={run.regime}",
            f"env.tasks=[{run.task}]",
            f"budget.optimizer_steps={self.optimizer_steps}",
            "budget.env_steps=null",
            *OF_EVERY_RUN,
            *(f"{field}={value}" for field, value in _scaled(base, run.regime, self.optimizer_steps).items()),
            *StudySurrogate(run.surrogate).overrides,
        ]

    def base(self) -> Recipe:
        """Return the recipe that all runs share.

        Raises:
            UserError: it is not valid, or not one of Meta-World.
        """
        return base_recipe(self.recipe, env=ENV)

    def recipe_of(self, run: StudyRun) -> Recipe:
        """Return the run's recipe.

        Raises:
            UserError: recipe and overrides do not fit, or its episodes are not complete.
        """
        recipe = load_recipe(find_recipe(self.recipe), self.overrides(run, self.base()))
        horizon = recipe.env.episode_horizon
        if horizon != HORIZON:
            raise UserError(
                f"--recipe: env.horizon is {horizon} in {self.recipe}; the scores of a study are of whole episodes, so "
                f"it must be {HORIZON}"
            )
        return recipe

    def in_words(self) -> str:
        """Return the names on all axes in a line."""
        return in_words([self.tasks, self.surrogates, self.regimes], seeds=self.seeds)

    def settings(self) -> dict[str, Any]:
        """Return all fields as JSON."""
        return asdict(self)


def joined(first: Grid, second: Grid) -> Grid:
    """Return the first grid with what the second adds to its tasks, surrogates, regimes and seeds."""
    return replace(
        first,
        tasks=tuple(dict.fromkeys([*first.tasks, *second.tasks])),
        surrogates=tuple(dict.fromkeys([*first.surrogates, *second.surrogates])),
        regimes=tuple(dict.fromkeys([*first.regimes, *second.regimes])),
        seeds=max(first.seeds, second.seeds),
    )


def _scaled(base: Recipe, regime: str, optimizer_steps: int) -> dict[str, float]:
    """Return the fields of a recipe that follow from the budget and the regime.

    They are proportional to the budget, but the ring still holds the recipe's warm-up, and the log has enough points.
    The regime's are written out, because the recipe may have them written for its own budget.
    """
    scale = optimizer_steps / base.budget.optimizer_steps
    smallest = capacity_for(
        base.replay.min_decisions,
        num_envs=base.rollout.num_workers * base.rollout.envs_per_worker,
        max_episode_decisions=decisions_per_episode(base.env, base.policy),
    )
    warm_ups = {
        "optimizer.policy_warmup": base.optimizer.policy_warmup,
        "optimizer.value_warmup": base.optimizer.value_warmup,
        "optimizer.critic_only_steps": base.optimizer.critic_only_steps,
    }
    log_every = base.logging.every_optimizer_steps
    capacity = max(round(base.replay.capacity * scale), smallest)
    ages = regime_of(
        regime,
        base.replay.model_copy(update={"capacity": capacity}),
        base.learner,
        base.budget.model_copy(update={"optimizer_steps": optimizer_steps}),
    )
    return {
        "replay.capacity": capacity,
        "replay.replay_ratio": ages.replay_ratio,
        "replay.old_threshold": ages.old_threshold,
        "checkpoint.every_optimizer_steps": max(1, round(base.checkpoint.every_optimizer_steps * scale)),
        "logging.every_optimizer_steps": min(log_every, max(1, optimizer_steps // LOG_POINTS)),
        **{field: round(steps * scale) for field, steps in warm_ups.items() if steps},
    }


GIPO_SWEEP = tuple(f"gipo:{sigma}:{scale}" for sigma in (0.2, 0.5, 1.0) for scale in (0.5, 1.0))
SWEEP_TASKS = (  # of the authors' sweep script: with 8 surrogates and 5 seeds 400 runs, as many as they report
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
)
# No text names the paper's eight tasks. These are the six of the authors' long runs, among them both that the paper
# names (door-open and handle-press), and the first two of their sweep that are not among those.
PAPER_TASKS = (
    "door-open-v3",
    "handle-press-v3",
    "button-press-topdown-v3",
    "drawer-open-v3",
    "push-v3",
    "sweep-into-v3",
    "assembly-v3",
    "basketball-v3",
)
PRESETS: Mapping[str, Grid] = {
    # The paper's task for diagnostics, and the one task of both of the authors' lists (their long runs, their sweep).
    "small": Grid(
        tasks=("door-open-v3", "button-press-topdown-v3"),
        surrogates=("gipo", "ppo", "sapo"),
        regimes=("stale",),
        seeds=5,
        optimizer_steps=5000,
    ),
    "full": Grid(
        tasks=SWEEP_TASKS,
        surrogates=(*GIPO_SWEEP, "ppo", "sapo"),
        regimes=("stale",),
        seeds=5,
        optimizer_steps=8000,
    ),
    # Everything that the paper compares, at its length. Its sweep has five seeds; their numbers mean nothing here.
    "paper": Grid(
        tasks=PAPER_TASKS,
        surrogates=(*GIPO_SWEEP, "ppo", "sapo", "no_clip"),
        regimes=("stale", "fresh"),
        seeds=5,
        optimizer_steps=100_000,
        recipe="metaworld_paper",
    ),
}
