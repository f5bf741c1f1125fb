"""From what was asked for to plans: one for each suite, checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vla_rl.envs.build import SimulatorReport
from vla_rl.envs.libero.assets import SUBFOLDERS, Assets
from vla_rl.evaluation.choices import Choices
from vla_rl.evaluation.conditions import Conditions, digest_of_files
from vla_rl.evaluation.play import evaluation_jobs, init_states
from vla_rl.evaluation.subject import Subject
from vla_rl.evaluation.training import SAMPLED
from vla_rl.ipc.container import usable_cores
from vla_rl.ipc.room import available_memory
from vla_rl.libero_suites import SUITES
from vla_rl.recipe import (
    METAWORLD_TASKS,
    LiberoSection,
    MetaworldSection,
    OpenVLAOFTSection,
    Problem,
    Recipe,
    RecipeError,
    ToySection,
    build_recipe,
)
from vla_rl.run.plan import Plan, make_plan
from vla_rl.workers.episodes import EpisodeJob

_KEPT = ("name", "seed", "env", "policy", "rollout", "runtime")  # sections of a recipe
_NO_LEARNING = {
    "surrogate": {"name": "no_clip"},
    "replay": {"segment_length": 1, "min_decisions": 1},
    "budget": {"optimizer_steps": 1},
}
_OPTIONS = {  # under which names the fields that a choice sets are known to who chose
    "env.suite": "--suite",
    "env.tasks": "--tasks",
    "env.init_states": "--init-states",
    "env.horizon": "--horizon",
    "env.assets": "--assets",
    "rollout.temperature": "--temperature",
    "rollout.num_workers": "--workers",
}
_SERIAL_SLOTS = 1  # a batch of one: what a decision is does not depend on its neighbours
_SLOTS_PER_WORKER = 2  # one is stepped while the other waits for its decision
MOST_WORKERS = 16  # unasked: each holds graphics contexts in the GPU's memory beside the policy; the recipes have 10
_WORKER_BYTES = 2 * 2**30  # memory of a worker with two LIBERO simulators and their graphics contexts, rounded up


@dataclass(frozen=True, slots=True)
class Part:
    """One suite of an evaluation."""

    plan: Plan
    jobs: list[EpisodeJob]


def make_parts(subject: Subject, choices: Choices) -> list[Part]:
    """A plan and its episodes for each suite.

    Raises:
        ValueError: a choice does not fit the policy, the suite or this machine.
    """
    if len(set(choices.seeds)) != len(choices.seeds) or not choices.seeds:
        raise ValueError(f"--seed: found {list(choices.seeds)}; every seed stands once")
    if choices.serial and choices.workers is not None:
        raise ValueError(f"--workers: found {choices.workers}, but --serial has one; leave out one of the two")
    parts = []
    for name in _suites(subject, choices.suites):
        plan = make_plan(_recipe(subject, choices, name), accept_l1_head=True)
        _refuse_temperature(plan, choices)
        if plan.env.simulator is not None and not choices.allow_unpinned:
            _refuse_unpinned(plan.env.simulator)
        jobs = evaluation_jobs(plan, episodes_per_task=choices.episodes_per_task, seeds=choices.seeds)
        parts.append(Part(plan, jobs))
    return parts


def _refuse_temperature(plan: Plan, choices: Choices) -> None:
    """Two evaluations that differ in a temperature without effect would count as two.

    Raises:
        ValueError: one was asked for, and the policy draws nothing.
    """
    if plan.policy.is_regression and choices.temperature is not None:
        raise ValueError(
            f"--temperature: found {choices.temperature}; this checkpoint's L1 head computes its actions, nothing is "
            "drawn that a temperature could change. Leave the option out"
        )


def _refuse_unpinned(simulator: SimulatorReport) -> None:
    """A score from other versions looks like any other and means something else.

    Raises:
        ValueError: a package is not the one that published scores were made with.
    """
    if simulator.warnings:
        raise ValueError(
            f"{'; '.join(simulator.warnings)}. Install that version, or give --allow-unpinned: the score then carries "
            "the deviation"
        )


def make_conditions(subject: Subject, choices: Choices, parts: Sequence[Part]) -> Conditions:
    """What the evaluation must keep when it is gone on with."""
    plan = parts[0].plan
    simulator = plan.env.simulator
    versions = {} if simulator is None else {**simulator.versions, "renderer": simulator.renderer}
    return Conditions(
        checkpoint=subject.location,
        fingerprint=subject.fingerprint,
        trained_on=subject.trained_on,
        protocol=choices.protocol.name if simulator is not None else "none",
        horizon=choices.horizon,
        temperature=choices.temperature,
        seeds=choices.seeds,
        init_states=init_states(plan),
        assets="none" if simulator is None else _assets_in_words(simulator.assets),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()) or "none",
    )


def _assets_in_words(assets: Assets) -> str:
    return f"{assets.kind}, files {digest_of_files(assets.folder, (*SUBFOLDERS, 'textures'))}"


def folder_name(subject: Subject, choices: Choices, conditions: Conditions, parts: Sequence[Part]) -> str:
    """The checkpoint, the suites, and what is not as usual."""
    words = [subject.name] if subject.name else []
    words += [part.plan.env.tasks[0].suite for part in parts]
    if choices.tasks is not None:
        words.append(f"task{choices.tasks[0]}" if len(choices.tasks) == 1 else f"{len(choices.tasks)}tasks")
    if conditions.protocol == "long":
        words.append("long")
    if conditions.horizon is not None:
        words.append(f"horizon{conditions.horizon}")
    if conditions.init_states == "spare" or (conditions.init_states == SAMPLED and conditions.assets != "none"):
        words.append(conditions.init_states)
    if conditions.temperature is not None:
        words.append(f"T{conditions.temperature:g}")
    if conditions.seeds != (0,):
        words.append("seed" + "-".join(map(str, conditions.seeds)))
    return "_".join(words)


def all_deviations(choices: Choices, parts: Sequence[Part]) -> tuple[str, ...]:
    """From the protocol, over all suites, each said once."""
    found = [
        deviation
        for part in parts
        for deviation in choices.protocol.deviations(
            part.plan, temperature=choices.temperature, episodes_per_task=choices.episodes_per_task
        )
    ]
    return tuple(dict.fromkeys(found))


def _suites(subject: Subject, asked: Sequence[str]) -> Sequence[str]:
    """The suites to play; the name of the environment, where there are none.

    Raises:
        ValueError: one does not exist, stands twice, or must be named.
    """
    env = subject.recipe.env
    if not isinstance(env, LiberoSection):
        if tuple(asked) not in ((), (env.name,)):
            raise ValueError(
                f"--suite: the policy was trained on {env.name}, found {', '.join(asked)}; leave the option out"
            )
        return [env.name]
    if not asked and subject.training is None:
        raise ValueError(f"--suite: {subject.location} does not say what it is for; name a suite: {', '.join(SUITES)}")
    unknown = [name for name in asked if name not in SUITES]
    if unknown or len(set(asked)) != len(asked):
        raise ValueError(f"--suite: found {', '.join(asked)}; allowed are {', '.join(SUITES)}, each once")
    return asked or [env.suite]


def usual_workers() -> int:
    """Simulator processes where nobody says how many: one for every usable core but one, if memory holds them."""
    return max(1, min(usable_cores() - 1, available_memory() // _WORKER_BYTES, MOST_WORKERS))


def _recipe(subject: Subject, choices: Choices, suite: str) -> Recipe:
    """What of the policy's recipe bears on an evaluation, with its environment and the slots that were asked for.

    The sections about learning are left out, so that none of their rules can refuse an evaluation.

    Raises:
        RecipeError: the choices do not fit together.
    """
    recipe = subject.recipe
    changes: dict[str, Any] = {
        "rollout.num_workers": _SERIAL_SLOTS if choices.serial else choices.workers or usual_workers(),
        "rollout.envs_per_worker": _SERIAL_SLOTS if choices.serial else _SLOTS_PER_WORKER,
    }
    if choices.serial:
        changes["runtime.mode"] = "serial"
    if not choices.self_test and not isinstance(recipe.policy, OpenVLAOFTSection):
        raise ValueError(f"--no-self-test: the policy {recipe.policy.name!r} is not tested; leave the option out")
    if isinstance(recipe.policy, OpenVLAOFTSection):
        changes |= _policy_changes(subject, choices, suite)
    if choices.temperature is not None:
        changes["rollout.temperature"] = choices.temperature
    changes |= _libero_changes(recipe.env, choices, suite) if isinstance(recipe.env, LiberoSection) else {}
    if not isinstance(recipe.env, LiberoSection):
        _only_libero(recipe.env.name, choices)
        if choices.horizon is not None:
            changes["env.horizon"] = choices.horizon
    if choices.tasks is not None:
        changes["env.tasks"] = _task_entries(recipe.env, choices.tasks)
    overrides = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    written = recipe.model_dump(mode="json", by_alias=True)
    values: dict[str, Any] = {name: written[name] for name in _KEPT}
    values["learner"] = {"precision": recipe.learner.precision}
    source = f"evaluation of {subject.location}"
    try:
        return build_recipe(json.dumps(values | _NO_LEARNING), overrides, source=source)
    except RecipeError as error:
        raise RecipeError(source, [_as_option(problem) for problem in error.problems]) from None


def _policy_changes(subject: Subject, choices: Choices, suite: str) -> dict[str, Any]:
    """In the suite of the training, actions are scaled as they were then, whatever lies beside the weights by now."""
    changes: dict[str, Any] = {} if choices.self_test else {"policy.self_test": False}
    env, policy = subject.recipe.env, subject.recipe.policy
    trained_here = isinstance(env, LiberoSection) and env.suite == suite and subject.statistics is not None
    if trained_here and isinstance(policy, OpenVLAOFTSection) and policy.statistics is None:
        changes["policy.statistics"] = subject.statistics
    return changes


def _as_option(problem: Problem) -> Problem:
    """A fault of a field that was set by an option, told as a fault of the option."""
    option = _OPTIONS.get(problem.path)
    return problem if option is None else replace(problem, path=option, place="")


def _task_entries(env: LiberoSection | ToySection | MetaworldSection, ids: Sequence[int]) -> list[int] | list[str]:
    """Tasks as they stand in a recipe: Meta-World's have names there."""
    if not isinstance(env, MetaworldSection):
        return list(ids)
    unknown = [task for task in ids if task >= len(METAWORLD_TASKS)]
    if unknown:
        raise ValueError(f"--tasks: Meta-World has tasks 0 to {len(METAWORLD_TASKS) - 1}, found {unknown}")
    return [METAWORLD_TASKS[task] for task in ids]


def _libero_changes(env: LiberoSection, choices: Choices, suite: str) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "env.suite": suite,
        "env.init_states": choices.init_states or "standard",
        "env.physics": "exact",  # fast physics is for training: a score is LIBERO's own or it is none
        "env.horizon": choices.horizon or choices.protocol.horizon(suite),
    }
    if suite != env.suite:
        changes["env.tasks"] = "all"
    if choices.assets is not None:
        changes["env.assets"] = choices.assets
    return changes


def _only_libero(env: str, choices: Choices) -> None:
    """Refuse what other environments do not have.

    Raises:
        ValueError: naming the option.
    """
    if choices.init_states not in (None, SAMPLED):
        raise ValueError(f"--init-states: {env} samples its initial states; leave the option out")
    if choices.assets is not None:
        raise ValueError(f"--assets: {env} has none; leave the option out")
    if choices.protocol.name != "oft":
        raise ValueError(f"--protocol: a protocol is LIBERO's, and the policy was trained on {env}")
