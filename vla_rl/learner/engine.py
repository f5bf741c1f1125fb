"""Engine of parameter updates: one update from the micro-batches of all ranks, the same for every strategy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from vla_rl.learner.collectives import Collectives
from vla_rl.learner.compiling import compile_layers
from vla_rl.learner.optimizer import build_adamw, schedule, trainable_parameters
from vla_rl.learner.stepping import OptimizerState
from vla_rl.learner.strategies import StrategyName, build_strategy
from vla_rl.policies.token_policy import TokenPolicy
from vla_rl.rl.optimizer_section import AdamWSection
from vla_rl.types import Evaluation, PolicyInputs

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]
Kept = TypeVar("Kept")


class NonFiniteUpdateError(RuntimeError):
    """Too many updates in a row with a non-finite loss or gradient."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """Result of one call of `Engine.step`; the same on every rank except for `loss`."""

    applied: bool  # True if the parameters changed
    loss: float  # this rank's share of the loss: the sum over its micro-batches
    grad_norm: float  # global norm before clipping
    learning_rates: dict[str, float]  # by parameter group


def _arithmetic(bf16: bool, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass: autocast to bfloat16, or nothing, which takes no time."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


class TensorForward(nn.Module):
    """Policy in the form that DeepSpeed needs: tensors in, a tuple of tensors out.

    Autocast is applied here, inside the wrapped module, because otherwise each engine would add its own: parameters
    stay fp32 (frozen ones keep their dtype), arithmetic runs in bf16, results are returned as fp32.
    """

    def __init__(self, policy: nn.Module, *, precision: Precision) -> None:
        super().__init__()
        self.policy = policy
        self._bf16 = precision == "bf16"

    def forward(
        self,
        frames: Tensor,
        state: Tensor,
        task_index: Tensor,
        buckets: tuple[int, ...] | None,
        tokens: Tensor | None = None,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, ...]:
        """Evaluate as the policy does: return values and, as far as they exist, logprobs, entropy and KL, float32."""
        with _arithmetic(self._bf16, state.device):
            # Not `self.policy(...)`: ZeRO-3 hooks the call of every module and cannot look into records. See
            # `strategies.gather_with_wrapper` for the parameters that the policy itself holds.
            found = self.policy.forward(
                PolicyInputs(frames, state, task_index, buckets=buckets),
                tokens,
                behavior=behavior,
                with_entropy=with_entropy,
            )
        terms = (found.values, found.logprobs, found.entropy, found.kl)
        return tuple(term.float() for term in terms if term is not None)


class LogitsForward(nn.Module):
    """Network of a token policy in the form that DeepSpeed needs, for a loss of the logits themselves."""

    def __init__(self, policy: TokenPolicy, *, precision: Precision) -> None:
        super().__init__()
        self.policy = policy
        self._bf16 = precision == "bf16"

    def forward(
        self, frames: Tensor, state: Tensor, task_index: Tensor, buckets: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, A, V), before temperature, and values (B,), float32."""
        with _arithmetic(self._bf16, state.device):
            output = self.policy.network(PolicyInputs(frames, state, task_index, buckets=buckets))
        return output.logits.float(), output.values.float()


class Engine:
    """Owner of optimizer, precision and ranks; independent of reinforcement learning.

    The policy is wrapped and moved in place: its own trainable parameters are trained. Frozen parameters are neither
    copied nor converted, so memory shared with an inference worker stays shared (except under ZeRO-3, which also shards
    frozen parameters).

    Args:
        policy: a `torch.nn.Module` that satisfies `vla_rl.types.Policy`.
        strategy: "single", "ddp" or "deepspeed"; the last two must be launched (see `vla_rl.learner.launch`).
        zero_stage: 1, 2 or 3, for "deepspeed".
        precision: arithmetic of the forward pass; trainable parameters and optimizer state are float32 in both.
        device: device of the policy.
        optimizer: learning rates and the rest.
        total_steps: optimizer steps of the run; the schedule ends with them.
        max_skipped_updates: number of consecutive updates without a finite loss and gradient that raises.
        collective_timeout_s: seconds after which a collective that another rank does not join raises.
        compile: "layers": compile the policy's layers, see `vla_rl.learner.compiling`; not under ZeRO-3, whose hooks on
            every module cannot be compiled.

    Raises:
        ValueError: the strategy or `compile` is not available here, or a warm-up is longer than the run.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        strategy: StrategyName,
        zero_stage: int,
        precision: Precision,
        device: Literal["cpu", "cuda"],
        optimizer: AdamWSection,
        total_steps: int = 1,
        max_skipped_updates: int = 10,
        collective_timeout_s: float = 600.0,
        compile: Literal["off", "layers"] = "off",
    ) -> None:
        self.policy = policy
        self.settings = optimizer
        self.total_steps = total_steps
        if endless := optimizer.endless_warmups(total_steps):
            raise ValueError(
                f"warm-up must end before the run does: found {endless}, total_steps {total_steps}; shorten it "
                "or use schedule 'constant'"
            )
        self.optimizer_steps = 0
        self.skipped_updates = 0
        self._skipped_in_a_row = 0
        self._max_skipped_updates = max_skipped_updates
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        module = self._wrapped(policy, precision)
        self._strategy, self.device = build_strategy(
            module,
            build_adamw(policy, optimizer),
            strategy=strategy,
            zero_stage=zero_stage,
            device=device,
            max_grad_norm=optimizer.max_grad_norm,
            timeout_s=collective_timeout_s,
        )
        self.compile_seconds = compile_layers(policy, module, device=self.device) if compile == "layers" else 0.0
        self._trainable = trainable_parameters(policy)  # once: to visit all modules takes as long as a small layer
        self.collectives = Collectives(timeout_s=collective_timeout_s)
        self.can_retry = strategy != "deepspeed"  # `accumulate` waits for no other rank

    def _wrapped(self, policy: nn.Module, precision: Precision) -> nn.Module:
        """Return the module that the strategy wraps."""
        return TensorForward(policy, precision=precision)

    def forward(
        self,
        inputs: PolicyInputs,
        tokens: Tensor | None = None,
        *,
        behavior: Tensor | None = None,
        with_entropy: bool = False,
    ) -> Evaluation:
        """Evaluate observations and decisions through the strategy's wrapper; see `vla_rl.types.Policy.__call__`."""
        values, *terms = self._strategy.module(
            inputs.frames, inputs.state, inputs.task_index, inputs.buckets, tokens, behavior, with_entropy
        )
        if tokens is None:
            return Evaluation(values)
        rest = iter(terms)
        return Evaluation(
            values,
            logprobs=next(rest),
            entropy=next(rest) if with_entropy else None,
            kl=None if behavior is None else next(rest),
        )

    def accumulate(self, micro_losses: Sequence[Callable[[], tuple[Tensor, Kept]]]) -> tuple[float, list[Kept]]:
        """Accumulate the gradients of one update.

        Only this function scales losses.

        Every callable runs the forward pass of one micro-batch and returns its *local sum over a global count*: terms
        summed over the micro-batch's own elements, divided by the number of elements of all micro-batches of all ranks.
        The gradient is then the sum over micro-batches and ranks, that is, the gradient of the mean over the union.
        Engines average over ranks, so each loss is multiplied by the number of ranks; nothing else is divided (see
        `vla_rl.learner.strategies`). All ranks pass the same number of callables.

        A non-finite loss is multiplied by NaN before its backward pass. Its gradients, reduced over the ranks, then
        give every rank the same result in every strategy: the norm is not finite, and no rank steps.

        Args:
            micro_losses: give a loss, and whatever is to be kept of the micro-batch.

        Returns:
            This rank's share of the loss, and what was kept, in order.
        """
        total, kept = 0.0, []
        for index, micro_loss in enumerate(micro_losses):
            with self._strategy.micro_batch(last=index == len(micro_losses) - 1):
                loss, keep = micro_loss()
                value = float(loss.detach())
                total += value
                scale = self.collectives.num_ranks if math.isfinite(value) else math.nan
                self._strategy.backward(loss * scale)
            kept.append(keep)
        return total, kept

    def step(self, loss: float) -> UpdateResult:
        """Apply exactly one parameter update from what all ranks have accumulated.

        Args:
            loss: this rank's share, from `accumulate`.

        Raises:
            NonFiniteUpdateError: `max_skipped_updates` updates in a row were skipped.
        """
        rates = schedule(self._strategy.optimizer, self.settings, self.optimizer_steps, total_steps=self.total_steps)
        outcome = self._strategy.step(self.settings.max_grad_norm)
        self._count(outcome.applied, loss=loss, grad_norm=outcome.grad_norm)
        return UpdateResult(outcome.applied, loss, outcome.grad_norm, rates)

    def discard_gradients(self) -> None:
        """Discard the gradients accumulated since the last step."""
        self._strategy.discard_gradients()

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the trainable tensors by name, detached, float32, without copying (gathered to the CPU under ZeRO-3).

        Under ZeRO-3 all ranks must call it.
        """
        return self._strategy.full_parameters(self._trainable)

    def load_trainable_state(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the trainable tensors, in place. All ranks call it with the same values."""
        self._strategy.assign_parameters(self._trainable, values)

    def optimizer_state(self) -> OptimizerState:
        """Return AdamW's state by parameter name, whole tensors on every rank in every strategy.

        All ranks must call it.
        """
        return self._strategy.optimizer_state(self._trainable)

    def load_optimizer_state(self, state: OptimizerState, *, optimizer_steps: int) -> None:
        """Restore AdamW's state and the clock of the schedule. All ranks call it with the same values."""
        self._strategy.assign_optimizer_state(self._trainable, state)
        self.optimizer_steps = optimizer_steps

    def _count(self, applied: bool, *, loss: float, grad_norm: float) -> None:
        if applied:
            self.optimizer_steps += 1
            self._skipped_in_a_row = 0
            return
        self.skipped_updates += 1
        self._skipped_in_a_row += 1
        logger.warning("update skipped: loss %s, gradient norm %s", loss, grad_norm)
        if self._skipped_in_a_row >= self._max_skipped_updates:
            raise NonFiniteUpdateError(
                f"{self._skipped_in_a_row} updates in a row had a loss or gradient that is not finite (loss {loss}, "
                f"gradient norm {grad_norm}, after {self.optimizer_steps} optimizer steps): lower the learning rates "
                "or max_grad_norm, and look at the rewards and log-probabilities of the batch"
            )


class LogitsEngine(Engine):
    """Engine for a loss of a token policy's logits: `logits` is called, not `forward`."""

    def _wrapped(self, policy: nn.Module, precision: Precision) -> nn.Module:
        return LogitsForward(cast(TokenPolicy, policy), precision=precision)

    def logits(self, inputs: PolicyInputs) -> tuple[Tensor, Tensor]:
        """Return logits (B, A, V), before temperature, and values (B,) through the strategy's wrapper."""
        logits, values = self._strategy.module(inputs.frames, inputs.state, inputs.task_index, inputs.buckets)
        return logits, values
