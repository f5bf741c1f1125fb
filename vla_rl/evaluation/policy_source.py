"""What is evaluated: a run, one of its checkpoints, a checkpoint directory of the public layout, or the tiny model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vla_rl.envs.libero.section import CAMERAS, LiberoSection, known_suites
from vla_rl.evaluation.provenance import UNKNOWN_TRAINING, Training, recorded_training, training_in
from vla_rl.learner import checkpoint_files
from vla_rl.learner.checkpoint import FOLDER, CheckpointError, find_latest, kept_for_the_run
from vla_rl.libero_suites import SUITES
from vla_rl.policies.openvla_oft.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from vla_rl.policies.openvla_oft.files import find_files, is_checkpoint
from vla_rl.policies.openvla_oft.hub import checkpoint_directory
from vla_rl.policies.openvla_oft.profiles import resolve_profile
from vla_rl.policies.openvla_oft.source import RANDOM_7B, TINY
from vla_rl.recipe import (
    EnvSection,
    OpenVLAOFTSection,
    PolicySection,
    Setup,
    list_recipes,
    load_recorded_recipe,
)
from vla_rl.reporting.run_folder import EVALUATIONS, RECIPE_FILE
from vla_rl.run.statistics_key import STATISTICS

_RUNS = Path("runs")  # where the results of what is no run go
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16  # of a weights file, that its fingerprint is made of


@dataclass(frozen=True, slots=True)
class PolicySource:
    """A policy to evaluate or export, and where it comes from."""

    location: str  # where it lies, for people
    name: str  # of the folder of results
    home: Path  # that folder's parent
    policy: PolicySection
    checkpoint: Path | None  # trained tensors to lay over the policy; None: the policy as it is
    fingerprint: str
    training: Training | None  # None: nobody knows
    statistics: str | None = None  # key of the data set that scaled actions in the training, where a checkpoint knows
    run: Setup | None = None  # of the run that made it; None: no run did, so that an environment must be named
    num_images: int = 1  # cameras that the policy looks through, where no run says it

    @property
    def trained_on(self) -> str:
        """Suite and initial states of the training, in words."""
        return UNKNOWN_TRAINING if self.training is None else str(self.training)

    def suites(self, asked: Sequence[str]) -> Sequence[str]:
        """Return the suites to play; the name of the environment, where there are none.

        Raises:
            ValueError: one does not exist, stands twice, or must be named.
        """
        if self.run is not None:
            return self.run.env.suites_to_play(asked)
        if not asked and self.training is None:
            raise ValueError(f"--suite: {self.location} does not say what it is for; name a suite: {', '.join(SUITES)}")
        return known_suites(asked) or ([] if self.training is None else [self.training.suite])

    def setup(self, suite: str) -> Setup:
        """Return the policy in the environment of its training, or in a suite of LIBERO where no run made it."""
        if self.run is not None:
            return self.run.model_copy(update={"policy": self.policy})
        return Setup(env=self._libero(suite), policy=self.policy, precision=_precision())

    def _libero(self, suite: str) -> EnvSection:
        trained = self.training is not None and self.training.suite == suite
        tasks = list(self.training.tasks) if self.training is not None and trained else "all"
        return LiberoSection.model_validate(
            {"name": "libero", "suite": suite, "tasks": tasks, "cameras": list(CAMERAS[: self.num_images])}
        )


def find_policy(target: str, *, profile: str, statistics: str | None = None) -> PolicySource:
    """Look up what is to be evaluated or exported. Reads checksums, no weights.

    Args:
        target: the folder of a run (its newest whole checkpoint is taken) or of a checkpoint; a checkpoint directory
            with `config.json` and safetensors, such as an export; the folder of a LoRA adapter, which names its base;
            the name of either on the Hugging Face hub, from where it is downloaded unless the local cache has it; or
            `tiny`, the random model (`./tiny` is a folder).
        profile: of a checkpoint directory: what its files do not say. A run says it in its recipe.
        statistics: key of the data set whose statistics scale the actions; None for what the recipe or an export's
            record says, else for the suite's own or the only one.

    Raises:
        ValueError: it is none of these; the message says what it is instead, and what to do.
    """
    if target == TINY:
        return _policy_alone(
            TINY,
            checkpoint=TINY,
            profile=profile,
            statistics=statistics,
            num_images=1,
            fingerprint=TINY,
            training=None,
        )
    path = checkpoint_directory(target, download=True)
    if not path.exists():
        raise CheckpointError(
            f"{target} does not exist: give the folder of a run, of a checkpoint, or exported weights{_meant(target)}"
        )
    in_run = path.parent.name == FOLDER and (path.parents[1] / RECIPE_FILE).is_file()
    if (in_run or (path / RECIPE_FILE).is_file()) and profile != "auto":
        raise ValueError(f"--profile: {target} belongs to a run, whose recipe says it; leave the option out")
    if in_run:
        return _scaled_by(statistics, _trained(path, run_dir=path.parents[1], whole=False))
    if (path / RECIPE_FILE).is_file():
        return _scaled_by(statistics, _trained(_newest(path), run_dir=path, whole=True))
    if is_checkpoint(path):
        return _policy_alone(
            target,
            checkpoint=_as_folder(path),
            profile=profile,
            statistics=statistics,
            num_images=_num_images(path, profile),
            fingerprint=_sampled_digest(path),
            training=recorded_training(path),
        )
    raise CheckpointError(f"{target} is nothing that can be evaluated: {_what_it_is(path)}")


def _as_folder(path: Path) -> str:
    """A path as a recipe's `policy.checkpoint`, where `tiny` alone would be the random model and no folder."""
    return f"./{path}" if str(path) in (TINY, RANDOM_7B) else str(path)


def _meant(target: str) -> str:
    """The run of a recipe whose name was given."""
    if target not in list_recipes():
        return ""
    run = _RUNS / target
    return f"; did you mean {run}?" if run.is_dir() else f"; `vla-rl train {target}` makes the run {run}"


def _what_it_is(path: Path) -> str:
    """Why a path is refused, and what to give instead."""
    if path.is_file():
        return "it is a file. Give the folder of a run, of a checkpoint, or of exported weights"
    return (
        f"it holds neither {RECIPE_FILE} (a run), nor is it below {FOLDER}/ of a run, nor is there a config.json "
        f"(a checkpoint directory) or an {ADAPTER_CONFIG} (a LoRA adapter)"
        + "".join(f"\n  {folder} is one of these" for folder in _policies_in(path))
    )


def _policies_in(path: Path) -> list[Path]:
    """Folders in a folder that can be evaluated: probably one of them was meant."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    return [folder for folder in folders if (folder / RECIPE_FILE).is_file() or is_checkpoint(folder)]


def _newest(run_dir: Path) -> Path:
    search = find_latest(run_dir)
    if search.newest is None:
        reasons = "".join(f"\n  {warning}" for warning in search.warnings)
        raise CheckpointError(f"{run_dir} holds no whole checkpoint under {FOLDER}/{reasons}")
    return search.newest.path


def _trained(checkpoint: Path, *, run_dir: Path, whole: bool) -> PolicySource:
    """A checkpoint of a run; `whole` if its files were compared with their checksums already."""
    problem = None if whole else checkpoint_files.problem_of(checkpoint)
    if problem is not None:
        raise CheckpointError(f"{checkpoint}: {problem}")
    setup = _on_this_machine(load_recorded_recipe(run_dir / RECIPE_FILE).setup)
    entry = json.loads((checkpoint / checkpoint_files.MANIFEST).read_text())["files"]["policy.safetensors"]
    return PolicySource(
        location=str(checkpoint),
        name=checkpoint.name,
        home=run_dir / EVALUATIONS,
        policy=setup.policy,
        checkpoint=checkpoint,
        fingerprint=_digest(entry, _described(setup.policy), setup.seed),
        training=training_in(setup.env),
        statistics=kept_for_the_run(checkpoint).get(STATISTICS),
        run=setup,
    )


def _on_this_machine(setup: Setup) -> Setup:
    """A run whose recipe asked for a GPU is evaluated and exported where there is none too."""
    if setup.runtime.device != "cuda":
        return setup
    return setup.model_copy(update={"runtime": setup.runtime.model_copy(update={"device": "auto"})})


def _described(policy: PolicySection) -> dict[str, Any]:
    """A policy's section, as it was before there was a key of statistics: evaluations of older runs go on."""
    section = policy.model_dump(mode="json")
    return {name: value for name, value in section.items() if name != "statistics" or value is not None}


def _scaled_by(statistics: str | None, source: PolicySource) -> PolicySource:
    """The policy of a run with its actions scaled by other statistics than the suite's own.

    Raises:
        ValueError: the run says what it was trained with, or its policy has no statistics.
    """
    policy = source.policy
    if statistics is None:
        return source
    if not isinstance(policy, OpenVLAOFTSection):
        raise ValueError(f"--statistics: the policy {policy.name!r} has none; leave the option out")
    if policy.statistics not in (None, statistics):
        raise ValueError(
            f"--statistics: found {statistics}, but {source.location} was trained with policy.statistics="
            f"{policy.statistics}; leave the option out"
        )
    scaled = policy.model_copy(update={"statistics": statistics})
    return replace(source, policy=scaled, fingerprint=_digest(source.fingerprint, statistics))


def _num_images(directory: Path, profile: str) -> int:
    """How many cameras the checkpoints of its family look through.

    Raises:
        ValueError: weights are missing, or no such profile.
    """
    files = find_files(directory)
    return resolve_profile(profile, has_l1_head=files.action_head is not None, recorded=files.profile).num_images


def _policy_alone(
    location: str,
    *,
    checkpoint: str,
    profile: str,
    statistics: str | None,
    num_images: int,
    fingerprint: str,
    training: Training | None,
) -> PolicySource:
    """A policy without a run: nothing is laid over its weights; its training is known where an export recorded it."""
    name = Path(location).name
    name = name if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) else "checkpoint"
    policy = OpenVLAOFTSection.model_validate(
        {
            "name": "openvla_oft",
            "checkpoint": checkpoint,
            "profile": profile,
            "statistics": statistics,
            "lora": None,
            "train_action_rows": False,
            "train_proprio_projector": False,
            "dtype": "bfloat16" if _has_gpu() else "float32",
        }
    )
    return PolicySource(
        location=location,
        name="",
        home=_RUNS / name / EVALUATIONS,
        policy=policy,
        checkpoint=None,
        fingerprint=_digest(fingerprint, profile, *([] if statistics is None else [statistics])),
        training=training,
        num_images=num_images,
    )


def _precision() -> Literal["fp32", "bf16"]:
    return "bf16" if _has_gpu() else "fp32"


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _sampled_digest(directory: Path) -> str:
    """Of the small files, and of blocks spread over the large ones: gigabytes need not be read to tell two apart.

    An adapter is told apart by its base too.

    Raises:
        ValueError: weights are missing, or an adapter's base.
    """
    kept = [path for folder in find_files(directory).folders for path in sorted(folder.iterdir())]
    digest = hashlib.sha256()
    for path in (path for path in kept if path.suffix in {".json", ".safetensors", ".pt"}):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for block in _blocks(path):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            file.seek(number * max(0, size - _BLOCK_BYTES) // (_BLOCKS - 1))
            yield file.read(_BLOCK_BYTES)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
