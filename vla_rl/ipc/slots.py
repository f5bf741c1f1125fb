"""Exchange slots, in which one env and the inference worker exchange observations and answers.

Messages between processes carry a slot's index; the arrays stay here. A slot belongs to one env: the env worker fills
the inputs and sends the index, the inference worker fills the outputs and sends the index back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vla_rl.ipc.shared_arrays import Field, SharedArrays
from vla_rl.types import ActionSpec, FloatArray, ObservationSpec, TokenArray, UInt8Array


def slot_fields(
    observation_spec: ObservationSpec, action_spec: ActionSpec, num_slots: int, *, store_logits: bool
) -> list[Field]:
    """Return the arrays of `num_slots` slots, for `SharedArrays.create`; `ExchangeSlots.view` restores their types."""
    num_tokens = action_spec.num_tokens
    fields = [
        Field("frames", (num_slots, *observation_spec.frames_shape), np.uint8),
        Field("state", (num_slots, observation_spec.state_dim), np.float32),
        Field("task_index", (num_slots,), np.int64),
        Field("sampling_seed", (num_slots,), np.int64),
        Field("tokens", (num_slots, num_tokens), action_spec.token_dtype),
        Field("logprobs", (num_slots, num_tokens), np.float32),
        Field("value", (num_slots,), np.float32),
        Field("policy_version", (num_slots,), np.int64),
        Field("actions", (num_slots, action_spec.chunk_size, action_spec.action_dim), np.float32),
    ]
    if store_logits:
        fields.append(Field("logits", (num_slots, num_tokens, action_spec.num_behavior), np.float32))
    return fields


@dataclass(frozen=True, slots=True)
class ExchangeSlots:
    """Views of all slots; the leading dimension M is the slot."""

    frames: UInt8Array  # (M, N, H, W, 3), written by the env worker
    state: FloatArray  # (M, S), by the env worker
    task_index: NDArray[np.int64]  # (M,), by the env worker
    sampling_seed: NDArray[np.int64]  # (M,) of the decision that is waited for, by the env worker; -1: it has none
    tokens: TokenArray  # (M, A), written by the inference worker, as all below
    logprobs: FloatArray  # (M, A), of the sampled tokens
    value: FloatArray  # (M,)
    policy_version: NDArray[np.int64]  # (M,) version of the weights that acted
    actions: FloatArray  # (M, K, D) in the environment's own units
    logits: FloatArray | None  # (M, A, V) `Acted.behavior`, if the run stores it

    @classmethod
    def view(cls, arrays: SharedArrays) -> Self:
        """Return the slots in a block made of `slot_fields`."""
        return cls(
            frames=arrays["frames"],
            state=arrays["state"],
            task_index=arrays["task_index"],
            sampling_seed=arrays["sampling_seed"],
            tokens=arrays["tokens"],
            logprobs=arrays["logprobs"],
            value=arrays["value"],
            policy_version=arrays["policy_version"],
            actions=arrays["actions"],
            logits=arrays.get("logits"),
        )
