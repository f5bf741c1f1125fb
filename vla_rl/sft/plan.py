"""Plan of a supervised run: its data in memory, its policy in plain values, and whether it can run at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vla_rl.demos import Demos, DemosError, open_demos
from vla_rl.policies.image_transforms import Transform
from vla_rl.policies.kind import PolicyContext, PolicyPlan
from vla_rl.recipe import SupervisedRecipe
from vla_rl.recipe.supervised_sections import DemosSection
from vla_rl.run.plan import resolve_device
from vla_rl.run.ranks import cores_of_rank
from vla_rl.section import Problem
from vla_rl.sft.augmentation import Augmentation
from vla_rl.sft.frames import identity
from vla_rl.sft.samples import Rollouts, Samples, make_samples, read_rollouts

Progress = Callable[[int, int], None]
VERSION = re.compile(r"\d+(\.\d+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedPlan:
    """A supervised run in plain values."""

    recipe: SupervisedRecipe
    demos: Demos
    key: str  # of the data set
    measured: dict[str, Any]  # dataset_statistics.json: one entry
    samples: Samples
    policy: PolicyPlan
    device: str

    @property
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """Return the kind of the torch device."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def threads(self) -> int:
        """Return torch's threads of this rank."""
        return self.recipe.runtime.threads_per_process or cores_of_rank()

    @property
    def loader_threads(self) -> int:
        """Return the threads of this rank that prepare frames."""
        return self.recipe.runtime.loader_threads or cores_of_rank()

    @property
    def contradictions(self) -> tuple[Problem, ...]:
        """Return the values of the recipe that would have no effect: no run begins with them."""
        weight = self.recipe.loss.value_coefficient
        if not weight or self.recipe.policy.has_critic:
            return self.policy.contradictions
        no_critic = Problem(
            "loss.value_coefficient",
            "there is no critic to train",
            found=f"{weight:g} with policy.value_head none",
            allowed="0, or a policy.value_head",
            hint="add loss.value_coefficient=0, or policy.value_head=attention_pool",
        )
        return (*self.policy.contradictions, no_critic)

    @property
    def augmentation(self) -> Augmentation:
        """Return the changes of training frames."""
        return Augmentation(**self.recipe.augmentation.model_dump())

    @property
    def transform(self) -> Transform:
        """Return the transform of the policy's frames."""
        transform = self.policy.transform
        assert isinstance(transform, Transform), "the policy looks at camera frames"
        return transform

    def frames_file(self, run_dir: Path) -> Path:
        """Return the file of prepared frames."""
        cache = self.recipe.demos.cache
        if cache is None:
            return run_dir / "frames" / "frames.bin"
        name = identity(self.demos, self.recipe.demos.cameras, self.transform)
        return Path(cache).expanduser() / f"{name}.bin"

    def digest(self) -> str:
        """Return a digest of all numbers of the demonstrations, by which a resumed run recognises them."""
        rollouts: Rollouts = self.samples.rollouts
        digest = hashlib.sha256(" | ".join(rollouts.instructions).encode())
        for array in (rollouts.actions, rollouts.state, rollouts.length, rollouts.task):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]


def make_supervised_plan(recipe: SupervisedRecipe, progress: Progress = lambda _done, _total: None) -> SupervisedPlan:
    """Read the numbers of all demonstrations, and check everything that can be checked without weights and pictures.

    Args:
        recipe: everything about the run.
        progress: called with the episodes that were read, and all.

    Raises:
        ValueError: the recipe is not possible here; names the field, the rule, the found and the allowed value.
    """
    section = recipe.demos
    if section.cache is not None:
        _check_cache(section.cache)
    device = resolve_device(recipe.runtime.device)
    demos = _open(section)
    key = section.key or section.suite or _name_of(demos.path.resolve())
    rollouts = read_rollouts(demos, progress)
    measured = {key: rollouts.statistics()}
    policy = recipe.policy.plan(
        PolicyContext(
            seed=recipe.seed,
            suite=key,
            tasks=rollouts.instructions,
            num_images=len(section.cameras),
            bf16=recipe.learner.precision == "bf16",
            draw_on=device,
            measured=measured,
            add_proprio=section.add_proprio,
        )
    )
    samples = make_samples(
        rollouts,
        measured[key],
        chunk_size=policy.action_spec.chunk_size,
        held_out=section.held_out,
        seed=recipe.seed,
    )
    plan = SupervisedPlan(
        recipe=recipe, demos=demos, key=key, measured=measured, samples=samples, policy=policy, device=device
    )
    _check_crop(plan)
    return plan


def _open(section: DemosSection) -> Demos:
    """Open the demonstrations.

    Raises:
        ValueError: they cannot be read; names the field where its path is what is wrong, else the file.
    """
    try:
        return open_demos(
            section.path, gripper=section.gripper, rotated=section.rotated, drop_no_ops=section.drop_no_ops
        )
    except DemosError as error:
        if error.key or error.file != Path(section.path).expanduser():
            raise
        raise ValueError(f"demos.path: {error}") from error


def _check_cache(cache: str) -> None:
    """Refuse a place where no folder of frames can be. One that is complete may be read-only.

    Raises:
        ValueError: naming the field.
    """
    folder = Path(cache).expanduser()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"demos.cache: expected a folder for frames, found {cache}: {there} is a file. Name another")


def _name_of(path: Path) -> str:
    """Return the name of a data set: that of its file or folder, not that of its version as in `NAME/1.0.0`."""
    named = path.parent if VERSION.fullmatch(path.name) else path
    return named.name.split(".")[0].lstrip("_") or "demos"


def _check_crop(plan: SupervisedPlan) -> None:
    """Refuse crops in training for a policy that acts on whole frames.

    Raises:
        ValueError: naming the field.
    """
    crop, area = plan.recipe.augmentation.crop, plan.transform.crop_area
    if area == 1.0 and crop < 1.0:
        raise ValueError(
            f"augmentation.crop is {crop:g}, but this policy acts on frames that are not cropped. "
            " Allowed: 1, or a policy.profile whose frames are cropped when it acts, like simplevla"
        )
