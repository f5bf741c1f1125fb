"""Fresh and stale regimes of arXiv 2603.03955 (Table 1), controlled and scaled to any run.

The paper produced them with 16 actors (fresh) and 2 actors (stale) for one learner, so they depend on the machine. Here
the governor controls data age: `replay.replay_ratio` sets how often every decision is used, and thereby how many
versions pass while a decision stays in the ring, for any number and speed of env workers.

A full ring that is sampled uniformly has lags spread evenly over 0 .. span, its age in versions. The paper's runs made
100,000 versions; a sample was old from 10,000 on; the mean lag was 4,273 (fresh), and 88.4 % of the samples were old
(stale, which is 1 − 10,000 / span). As shares of a run's versions:

    old threshold  0.1        fresh span  2 · 4,273 / 100,000 = 0.0855        stale span  0.1 / (1 − 0.884) = 0.862

so a fresh run never has an old sample, and a stale run's ring holds most of its history. The resulting drift |log ρ|
also depends on the surrogate and the learning rate: it is reported but not part of the definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vla_rl.recipe.sections import BudgetSection, LearnerSection, ReplaySection

RegimeName = Literal["fresh", "stale"]

OLD_SHARE = 0.1  # of a run's versions
SPANS: Mapping[str, float] = {"fresh": 0.0855, "stale": OLD_SHARE / (1 - 0.884)}  # shares of a run's versions
STALE_REUSE = 20.0  # "tens of times": a stale run below this would only be short


@dataclass(frozen=True, slots=True)
class Regime:
    """Values that a regime's name stands for in one run."""

    replay_ratio: float  # decisions consumed per decision collected
    old_threshold: int  # versions


def regime_of(name: str, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection) -> Regime:
    """Return what a regime sets in a recipe with these sections.

    Each update consumes b decisions, so a ring of `capacity` decisions, each used r times, spans capacity · r / b
    updates; r follows from the span that the regime requires.
    """
    per_update = learner.batch_segments * replay.segment_length  # b, over the micro-batches of one rank
    ratio = SPANS[name] * budget.optimizer_steps * per_update / replay.capacity
    threshold = max(1, round(OLD_SHARE * budget.optimizer_steps / learner.publish_every))
    return Regime(float(f"{ratio:.4g}"), threshold)
