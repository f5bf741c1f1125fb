"""`vla-rl eval`: the success rate of a policy, with intervals and a manifest; or two evaluations compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.errors import CellFailureError, UserError, preflight
from vla_rl.policies.openvla_oft.profiles import ProfileName

if TYPE_CHECKING:
    from vla_rl.evaluation.control import ControlName


def evaluate(  # noqa: PLR0913 - one parameter per option
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="A run (its latest checkpoint is used), a checkpoint, a directory of weights, a hub id, or 'tiny' for "
            "a small random model (a folder of that name is ./tiny).",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            help="LIBERO suites, or folders of task definitions such as LIBERO-plus's or LIBERO-Pro's, separated by "
            "commas; may be given several times.",
            show_default="the suite it was trained on",
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Task ids, like 0,3 or 0-4.", show_default="those it was trained on")
    ] = None,
    episodes_per_task: Annotated[int, typer.Option("--episodes-per-task", min=1, help="Initial states per task.")] = 50,
    protocol: Annotated[
        Literal["oft", "long"],
        typer.Option(
            "--protocol",
            help="Control steps for Spatial/Object/Goal/10. oft: 220/280/300/520; long: 512/512/512/520, as in RL "
            "papers.",
        ),
    ] = "oft",
    init_states: Annotated[
        Literal["standard", "spare", "sampled", "widened"] | None,
        typer.Option(
            "--init-states", help="Which initial states to start from.", show_default="standard: the benchmark's"
        ),
    ] = None,
    horizon: Annotated[
        int | None, typer.Option("--horizon", min=1, help="Control steps per episode.", show_default="the protocol's")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="Sample actions at this temperature.", show_default="greedy: the most likely action"
        ),
    ] = None,
    seed: Annotated[
        str,
        typer.Option("--seed", help="Seed of the environments. Several, like 0,1,2, repeat every episode with each."),
    ] = "0",
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            help="Also play every episode with black frames (blind) or the instruction of another task (instruction), "
            "and compare. For both: blind,instruction.",
            show_default=False,
        ),
    ] = None,
    perturb: Annotated[
        str | None,
        typer.Option(
            "--perturb",
            help="Also play every episode under perturbations, and compare: kinds or groups with levels from 1 to 5, "
            "like camera:3,light:1-5, or all.",
            show_default=False,
        ),
    ] = None,
    video: Annotated[
        Literal["failures", "all", "none"], typer.Option("--video", help="Which episodes to record as mp4.")
    ] = "none",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Simulator processes.", show_default="usable cores minus one, at most 16"
        ),
    ] = None,
    step_timeout: Annotated[
        float | None,
        typer.Option(
            "--step-timeout",
            help="Seconds in which a simulator must have played a chunk and the policy decided. A simulator that has "
            "not is started anew.",
            show_default="as in its training, or 120",
        ),
    ] = None,
    start_timeout: Annotated[
        float | None,
        typer.Option(
            "--start-timeout",
            help="Seconds for building a simulator or the policy.",
            show_default="as in its training, or 300",
        ),
    ] = None,
    serial: Annotated[
        bool, typer.Option("--serial", help="Use one process and a fixed order, so that a repetition is bit-identical.")
    ] = False,
    assets: Annotated[
        str | None,
        typer.Option(
            "--assets", help="auto, proxy, or a folder with LIBERO's assets.", show_default="those it was trained with"
        ),
    ] = None,
    allow_unpinned: Annotated[
        bool, typer.Option("--allow-unpinned", help="Accept versions of mujoco and robosuite that were not tested.")
    ] = False,
    profile: Annotated[
        ProfileName,
        typer.Option(
            "--profile", help="Who trained a checkpoint directory, and so its conventions; a run records them."
        ),
    ] = "auto",
    statistics: Annotated[
        str | None,
        typer.Option(
            "--statistics",
            help="Key in dataset_statistics.json of the data set whose statistics scale the actions.",
            show_default="the suite's own, or the only one",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test/--no-self-test",
            help="Refuse a checkpoint that would fail silently, for example one with causal attention.",
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of the results. The same command with more tasks or episodes extends it; fewer or different "
            "ones need another folder.",
            show_default="a folder below eval/ of the run",
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            help="Instead, compare two finished evaluations or runs, episode by episode.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Evaluate a policy on the benchmark's standard initial states. Repeat an interrupted command to resume it."""
    if compare is not None:
        _refuse_other_options(context)
        _compare(compare, as_json=as_json)
        return
    if checkpoint is None:
        raise UserError("give what is to be evaluated: a run, a checkpoint or a directory of weights")
    from vla_rl.cli.number_lists import parse_seeds, parse_tasks

    task_ids = None if tasks is None else tuple(parse_tasks(tasks))
    seeds = tuple(parse_seeds(seed))

    from vla_rl.cli.eval_view import EvaluationProgress, print_report
    from vla_rl.envs.libero.protocol import Protocol
    from vla_rl.evaluation.eval_options import EvalOptions
    from vla_rl.evaluation.evaluate import evaluate as run_evaluation
    from vla_rl.evaluation.suite_plans import named_by_options

    options = EvalOptions(
        suites=tuple(name for entry in suite or () for name in entry.split(",")),
        tasks=task_ids,
        episodes_per_task=episodes_per_task,
        protocol=Protocol(protocol),
        workers=workers,
        step_timeout=step_timeout,
        start_timeout=start_timeout,
        seeds=seeds,
        init_states=init_states,
        horizon=horizon,
        temperature=temperature,
        controls=parse_controls(control),
        perturb=perturb,
        video=None if video == "none" else video,
        assets=assets,
        allow_unpinned=allow_unpinned,
        profile=profile,
        statistics=statistics,
        self_test=self_test,
        serial=serial,
        out=out,
    )
    if not as_json:
        only_comments()
    try:
        with EvaluationProgress() as progress:
            report = run_evaluation(checkpoint, options, progress=progress)
    except CellFailureError as error:
        raise CellFailureError(named_by_options(str(error))) from error
    if as_json:
        print(report.to_json())
    else:
        print_report(report)


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options beside --compare, which would be ignored.

    Raises:
        UserError: there is one; names it.
    """
    sources = {parameter: context.get_parameter_source(parameter.name or "") for parameter in context.command.params}
    given = [parameter for parameter, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    others = [parameter.opts[0] for parameter in given if parameter.name not in ("compare", "as_json")]
    if others:
        raise UserError(f"--compare takes two evaluations and --json, nothing else: leave out {', '.join(others)}")


def _compare(evaluations: tuple[Path, Path], *, as_json: bool) -> None:
    from vla_rl.evaluation.comparison import compare_evaluations

    with preflight():
        report = compare_evaluations(*evaluations)
    print(report.to_json() if as_json else report)


def parse_controls(text: str | None) -> tuple[ControlName, ...]:
    """Parse `blind,instruction`.

    Raises:
        UserError: no such control, or one twice.
    """
    from vla_rl.evaluation.control import CONTROLS

    asked = [] if text is None else [part.strip() for part in text.split(",")]
    found = tuple(name for name in CONTROLS if name in asked)
    if len(found) != len(asked):
        raise UserError(f"--control: found {text!r}; allowed are {', '.join(CONTROLS)}, each once")
    return found
