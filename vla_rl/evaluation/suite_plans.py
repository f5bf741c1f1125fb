"""Plans of an evaluation's suites, one for each, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vla_rl.container import usable_cores
from vla_rl.envs.kind import SAMPLED, EnvPlan, EvaluationTerms
from vla_rl.envs.libero.assets import SUBFOLDERS, Assets
from vla_rl.envs.libero.check import SimulatorReport
from vla_rl.envs.libero.folders.suite_folder import names_folder, read_suite_folder
from vla_rl.evaluation.conditions import Conditions, digest_of_files
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.play import evaluation_jobs, init_states
from vla_rl.evaluation.policy_source import PolicySource
from vla_rl.ipc.memory_check import available_memory
from vla_rl.recipe import Problem, RecipeError, Setup, change_setup
from vla_rl.run.plan import Plan, make_plan, plan_policy
from vla_rl.workers.episodes import EpisodeJob

_OPTIONS = {  # options by the fields that they set, for messages
    "env.suite": "--suite",
    "env.tasks": "--tasks",
    "env.init_states": "--init-states",
    "env.horizon": "--horizon",
    "env.assets": "--assets",
    "rollout.temperature": "--temperature",
    "rollout.num_workers": "--workers",
    "rollout.step_timeout_s": "--step-timeout",
    "rollout.start_timeout_s": "--start-timeout",
}
_OTHER_FIELDS = " (rollout.max_restarts)"  # in messages of failures, without an option
_SERIAL_SLOTS = 1  # batches of one, so that decisions do not depend on their neighbours
_SLOTS_PER_WORKER = 2  # one simulates while the other waits for its decision
_LONGEST_SEEDS = 80  # characters in a folder's name, which may have 255
MOST_WORKERS = 16  # default limit: each holds graphics contexts in GPU memory beside the policy; the recipes have 10
_WORKER_BYTES = 2 * 2**30  # memory of a worker with two LIBERO simulators and their graphics contexts, rounded up


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """One suite of an evaluation."""

    plan: Plan
    jobs: list[EpisodeJob]


def make_suite_plans(source: PolicySource, options: EvalOptions) -> list[SuitePlan]:
    """Make a plan and its episodes for each suite.

    Raises:
        ValueError: an option does not fit the policy, the suite or this machine.
    """
    if len(set(options.seeds)) != len(options.seeds) or not options.seeds:
        raise ValueError(f"--seed: found {list(options.seeds)}; every seed stands once")
    if options.serial and options.workers is not None:
        raise ValueError(f"--workers: found {options.workers}, but --serial has one; leave out one of the two")
    suites = []
    for name in _asked_suites(source, options):
        is_folder = _is_folder(source, name)
        plan = _folder_plan(source, options, Path(name)) if is_folder else _plan(source, options, name)
        _refuse_temperature(plan, options)
        if plan.env.simulator is not None and not options.allow_unpinned:
            _refuse_unpinned(plan.env.simulator)
        jobs = evaluation_jobs(plan, episodes_per_task=options.episodes_per_task, seeds=options.seeds)
        suites.append(SuitePlan(plan, jobs))
    return suites


def _asked_suites(source: PolicySource, options: EvalOptions) -> Sequence[str]:
    """Return names of suites, and folders of the user's own, in the order in which they were asked for.

    Raises:
        ValueError: one does not exist, stands twice, or must be named; or something does not go with folders.
    """
    folders = [name for name in options.suites if _is_folder(source, name)]
    named = [name for name in options.suites if name not in folders]
    if not folders:
        return source.suites(named)
    if len(set(folders)) != len(folders):
        raise ValueError(f"--suite: found {', '.join(options.suites)}; every folder stands once")
    if options.perturb is not None:
        raise ValueError(
            f"--perturb: found {options.perturb!r} with the folder {folders[0]}; it changes LIBERO's own tasks. Leave "
            "one of the two out"
        )
    if named:
        source.suites(named)
    return options.suites


def _is_folder(source: PolicySource, suite: str) -> bool:
    """Return whether a suite is a folder of the user's, and not the environment of the training, by its name."""
    is_own = source.run is not None and suite == source.run.env.suite_name
    return not is_own and names_folder(suite)


def _plan(source: PolicySource, options: EvalOptions, suite: str) -> Plan:
    return make_plan(_setup(source, options, suite), only_acts=True)


def _folder_plan(source: PolicySource, options: EvalOptions, folder: Path) -> Plan:
    """Return the plan of the tasks in a user's folder: that of their suite with other tasks.

    Raises:
        ValueError: files in it are wrong, or it is for another environment than the policy.
    """
    base = read_suite_folder(folder).base
    source.suites([base])  # refuses other environments
    setup = _setup(source, replace(options, tasks=None), base)
    made: list[Plan] = []

    def plan_of_suite() -> EnvPlan:
        made.append(make_plan(setup, only_acts=True))
        return made[0].env

    env = setup.env.plan_folder(folder, options.tasks, plan=plan_of_suite)
    return replace(made[0], env=env, policy=plan_policy(setup, only_acts=True, tasks=env.tasks))


def _refuse_temperature(plan: Plan, options: EvalOptions) -> None:
    """Refuse a temperature without effect, which would make equal evaluations look different.

    Raises:
        ValueError: one was given, and the policy samples nothing.
    """
    if plan.policy.is_regression and options.temperature is not None:
        raise ValueError(
            f"--temperature: found {options.temperature}; this checkpoint's L1 head computes actions without "
            "sampling, so a temperature has no effect. Leave the option out"
        )


def _refuse_unpinned(simulator: SimulatorReport) -> None:
    """Refuse other versions of the simulator, because their scores are not comparable.

    Raises:
        ValueError: a package has another version than published scores were made with.
    """
    if simulator.warnings:
        raise ValueError(
            f"{'; '.join(simulator.warnings)}. Install that version, or give --allow-unpinned: the results then name "
            "the deviation"
        )


def make_conditions(source: PolicySource, options: EvalOptions, suites: Sequence[SuitePlan]) -> Conditions:
    """Return the conditions that must stay equal when the evaluation is continued."""
    plan = suites[0].plan
    simulator = plan.env.simulator
    versions = plan.env.identity() if simulator is None else {**simulator.versions, "renderer": simulator.renderer}
    return Conditions(
        checkpoint=source.location,
        fingerprint=source.fingerprint,
        trained_on=source.trained_on,
        protocol=options.protocol.name if simulator is not None else "none",
        horizon=options.horizon,
        temperature=options.temperature,
        seeds=options.seeds,
        init_states=init_states(plan),
        assets="none" if simulator is None else _assets_in_words(simulator.assets),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()) or "none",
    )


def _assets_in_words(assets: Assets) -> str:
    return f"{assets.kind}, files {digest_of_files(assets.folder, (*SUBFOLDERS, 'textures'))}"


def folder_name(source: PolicySource, options: EvalOptions, conditions: Conditions, suites: Sequence[SuitePlan]) -> str:
    """Return a name made of the checkpoint, the suites, and options that are not defaults."""
    words = [source.name] if source.name else []
    words += [suite.plan.env.tasks[0].suite for suite in suites]
    if options.tasks is not None:
        words.append(f"task{options.tasks[0]}" if len(options.tasks) == 1 else f"{len(options.tasks)}tasks")
    if conditions.protocol == "long":
        words.append("long")
    if conditions.horizon is not None:
        words.append(f"horizon{conditions.horizon}")
    if conditions.init_states in ("spare", "widened") or (
        conditions.init_states == SAMPLED and conditions.assets != "none"
    ):
        words.append(conditions.init_states)
    if conditions.temperature is not None:
        words.append(f"T{conditions.temperature:g}")
    if conditions.seeds != (0,):
        seeds = "-".join(map(str, conditions.seeds))
        words.append(f"seed{seeds}" if len(seeds) <= _LONGEST_SEEDS else f"{len(conditions.seeds)}seeds")
    return "_".join(words)


def all_deviations(options: EvalOptions, suites: Sequence[SuitePlan]) -> tuple[str, ...]:
    """Return the deviations from the protocol over all suites, each once."""
    found = [
        deviation
        for suite in suites
        for deviation in suite.plan.setup.env.evaluation_deviations(
            suite.plan.env,
            EvaluationTerms(
                protocol=options.protocol.name,
                temperature=options.temperature,
                episodes_per_task=options.episodes_per_task,
                render_size=None if suite.plan.transform is None else suite.plan.transform.input_size,
            ),
        )
    ]
    return tuple(dict.fromkeys(found))


def usual_workers() -> int:
    """Return the default number of simulator processes: usable cores less one, if memory suffices."""
    return max(1, min(usable_cores() - 1, available_memory() // _WORKER_BYTES, MOST_WORKERS))


def _setup(source: PolicySource, options: EvalOptions, suite: str) -> Setup:
    """Return the policy with the requested environment and slots.

    Raises:
        ValueError: the options do not fit together, or not the policy.
    """
    setup = source.setup(suite)
    changes: dict[tuple[str, ...], object] = {
        ("rollout", "num_workers"): _SERIAL_SLOTS if options.serial else options.workers or usual_workers(),
        ("rollout", "envs_per_worker"): _SERIAL_SLOTS if options.serial else _SLOTS_PER_WORKER,
        ("rollout", "remote"): [],  # an evaluation is made, and filmed, by this machine's own simulators
    }
    if options.serial:
        changes["runtime", "mode"] = "serial"
    for name, value in (
        ("temperature", options.temperature),
        ("step_timeout_s", options.step_timeout),
        ("start_timeout_s", options.start_timeout),
    ):
        if value is not None:
            changes["rollout", name] = value
    trained_here = source.run is not None and source.run.env.suite_name == suite
    statistics = source.statistics if trained_here else None
    for field, value in setup.policy.evaluation_changes(
        self_test=options.self_test, trained_statistics=statistics
    ).items():
        changes["policy", field] = value
    for field, value in setup.env.evaluation_changes(suite, options.env).items():
        changes["env", field] = value
    title = f"evaluation of {source.location}"
    try:
        return change_setup(setup, changes, source=title)
    except RecipeError as error:
        raise RecipeError(title, [_as_option(problem) for problem in error.problems]) from None


def named_by_options(message: str) -> str:
    """Return the message of a failure with the options of an evaluation instead of the fields of a recipe."""
    for field, option in _OPTIONS.items():
        message = message.replace(field, option)
    return message.replace(_OTHER_FIELDS, "")


def _as_option(problem: Problem) -> Problem:
    """Convert a fault of a field that an option set to a fault of the option."""
    option = _OPTIONS.get(problem.path)
    return problem if option is None else replace(problem, path=option, place="")
