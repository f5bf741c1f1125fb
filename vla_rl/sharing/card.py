"""Model card: what a policy is, how it was made, how it scored and how to load it, as far as files record it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl import __version__
from vla_rl.errors import preflight
from vla_rl.evaluation.history import History, history_of
from vla_rl.evaluation.policy_source import PolicySource, find_policy
from vla_rl.evaluation.provenance import UNKNOWN_TRAINING
from vla_rl.policies.openvla_oft.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS
from vla_rl.policies.openvla_oft.config import RANDOM_7B, TINY
from vla_rl.reporting.text import percent
from vla_rl.sharing.quoted_scores import Scores, scores_of

CARD_FILE = "README.md"
UNKNOWN = "not recorded"
_SHOWN_VERSIONS = ("vla-rl", "python", "torch", "transformers", "peft", "mujoco", "robosuite", "hf-libero")


@dataclass(frozen=True, slots=True)
class Card:
    """A model card."""

    text: str  # Markdown, with YAML in front
    scores: tuple[Scores, ...]  # the evaluations it quotes


def make_card(
    target: str,
    *,
    repo: str | None = None,
    license_name: str | None = None,
    evaluations: Sequence[Path] = (),
    profile: str = "auto",
) -> Card:
    """Write the card of a policy. Starts nothing, and reads no weights.

    Args:
        target: see `evaluation.policy_source.find_policy`.
        repo: name on the hub, for the commands; None: a placeholder.
        license_name: identifier of the hub's list of licences; None: the card says that none was chosen.
        evaluations: folders of evaluations to quote, besides those found where the policy's results go.
        profile: family of a checkpoint directory.

    Raises:
        UserError: the target is no policy, an evaluation is of another one, or a file is broken.
    """
    with preflight():
        source = find_policy(target, profile=profile)
        history, scores = history_of(source), scores_of(source, evaluations)
        name = repo or "USER/REPO"
        parts = [
            _front(source, history, scores, license_name, name=name.rpartition("/")[2]),
            f"# {name.rpartition('/')[2]}",
            *_what_it_is(source, history),
            *_training(history),
            *_evaluation(scores),
            *_loading(source, name),
            *_licence(license_name),
        ]
    return Card("\n\n".join(parts) + "\n", tuple(scores))


def _front(
    source: PolicySource, history: History | None, scores: Sequence[Scores], license_name: str | None, *, name: str
) -> str:
    """Return the YAML that the hub reads. JSON is YAML, and quotes what needs it."""
    tags = ["vla-rl", *source.policy.card_tags, "robotics"]
    if history is not None:
        tags.append("reinforcement-learning" if history.stage == "train" else "imitation-learning")
    lines = ["---", "library_name: vla-rl", "pipeline_tag: robotics", f"tags: {json.dumps(tags)}"]
    if license_name is not None:
        lines.append(f"license: {license_name}")
    if history is not None and history.base is not None and "/" in history.base:
        lines.append(f"base_model: {json.dumps(history.base)}")
    results = [_indexed(one, suite) for one in scores for suite in one.results["suites"]]
    if results:
        lines.append(f"model-index: {json.dumps([{'name': name, 'results': results}])}")
    return "\n".join([*lines, "---"])


def _indexed(scores: Scores, suite: dict[str, Any]) -> dict[str, Any]:
    """Return one entry of the hub's list of results."""
    conditions = scores.results["evaluation"]
    words = f"{suite['episodes']} episodes, {conditions['init_states']} initial states"
    return {
        "task": {"type": "robotics"},
        "dataset": {"name": suite["suite"], "type": suite["suite"], "args": words},
        "metrics": [{"type": "success_rate", "name": "success rate", "value": suite["success_rate"]}],
    }


def _what_it_is(source: PolicySource, history: History | None) -> Iterator[str]:
    made = {"train": "reinforcement learning", "sft": "supervised training on demonstrations"}
    how = UNKNOWN if history is None else made[history.stage]
    rows = [
        ("policy", source.policy.name),
        ("made by", how),
        ("trained on", UNKNOWN if source.trained_on == UNKNOWN_TRAINING else source.trained_on),
    ]
    yield _table(("", ""), rows)


def _training(history: History | None) -> Iterator[str]:
    yield "## Training"
    if history is None:
        yield "No file of this policy tells how it was trained."
        return
    yield from _stage(history)
    before = history.base_history
    while before is not None:
        yield f"### Before that: `{before.run}`"
        yield from _stage(before)
        before = before.base_history


def _stage(history: History) -> Iterator[str]:
    recipe = history.recipe
    rows = [
        ("recipe", f"`{history.run}`, seed {recipe.get('seed', UNKNOWN)}"),
        ("began from", _base_in_words(history.base)),
    ]
    if history.stage == "train":
        rows += [
            ("surrogate", _settings(recipe.get("surrogate"))),
            ("targets", _settings(recipe.get("targets"))),
            ("environment", _settings(recipe.get("env"))),
            ("sampling in training", f"temperature {recipe.get('rollout', {}).get('temperature', UNKNOWN)}"),
            ("env steps used", UNKNOWN if history.env_steps is None else f"{history.env_steps:,}"),
            ("episodes used", UNKNOWN if history.episodes is None else f"{history.episodes:,}"),
        ]
    else:
        rows.append(("demonstrations", _settings(recipe.get("demos"))))
    rows += [
        ("optimizer steps", f"{history.optimizer_steps:,}"),
        ("software", ", ".join(f"{name} {history.versions[name]}" for name in _shown(history.versions)) or UNKNOWN),
        ("commit of vla-rl", _commit_in_words(history)),
    ]
    yield _table(("", ""), rows)
    if history.deviations:
        yield "Deviations from the benchmark's protocol in the training:"
        yield _bullets(history.deviations)
    if history.changes:
        yield "What changed while it was trained:"
        yield _bullets(history.changes)
    recipe_text = json.dumps(recipe, indent=2, ensure_ascii=False)
    yield f"<details><summary>The recipe</summary>\n\n```json\n{recipe_text}\n```\n\n</details>"


def _base_in_words(base: str | None) -> str:
    if base is None:
        return "random weights"
    return f"random weights (`{base}`)" if base in (TINY, RANDOM_7B) else f"`{base}`"


def _commit_in_words(history: History) -> str:
    if history.commit is None:
        return UNKNOWN
    return f"{history.commit}{', with local changes' if history.has_local_changes else ''}"


def _shown(versions: dict[str, str]) -> list[str]:
    return [name for name in _SHOWN_VERSIONS if name in versions]


def _settings(section: Any) -> str:  # noqa: ANN401 - a section of a recorded recipe
    """Return a section in one line: its name, then the fields that have a value."""
    if not isinstance(section, dict):
        return UNKNOWN
    shown = [f"{name} {json.dumps(value)}" for name, value in section.items() if name != "name" and value is not None]
    return "; ".join([*([f"`{section['name']}`"] if "name" in section else []), ", ".join(shown)]).removesuffix("; ")


def _evaluation(scores: Sequence[Scores]) -> Iterator[str]:
    yield "## Evaluation"
    if not scores:
        yield "No evaluation of this policy was found or given, so there are no scores here."
        return
    for one in scores:
        yield from _one_evaluation(one)


def _one_evaluation(scores: Scores) -> Iterator[str]:
    results, manifest = scores.results, scores.manifest.get("extra", {})
    conditions, confidence = results["evaluation"], percent(results["confidence"])
    suites = results["suites"]
    yield f"### {', '.join(suite['suite'] for suite in suites)}, {conditions['init_states']} initial states"
    if scores.before_export:
        yield "Played by the checkpoint that these weights were exported from."
    rows = [
        [
            suite["suite"],
            str(suite["tasks"]),
            str(suite["episodes"]),
            _rate(suite["success_rate"]),
            _interval(suite["wilson"]),
            _interval(suite["bootstrap"]),
        ]
        for suite in suites
    ]
    headings = ("suite", "tasks", "episodes", "success", f"{confidence} interval (Wilson)", f"{confidence} (bootstrap)")
    yield _table(headings, rows)
    yield _table(("protocol", ""), _protocol(conditions, manifest))
    deviations = results["deviations"]
    if deviations:
        yield "Deviations from the benchmark's protocol; these scores are not the benchmark's:"
        yield _bullets(deviations)
    else:
        yield "No deviation from the benchmark's protocol was recorded."
    if results["notes"]:
        yield _bullets(results["notes"])
    yield from _changed(results)
    yield f"<details><summary>Task by task</summary>\n\n{_tasks(results['tasks'])}\n\n</details>"


def _protocol(conditions: dict[str, Any], manifest: dict[str, Any]) -> list[tuple[str, str]]:
    horizons = manifest.get("horizons") or {}
    limits = ", ".join(f"{suite} {limit}" for suite, limit in horizons.items())
    temperature = conditions["temperature"]
    return [
        ("protocol", conditions["protocol"]),
        ("horizon, control steps", limits or str(conditions["horizon"] or UNKNOWN)),
        ("actions", "greedy" if temperature is None else f"sampled at temperature {temperature:g}"),
        ("initial states", conditions["init_states"]),
        ("seeds of the environments", ", ".join(map(str, conditions["seeds"]))),
        ("assets", conditions["assets"]),
        ("simulator", conditions["versions"]),
    ]


def _changed(results: Any) -> Iterator[str]:  # noqa: ANN401 - results.json
    """Yield what became of the policy under controls and perturbations, if those were played."""
    if results["controls"]:
        yield "Controls, on the same episodes:"
        rows = [[one["name"], _rate(one["success_rate"]), one["meaning"]] for one in results["controls"]]
        yield _table(("control", "success", ""), rows)
    if results.get("perturbations"):
        yield "Under perturbations, on the same episodes:"
        rows = [
            [
                one["suite"],
                one["kind"] if one["level"] is None else f"{one['kind']}, level {one['level']}",
                str(one["episodes"]),
                _rate(one["success_rate"]),
                _interval(one["wilson"]),
            ]
            for one in results["perturbations"]
        ]
        yield _table(("suite", "perturbation", "episodes", "success", "interval (Wilson)"), rows)


def _tasks(tasks: Sequence[dict[str, Any]]) -> str:
    rows = [
        [task["suite"], str(task["task_id"]), task["language"], f"{task['successes']}/{task['episodes']}",
         _interval(task["wilson"])]
        for task in tasks
    ]  # fmt: skip
    return _table(("suite", "task", "instruction", "successes", "interval (Wilson)"), rows)


def _loading(source: PolicySource, repo: str) -> Iterator[str]:
    yield "## How to load it"
    section = source.policy
    if not section.stored_as:
        yield f"A policy of kind `{section.name}` is evaluated from its run alone: `vla-rl eval RUN`."
        return
    suite = "" if source.training is not None or source.run is not None else " --suite SUITE"
    yield (
        f"With `vla-rl` {__version__}:\n\n```sh\nvla-rl eval {repo}{suite}\n"
        f"hf download {repo} --local-dir policy\nvla-rl train RECIPE policy.checkpoint=./policy\n```"
    )
    if _is_adapter(source):
        yield f"It is a LoRA adapter (`{ADAPTER_WEIGHTS}`) that peft can load; its base must be there as well."
        return
    task_suite = "SUITE" if source.training is None else source.training.suite
    elsewhere = section.loaded_elsewhere("policy", suite=task_suite)
    if elsewhere is not None:
        yield elsewhere


def _is_adapter(source: PolicySource) -> bool:
    return source.checkpoint is None and (Path(source.location).expanduser() / ADAPTER_WEIGHTS).is_file()


def _licence(license_name: str | None) -> Iterator[str]:
    yield "## Licence"
    if license_name is None:
        yield "The uploader has not chosen a licence. The licences of what it began from hold as well."
    else:
        yield f"`{license_name}`, chosen by the uploader. The licences of what it began from hold as well."


def _rate(share: float) -> str:
    return percent(share, digits=1)


def _interval(interval: dict[str, float] | None) -> str:
    if interval is None:
        return "none: initial states do not differ"
    return f"{percent(interval['low'], digits=1)} to {percent(interval['high'], digits=1)}"


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"* {_cell(sentence)}" for sentence in sentences)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return text that ends no cell, line or tag of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
