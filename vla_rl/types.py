"""Records and protocols that cross a boundary. Every field states shape, dtype and unit.

Shape letters, used everywhere in the program:

    B  segments in a batch (or decisions, where no time axis is present)
    T  decisions per segment
    N  camera images per observation
    S  numbers of proprioception or state
    K  control steps per chunk (`chunk_size`)
    D  components of one control action (`action_dim`)
    A  action tokens per decision, A = K · D, token i belongs to control step i // D, component i % D
    V  numbers that describe what a token was drawn from, in the policy's own terms, e.g. log-probabilities of bins
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

FloatArray = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]
TokenArray = NDArray[np.int16] | NDArray[np.float32]  # bins, or numbers


@dataclass(frozen=True, slots=True)
class ObservationSpec:
    """Fixed shapes of a policy's observations."""

    num_images: int  # N; 0 for state-only policies
    image_size: int  # height = width in pixels of a stored frame; 0 when num_images is 0
    state_dim: int  # S

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the frames of one observation, (N, H, W, 3)."""
        return (self.num_images, self.image_size, self.image_size, 3)


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """Fixed shapes of a policy's decisions."""

    chunk_size: int  # K
    action_dim: int  # D
    num_bins: int | None  # a token is one of so many bins; None: a number
    behavior_size: int | None = None  # V; None: `num_bins`, or 2 for numbers

    @property
    def num_tokens(self) -> int:
        """Return A = K · D."""
        return self.chunk_size * self.action_dim

    @property
    def num_behavior(self) -> int:
        """Return V."""
        return self.behavior_size or self.num_bins or 2

    @property
    def token_dtype(self) -> type[np.int16] | type[np.float32]:
        """Return the dtype of a sampled token."""
        return np.float32 if self.num_bins is None else np.int16


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Sizes for a policy that sees only states."""

    state_dim: int
    action_dim: int
    chunk_size: int  # control steps per decision


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task of a suite."""

    suite: str
    task_id: int  # position in the suite, the benchmark's own order
    name: str
    language: str  # the prompt's task text


@dataclass(frozen=True, slots=True)
class Observation:
    """Observation before a decision."""

    frames: UInt8Array  # (N, H, W, 3)
    state: FloatArray  # (S,)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """Result of executing one chunk open loop."""

    observation: Observation  # after the last executed control step
    reward: float  # summed over the executed control steps
    terminated: bool  # the task ended (success); nothing to bootstrap from
    truncated: bool  # the horizon ended; the recipe says whether that ends the task (targets.time_limit)
    executed: int  # control steps that ran, 1..K; the rest of the chunk is masked out of every loss
    success: bool = False  # the goal was reached, in environments that continue afterwards; implied by termination


class Environment(Protocol):
    """One simulated task. Built inside the process that uses it; never crosses a process boundary."""

    @property
    def task(self) -> TaskInfo:
        """Return the task that is simulated."""
        ...

    @property
    def horizon(self) -> int:
        """Return the control steps after which an episode is truncated."""
        ...

    def reset(self, init_state: int, *, seed: int = 0) -> Observation:
        """Start an episode from the named initial state; same arguments, same episode."""
        ...

    def step_chunk(self, actions: FloatArray) -> ChunkResult:
        """Execute up to K control actions, (K, D), in the environment's own units; stops where the episode ends."""
        ...

    def close(self) -> None:
        """Free simulator and graphics; safe to call twice."""
        ...


class FrameTransform(Protocol):
    """Transform from raw camera frames to the frames that are stored and seen by the policy.

    Picklable; has no weights.
    """

    @property
    def input_size(self) -> int:
        """Return the pixels per side that the camera must render."""
        ...

    @property
    def output_size(self) -> int:
        """Return the pixels per side after the transform."""
        ...

    def __call__(self, frames: UInt8Array) -> UInt8Array:
        """Transform (N, input_size, input_size, 3) to (N, output_size, output_size, 3)."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """A batch of observations on the policy's device."""

    frames: torch.Tensor  # (B, N, H, W, 3) uint8
    state: torch.Tensor  # (B, S) float32, raw units; the policy normalises
    task_index: torch.Tensor  # (B,) int64, index into the run's list of tasks
    _: KW_ONLY
    buckets: tuple[int, ...] | None = None  # distinct `Policy.bucket_of` of the rows; None: any may occur


@dataclass(frozen=True, slots=True)
class Acted:
    """Decisions for a batch of observations."""

    tokens: torch.Tensor  # (B, A) integer bins, or float32
    logprobs: torch.Tensor  # (B, A) float32
    values: torch.Tensor  # (B,) float32
    behavior: torch.Tensor | None  # (B, A, V) float32, parameters of what was drawn from, if requested


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Observations and stored decisions as a policy sees them; differentiable.

    D of the B observations have decisions: the first D.
    """

    values: torch.Tensor  # (B,) float32
    logprobs: torch.Tensor | None = None  # (D, A) float32 of the stored tokens; None if no tokens were given
    entropy: torch.Tensor | None = None  # (D, A) nats, if requested
    kl: torch.Tensor | None = None  # (D, A) nats, exact KL(behaviour || policy), if the behaviour was given


class Policy(Protocol):
    """Actor-critic that owns the density of its actions. Every implementation is a `torch.nn.Module`.

    The learner calls it through whatever wraps the module; the inference worker calls `act`. Both see tokens,
    log-probabilities and values alone: only the policy knows what the network computes in between. Without a
    critic all values are NaN.
    """

    observation_spec: ObservationSpec
    action_spec: ActionSpec

    def __call__(
        self,
        inputs: PolicyInputs,
        tokens: torch.Tensor | None = None,
        *,
        behavior: torch.Tensor | None = None,
        with_entropy: bool = False,
    ) -> Evaluation:
        """Value observations, and evaluate the decisions that were made at the first of them.

        Gradients flow to the trainable parameters only. The call may run under autocast: what must not be rounded is
        to be excluded from it.

        Args:
            inputs: B observations.
            tokens: (D, A) that were drawn at the first D observations, D ≤ B; None: values alone.
            behavior: (D, A, V) `Acted.behavior` of the policy that drew them, a constant; None for no KL.
            with_entropy: whether to compute the entropy of decisions.
        """
        ...

    def network(self, inputs: PolicyInputs) -> tuple[torch.Tensor, ...]:
        """Compute what `act` draws from: tensors of leading dimension B. This pass alone may be compiled."""
        ...

    def act(
        self,
        inputs: PolicyInputs,
        *,
        greedy: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        with_behavior: bool = False,
        network: Callable[[PolicyInputs], tuple[torch.Tensor, ...]] | None = None,
    ) -> Acted:
        """Decide for a batch.

        Args:
            inputs: what the policy observes.
            greedy: take the most likely tokens; log-probabilities are the same as if they had been drawn.
            generator: source of the random numbers: one generator on the policy's device, or one on the CPU for each of
                the B, so that what is drawn for one does not depend on the others.
            with_behavior: also return the parameters of what was drawn from, for an exact KL later.
            network: used in place of the policy's own `network`, e.g. a compiled one.

        Raises:
            NonFiniteOutputError: the network's output is not finite.
        """
        ...

    def bucket_of(self, task_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map (B,) task indices to buckets: a batch of one bucket goes through a forward pass without padding."""
        ...

    def decode_tokens(self, tokens: TokenArray, task_index: NDArray[np.int64]) -> FloatArray:
        """Decode (B, A) tokens and (B,) task indices to (B, K, D) actions in the environment's own units."""
        ...

    def is_value_parameter(self, name: str) -> bool:
        """Return whether a parameter belongs to the critic's head, which has its own learning rate."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Batch of B segments of at most T consecutive decisions of one episode each, with the observation after the last.

    A segment shorter than T is the end of its episode, so its last decision has `terminated` or `truncated` set; what
    follows is padding (mask False, zeros). The bootstrap observation of a segment of length L is at time index L of
    `frames` and `state`.
    """

    frames: UInt8Array  # (B, T + 1, N, H, W, 3)
    state: FloatArray  # (B, T + 1, S)
    task_index: NDArray[np.int64]  # (B,)
    episode: NDArray[np.int64]  # (B,) the same for all segments of an episode
    group: NDArray[np.int64]  # (B,) the same for all episodes of a group, which have the same start; 0: none
    tokens: TokenArray  # (B, T, A)
    behavior_logprobs: FloatArray  # (B, T, A), of the sampled tokens, as they were sampled
    behavior_logits: FloatArray | None  # (B, T, A, V) `Acted.behavior`, if the run stores it
    behavior_values: FloatArray  # (B, T + 1) V by the policy that acted; NaN where it made no decision or had no critic
    rewards: FloatArray  # (B, T), summed over the executed control steps
    executed: NDArray[np.int16]  # (B, T) control steps that ran, 0 in padding
    terminated: NDArray[np.bool_]  # (B, T)
    truncated: NDArray[np.bool_]  # (B, T)
    policy_version: NDArray[np.int64]  # (B, T) version of the weights that acted
    age: NDArray[np.int64]  # (B, T) decisions committed to the ring after this one was
    mask: NDArray[np.bool_]  # (B, T) True where there is a decision


class PolicyBuilder(Protocol):
    """Builder of a policy in the process that uses it. Picklable (a `functools.partial` of a module-level function)."""

    def __call__(self, *, device: str, empty: bool = False) -> Any:  # noqa: ANN401 - a Module that satisfies Policy
        """Build the policy; with `empty` parameters stay on the meta device, to be assigned by the caller."""
        ...
