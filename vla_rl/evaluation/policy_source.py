"""Sources of a policy: a run, one of its checkpoints, a public checkpoint directory, or the tiny model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla_rl.envs.kind import EnvironmentSection, known_suites
from vla_rl.envs.kinds import ENVIRONMENTS
from vla_rl.evaluation.provenance import UNKNOWN_TRAINING, Training, recorded_training, training_in
from vla_rl.learner import checkpoint_folder
from vla_rl.learner.checkpoint import (
    BEST,
    FOLDER,
    POINTERS,
    POLICY_FILE,
    CheckpointError,
    find_latest,
    kept_for_the_run,
    named_by,
)
from vla_rl.policies.file_digest import sampled_digest
from vla_rl.policies.kind import PolicySection, StoredPolicy
from vla_rl.policies.kinds import POLICIES
from vla_rl.recipe import Setup, is_supervised, list_recipes, load_recorded_recipe
from vla_rl.reporting.run_folder import POLICY_FOLDER, RECIPE_FILE, as_argument, started_in
from vla_rl.reporting.run_layout import EVALUATIONS
from vla_rl.run.statistics_key import STATISTICS

_KINDS_OF_SUITES: Mapping[str, type[EnvironmentSection]] = {
    suite: kind for kind in ENVIRONMENTS.values() for suite in kind.suites
}
_RUNS = Path("runs")  # where the results of what is no run go
_NEWER_FIELDS = (("statistics", None), ("train_embeddings", True))  # with the values that older runs had


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Policy to evaluate or export, and its origin."""

    location: str  # location, for people
    name: str  # name of the folder of results
    home: Path  # that folder's parent
    policy: PolicySection
    checkpoint: Path | None  # trained tensors that replace the policy's; None: the policy unchanged
    fingerprint: str
    training: Training | None  # None: unknown
    statistics: str | None = None  # key of the data set that scaled actions in the training, if a checkpoint records it
    run: Setup | None = None  # environment of its training; None: not from a run, so that an environment must be named
    num_images: int = 1  # the policy's cameras, if it is not from a run

    @property
    def trained_on(self) -> str:
        """Return the suite and initial states of the training, in words."""
        return UNKNOWN_TRAINING if self.training is None else str(self.training)

    def suites(self, asked: Sequence[str]) -> Sequence[str]:
        """Return the suites to play; the name of the environment, where there are none.

        Raises:
            ValueError: one does not exist, stands twice, or must be named.
        """
        if self.run is not None:
            return self.run.env.suites_to_play(asked)
        if not asked and self.training is None:
            allowed = ", ".join(_KINDS_OF_SUITES)
            raise ValueError(f"--suite: {self.location} does not say what it is for; name a suite: {allowed}")
        return known_suites(asked, _KINDS_OF_SUITES) or ([] if self.training is None else [self.training.suite])

    def setup(self, suite: str) -> Setup:
        """Return the policy in the environment of its training, or in a suite where no run made it."""
        if self.run is not None:
            return self.run.model_copy(update={"policy": self.policy})
        trained = self.training is not None and self.training.suite == suite
        tasks = self.training.tasks if self.training is not None and trained else None
        env = _KINDS_OF_SUITES[suite].of_suite(suite, tasks=tasks, num_images=self.num_images)
        return Setup.model_validate({"env": env, "policy": self.policy, "precision": "bf16" if _has_gpu() else "fp32"})


def find_policy(target: str, *, profile: str, statistics: str | None = None) -> PolicySource:
    """Find the policy to evaluate or export. Reads checksums, no weights.

    Args:
        target: the folder of a run (its newest whole checkpoint is taken) or of a checkpoint, or the file
            `checkpoints/best` or `checkpoints/latest` that names one; a checkpoint directory
            with `config.json` and safetensors, such as an export; the folder of a LoRA adapter, which names its base;
            the name of either on the Hugging Face hub, downloaded unless the local cache has it; or
            `tiny`, the random model (`./tiny` is a folder).
        profile: family of a checkpoint directory, which its files do not state. A run's recipe does.
        statistics: key of the data set whose statistics scale the actions; None for what the recipe or an export's
            record says, else for the suite's own or the only one.

    Raises:
        ValueError: it is none of these; the message says what it is, and what to do.
    """
    path = _meant_path(target)
    target = str(path) if path.parent.name == FOLDER else target
    if path.exists() and not any(target in kind.reserved_names for kind in POLICIES.values()):
        in_run = path.parent.name == FOLDER and (path.parents[1] / RECIPE_FILE).is_file()
        if (in_run or (path / RECIPE_FILE).is_file()) and profile != "auto":
            raise ValueError(f"--profile: {target} belongs to a run, whose recipe says it; leave the option out")
        if in_run and is_supervised(path.parents[1] / RECIPE_FILE):
            raise CheckpointError(
                f"{target}: a checkpoint of a supervised run, which only "
                f"`vla-rl sft {as_argument(path.parents[1])} --resume` reads; "
                f"its policy is {path.parents[1] / POLICY_FOLDER}, written at its end and for its evaluations"
            )
        if in_run:
            return _scaled_by(statistics, _trained(path, run_dir=path.parents[1], whole=False))
        if _is_run(path) and is_supervised(path / RECIPE_FILE):
            target = str(_policy_of(path))
        elif _is_run(path):
            return _scaled_by(statistics, _trained(_newest(path), run_dir=path, whole=True))
    for kind in POLICIES.values():
        stored = kind.stored(target, profile=profile, statistics=statistics, bf16=_has_gpu())
        if stored is not None:
            return _policy_alone(target, stored, profile=profile, statistics=statistics)
    if not path.exists():
        raise CheckpointError(
            f"{target} does not exist: give the folder of a run, of a checkpoint, or exported weights{_meant(target)}"
        )
    raise CheckpointError(f"{target} is nothing that can be evaluated: {_what_it_is(path)}")


def _meant_path(target: str) -> Path:
    """Return the path that a target means, if it means one: that of the checkpoint where it names one."""
    path = Path(target).expanduser()
    return named_by(path) if path.parent.name == FOLDER and path.name in POINTERS and path.is_file() else path


def _is_run(path: Path) -> bool:
    return (path / RECIPE_FILE).is_file()


def _policy_of(run_dir: Path) -> Path:
    """Return the policy that a supervised run has written.

    Raises:
        CheckpointError: it has not.
    """
    policy = run_dir / POLICY_FOLDER
    if not policy.is_dir():
        raise CheckpointError(
            f"{run_dir}: a supervised run that has not written its policy yet, which it does at its end: "
            f"`vla-rl sft {as_argument(run_dir)} --resume` continues it, and budget.optimizer_steps=N ends it at N"
        )
    return policy


def _home(policy: Path) -> Path | None:
    """Return where results of a supervised run's policy go: below the run, as those of other runs."""
    of_run = policy.name == POLICY_FOLDER and _is_run(policy.parent)
    return policy.parent / EVALUATIONS if of_run else None


def _meant(target: str) -> str:
    """Return the run of a recipe whose name was given, or what makes a best checkpoint where there is none."""
    path = Path(target).expanduser()
    if path.name == BEST and path.parent.name == FOLDER and path.parent.is_dir():
        return "; only runs whose checkpoint.keep_best is true keep one"
    if target not in list_recipes():
        return ""
    run = _RUNS / target
    return f"; did you mean {run}?" if run.is_dir() else f"; `vla-rl train {target}` makes the run {run}"


def _what_it_is(path: Path) -> str:
    """Explain why a path is refused, and what to give instead."""
    if path.is_file():
        return "it is a file. Give the folder of a run, of a checkpoint, or of exported weights"
    return (
        f"it holds no {RECIPE_FILE} (a run), is not in {FOLDER}/ of a run, and lacks "
        + " or ".join(kind.stored_as for kind in POLICIES.values() if kind.stored_as)
        + "".join(f"\n  {folder} is one of these" for folder in _policies_in(path))
    )


def _policies_in(path: Path) -> list[Path]:
    """Return the folders in a folder that can be evaluated, one of which was probably meant."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    return [folder for folder in folders if (folder / RECIPE_FILE).is_file() or _is_stored_in(folder)]


def _is_stored_in(folder: Path) -> bool:
    return any(kind.is_stored_in(folder) for kind in POLICIES.values())


def _newest(run_dir: Path) -> Path:
    search = find_latest(run_dir)
    if search.newest is None:
        reasons = "".join(f"\n  {warning}" for warning in search.warnings)
        raise CheckpointError(f"{run_dir} holds no whole checkpoint under {FOLDER}/{reasons}")
    return search.newest.path


def _trained(checkpoint: Path, *, run_dir: Path, whole: bool) -> PolicySource:
    """Return the policy of a run's checkpoint; `whole` if its checksums were already verified."""
    problem = None if whole else checkpoint_folder.problem_of(checkpoint)
    if problem is not None:
        raise CheckpointError(f"{checkpoint}: {problem}")
    setup = _on_this_machine(load_recorded_recipe(run_dir / RECIPE_FILE).setup)
    found = setup.found_from(started_in(run_dir))
    entry = json.loads((checkpoint / checkpoint_folder.MANIFEST).read_text())["files"][POLICY_FILE]
    return PolicySource(
        location=str(checkpoint),
        name=checkpoint.name,
        home=run_dir / EVALUATIONS,
        policy=found.policy,
        checkpoint=checkpoint,
        fingerprint=_digest(entry, _described(setup.policy), setup.seed),  # the same from every directory
        training=training_in(setup.env),
        statistics=kept_for_the_run(checkpoint).get(STATISTICS),
        run=found,
    )


def _on_this_machine(setup: Setup) -> Setup:
    """Replace a GPU by `auto`, so that a run can be evaluated and exported on a machine without one."""
    if setup.runtime.device != "cuda":
        return setup
    return setup.model_copy(update={"runtime": setup.runtime.model_copy(update={"device": "auto"})})


def _described(policy: PolicySection) -> dict[str, Any]:
    """Describe a policy's section as before it had newer fields, so that older evaluations can be continued."""
    section = policy.model_dump(mode="json")
    return {name: value for name, value in section.items() if (name, value) not in _NEWER_FIELDS}


def _scaled_by(statistics: str | None, source: PolicySource) -> PolicySource:
    """Return a policy whose actions are scaled by other statistics than the suite's own.

    Raises:
        ValueError: the run records its statistics, or its policy has none.
    """
    if statistics is None:
        return source
    scaled = source.policy.scaled_by(statistics, location=source.location)
    return replace(source, policy=scaled, fingerprint=_digest(source.fingerprint, statistics))


def _policy_alone(location: str, stored: StoredPolicy, *, profile: str, statistics: str | None) -> PolicySource:
    """Return a policy without a run: its weights are unchanged; its training is known if an export recorded it."""
    name = Path(location).name
    name = name if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) else "checkpoint"
    fingerprint = location if stored.folder is None else sampled_digest(_files_of(stored.files_in))
    return PolicySource(
        location=location,
        name="",
        home=(None if stored.folder is None else _home(stored.folder)) or _RUNS / name / EVALUATIONS,
        policy=stored.section,
        checkpoint=None,
        fingerprint=_digest(fingerprint, profile, *([] if statistics is None else [statistics])),
        training=None if stored.folder is None else recorded_training(stored.folder),
        num_images=stored.num_images,
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _files_of(folders: Sequence[Path]) -> list[Path]:
    """Return the files that make a stored policy what it is; an adapter's include those of its base."""
    kept = [path for folder in folders for path in sorted(folder.iterdir())]
    return [path for path in kept if path.suffix in {".json", ".safetensors", ".pt"}]


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
