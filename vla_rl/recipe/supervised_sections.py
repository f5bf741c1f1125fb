"""Sections of a recipe of the supervised stage, with the rules inside one section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vla_rl.recipe.sections import EngineSection, MetricsSection, PlayedSection
from vla_rl.section import (
    BatchSize,
    Fraction,
    Horizon,
    NonNegative,
    PathText,
    Positive,
    Problem,
    Processes,
    RulesError,
    Section,
    Text,
    Weight,
    lost_path,
    path_from_here,
)

Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]


class DemosSection(Section):
    """Demonstrations that a policy is trained on."""

    path: PathText = Field(description="a file or a folder, of any format that `vla-rl demos inspect` reads")
    suite: Suite | None = Field(None, description="LIBERO suite of the tasks; null: none")
    key: Annotated[Text, Field(min_length=1, max_length=200, pattern=r"^[^_].*$")] | None = Field(
        None, description="key of the data set in dataset_statistics.json; default: the suite, or the name of the path"
    )
    cameras: list[Literal["agentview", "wrist"]] = Field(
        ["agentview"], description="frames the policy sees: [agentview], or [agentview, wrist]"
    )
    add_proprio: bool = Field(False, description="feed proprioception to a checkpoint that was trained without it")
    gripper: Literal["auto", "signed", "binary"] = Field(
        "auto", description="commands in the files: signed (-1 open, +1 close), binary (0 close, 1 open)"
    )
    rotated: Literal["auto"] | bool = Field(
        "auto", description="whether pictures in the files are already rotated by 180 degrees; auto: by format"
    )
    drop_no_ops: bool = Field(False, description="leave out actions that do nothing")
    held_out: Annotated[float, Field(ge=0.0, le=0.9)] = Field(
        0.05,
        description="share of the episodes that are never trained on, only measured; drawn from the seed, never the "
        "last one of a task",
    )
    held_out_samples: Positive = Field(256, description="largest number of held-out samples in one measurement")
    cache: PathText | None = Field(
        None, description="folder of prepared frames, to share between runs; default: the run's own, removed at its end"
    )

    @model_validator(mode="after")
    def _cameras_are_those_of_evaluations(self) -> Self:
        allowed: list[list[str]] = [["agentview"], ["agentview", "wrist"]]
        if self.cameras not in allowed:
            rule = "evaluations show these cameras to a checkpoint, in this order"
            raise RulesError([Problem("cameras", rule, str(self.cameras), "[agentview], or [agentview, wrist]")])
        return self

    def found_from(self, started_in: Path | None) -> Self:
        """Return the section with demonstrations and cache where the run found them; see the base."""
        found = path_from_here(self.path, started_in)
        path = Path(found).expanduser()
        if not path.is_absolute() and not path.exists():
            raise lost_path("demos.path", self.path, started_in)
        cache = None if self.cache is None else path_from_here(self.cache, started_in)
        return self.model_copy(update={"path": found, "cache": cache})


class AugmentationSection(Section):
    """Random changes of the frames, drawn for each camera of each sample; the defaults are OpenVLA-OFT's."""

    crop: Annotated[float, Field(ge=0.05, le=1.0)] = Field(
        0.9, description="area of a random crop; 1: no crop, frames are prepared as when the policy acts"
    )
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.2, description="largest shift, of a range of 1")
    contrast: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.2, description="largest change of the factor 1")
    saturation: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.2, description="largest change of the factor 1")
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = Field(0.05, description="largest shift, of a circle of 1")


class SupervisedLossSection(Section):
    """Cross-entropy of the action tokens, and the error of the value."""

    label_sigma: Annotated[float, Field(ge=0.0, le=64.0)] = Field(
        0.0,
        description="in bins; deviation of a normal density that spreads labels over neighbouring bins; 0: one bin",
    )
    value_coefficient: Weight = Field(
        0.0, description="weight of the squared value error; 0: the critic is not trained"
    )
    discount: Fraction = Field(0.99, description="discount per decision of the success that ends every demonstration")


class SupervisedLearnerSection(EngineSection):
    """Updates of the policy from samples."""

    micro_batch: BatchSize = Field(8, description="samples per forward pass")

    @property
    def batch_samples(self) -> int:
        """Samples of one optimizer step, on each rank."""
        return self.batch_size


class SupervisedRuntimeSection(Section):
    """Device and threads."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if torch sees one")
    threads_per_process: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="torch threads per rank; 0: all cores, shared evenly"
    )
    loader_threads: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="threads that prepare the next batch's frames; 0: all cores, shared evenly"
    )


class SupervisedEvaluationSection(PlayedSection):
    """Greedy evaluations in the simulator: at the end of training and, if wanted, during it."""

    tasks: Literal["all"] | list[NonNegative] = Field(
        "all", description="ids in the suite; all: those with demonstrations"
    )
    init_states: Literal["standard", "spare", "sampled", "widened"] = Field(
        "standard",
        description="standard: the benchmark's 50; spare: the unused ones; sampled: LIBERO's own sampler; "
        "widened: the scene moves too, as in demonstrations that were collected so",
    )
    horizon: Horizon | None = Field(None, description="control steps; default: the protocol's")
    workers: Processes = Field(1, description="simulator processes")


class SupervisedLoggingSection(MetricsSection):
    """Output during the run."""

    held_out_every_optimizer_steps: Positive = Field(
        100, description="optimizer steps between measurements on held-out episodes; one is always made at the end"
    )
