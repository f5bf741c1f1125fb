"""Interface of a kind of policy: its section of a recipe, and the plan made from it.

A kind is a module or a folder beside this one, which `vla_rl.policies.kinds` lists. Its section is a subclass of
`PolicySection` and needs no torch; modules that do are imported inside its methods. No other module asks for the kind:
differences between kinds are properties or methods here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vla_rl.section import Problem, Section
from vla_rl.types import ActionSpec, FrameTransform, ObservationSpec, PolicyBuilder, StateSpace

if TYPE_CHECKING:
    from torch import nn


NO_CRITIC = "none"  # value of a section's `value_head`, if it has one


class NonFiniteOutputError(ValueError):
    """A policy's output is not finite, so nothing can be drawn from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyContext:
    """Facts that the rest of a setup states about its policy. Picklable: builders carry it to their processes."""

    seed: int  # of weights
    suite: str  # of the tasks; the environment's name if it has no suites
    tasks: tuple[str, ...]  # texts, in the order that `PolicyInputs.task_index` counts
    num_images: int = 0  # cameras per observation
    states: StateSpace | None = None  # sizes for a policy that sees states; None: states are not sufficient
    temperature: float = 1.0  # of sampling
    bf16: bool = False  # passes compute in bfloat16 although weights may be float32
    only_acts: bool = False  # nothing is trained, so the policy need not be trainable
    draw_on: str | None = None  # torch device that draws large random weights; None: the policy's
    measured: Mapping[str, Any] | None = None  # statistics of the data it is trained on, by key; None: the policy's own
    add_proprio: bool = False  # a checkpoint without proprioception gets a new projector for it


@dataclass(frozen=True, slots=True)
class Fixed:
    """A value on which a network depends besides its trained tensors."""

    setting: Any  # what a recipe says to have it
    content: Any  # what it is, where one thing has several settings, as weights have several folders


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPlan:
    """The policy of a run: how to build it, its shapes and sizes."""

    build: PolicyBuilder
    observation_spec: ObservationSpec
    action_spec: ActionSpec
    trainable_parameters: int
    frozen_parameters: int
    trainable_bytes: int
    frozen_bytes: int
    text: str  # one line for people
    transform: FrameTransform | None = None  # of camera frames, if it sees any
    training_bytes: int = 0  # activations of one decision in the backward pass; 0 if negligible
    inference_bytes: int = 0  # activations of one decision in a forward pass; 0 if negligible
    update_flops: float = 0.0  # FLOPs of one decision in an update, likewise
    inference_flops: float = 0.0  # FLOPs of one decision in inference, likewise
    statistics: str | None = None  # key of the data set that scales actions and proprioception
    is_regression: bool = False  # actions are computed, not sampled: no temperature, no training
    fixed: Mapping[str, Fixed] = field(default_factory=dict)  # by field; with others the trained tensors do not fit
    contradictions: tuple[Problem, ...] = ()  # values of the section that would have no effect: no run begins with them


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """A policy that no run of this program holds: a public checkpoint, an export, or random weights."""

    section: PolicySection  # that of a policy which only acts
    num_images: int  # cameras it looks through
    folder: Path | None = None  # that was named, or fetched; None: random weights
    files_in: tuple[Path, ...] = ()  # all folders that its files are read from


class PolicySection(Section):
    """Base of every policy's section. Defaults suit a small policy that sees only states."""

    name: str

    sees: ClassVar[Literal["frames", "state"]] = "state"
    chunk_size: ClassVar[int | None] = None  # control steps per decision; None: the environment's
    has_layers: ClassVar[bool] = False  # layers that learner.compile=layers can compile
    reserved_names: ClassVar[tuple[str, ...]] = ()  # of random weights: such a name is no folder
    stored_as: ClassVar[str] = ""  # by which files a folder is known to hold such a policy, in words
    card_tags: ClassVar[tuple[str, ...]] = ()  # of a model card

    @property
    def has_critic(self) -> bool:
        """Return whether it has a critic; `value_head`, in kinds that have the field, is none without one."""
        return getattr(self, "value_head", "") != NO_CRITIC

    @abstractmethod
    def plan(self, context: PolicyContext) -> PolicyPlan:
        """Turn the section into plain values, and check everything that can be checked without weights.

        Raises:
            ValueError: the policy cannot be built here, or does not fit the context.
        """

    def check(self, policy: nn.Module, *, way_on: str = "policy.self_test=false") -> None:
        """Test a policy with its weights loaded for faults that fail silently; by default there is no test.

        Args:
            policy: policy that the plan's builder built.
            way_on: what to add to the command to skip the test.

        Raises:
            ValueError: one sentence per fault.
        """

    # --- policies without a run --------------------------------------------------------------------------------------

    @classmethod
    def is_stored_in(cls, folder: Path) -> bool:  # noqa: ARG003 - for kinds that are stored
        """Return whether a folder holds such a policy, intact or damaged."""
        return False

    @classmethod
    def stored(cls, target: str, *, profile: str, statistics: str | None, bf16: bool) -> StoredPolicy | None:  # noqa: ARG003
        """Return the policy that a user means, to act with; None if it is not of this kind.

        Args:
            target: a reserved name, a folder, or the name of a model on a hub, which is then downloaded.
            profile: conventions of those who trained it, as far as its files do not say.
            statistics: key of the data set whose statistics scale the actions.
            bf16: keep its weights in bfloat16.

        Raises:
            ValueError: it is broken, or cannot be fetched.
        """
        return None

    def loaded_elsewhere(self, folder: str, *, suite: str) -> str | None:  # noqa: ARG002 - for kinds that are stored
        """Return how other programs load such a policy from its files, in Markdown; None if none can.

        Args:
            folder: that holds the files.
            suite: of the tasks, or a placeholder.
        """
        return None

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluation_changes(
        self,
        *,
        self_test: bool,
        trained_statistics: str | None,  # noqa: ARG002 - for kinds with statistics
    ) -> Mapping[str, Any]:
        """Return the fields that an evaluation sets, with their values.

        Args:
            self_test: test the policy before it plays.
            trained_statistics: key of the data set that scaled actions when the policy was trained on the suite to
                play; None: it was not, or nothing is known.

        Raises:
            ValueError: this policy does not have an option.
        """
        if not self_test:
            raise ValueError(f"--no-self-test: the policy {self.name!r} is not tested; leave the option out")
        return {}

    def scaled_by(self, statistics: str, *, location: str) -> Self:  # noqa: ARG002 - for kinds with statistics
        """Return the section with another key of the statistics that scale actions.

        Args:
            statistics: key of a data set.
            location: where the policy was found, for the message.

        Raises:
            ValueError: the section names another key, or the policy has no statistics.
        """
        raise ValueError(f"--statistics: the policy {self.name!r} has none; leave the option out")
