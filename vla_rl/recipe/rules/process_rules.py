"""Rules about processes and machines: ranks, env workers, and where decisions are made."""

from __future__ import annotations

from vla_rl.recipe.sections import LearnerSection, RolloutSection, RuntimeSection
from vla_rl.section import Problem


def _serial_has_one_rank(runtime: RuntimeSection, learner: LearnerSection) -> Problem | None:
    if runtime.mode == "serial" and (learner.strategy != "single"):
        return Problem(
            path="learner.strategy",
            rule="runtime.mode 'serial' runs everything in one process, so there is one rank",
            found=learner.strategy,
            allowed="single, or runtime.mode 'async'",
        )
    return None


def _serial_is_here(runtime: RuntimeSection, rollout: RolloutSection) -> Problem | None:
    if runtime.mode == "serial" and rollout.remote:
        return Problem(
            path="rollout.remote",
            rule="runtime.mode 'serial' runs everything in one process, simulators too",
            found=", ".join(rollout.remote),
            allowed="[], or runtime.mode 'async'",
        )
    return None


def _simulators_are_near_what_decides(rollout: RolloutSection) -> Problem | None:
    if rollout.inference == "local" and rollout.remote:
        return Problem(
            path="rollout.inference",
            rule="simulators on other machines are played side by side, and the inference worker decides for them",
            found="local, with rollout.remote",
            allowed="shared, or rollout.remote=[]",
        )
    return None


def _compiling_is_shared(rollout: RolloutSection) -> Problem | None:
    if rollout.inference == "local" and rollout.compile:
        return Problem(
            path="rollout.compile",
            rule="only the inference worker compiles",
            found="true, with rollout.inference 'local'",
            allowed="false, or rollout.inference=shared",
        )
    return None


def _workers_reach_every_machine(learner: LearnerSection, rollout: RolloutSection) -> Problem | None:
    workers = rollout.num_workers * (1 if learner.num_ranks == "auto" else learner.num_ranks)
    if learner.strategy != "single" and learner.num_ranks == "auto":  # only the machine knows how many
        return None
    if len(rollout.remote) <= workers:
        return None
    return Problem(
        path="rollout.num_workers",
        rule="every address of rollout.remote gets an env worker",
        found=f"{workers} of all ranks, and {len(rollout.remote)} addresses",
        allowed=f">= {len(rollout.remote)} in all, or fewer addresses",
    )


RULES = (
    _serial_has_one_rank,
    _serial_is_here,
    _simulators_are_near_what_decides,
    _compiling_is_shared,
    _workers_reach_every_machine,
)
