"""OpenVLA-OFT as an actor-critic over action tokens: the network, a critic, prompts and statistics.

With an L1 head, possible for a policy that only acts, a token is the number that the head gives.

Every trainable parameter is float32, whatever the dtype of the frozen weights: adapters, the 256 action rows, the
proprioception projector and the critic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vla_rl.policies import action_tokens
from vla_rl.policies.lora import add_adapters, fill_adapters, is_adapter
from vla_rl.policies.openvla_oft.dataset_statistics import DatasetStatistics
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.pixels import normalization_tensors, normalize_pixels
from vla_rl.policies.openvla_oft.prompts import PromptTable
from vla_rl.policies.openvla_oft.source import Source
from vla_rl.policies.parameters import META, fill_linear_and_norms
from vla_rl.policies.token_policy import TokenOutput, TokenPolicy
from vla_rl.policies.value_heads import load_value_head
from vla_rl.policies.value_heads import value_head as build_value_head
from vla_rl.types import ActionSpec, FloatArray, ObservationSpec, PolicyInputs, TokenArray

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection

LM_HEAD = "language_model.lm_head.weight"
EMBEDDINGS = "language_model.model.embed_tokens.weight"


class OpenVLAOFTPolicy(TokenPolicy):
    """OpenVLA-OFT policy that satisfies `vla_rl.types.Policy`.

    Built around a network that may still be empty (meta device); `fill_trainable` then initialises what is new. The
    trained action rows are a parameter of their own, `action_rows` (256, d), used in place of rows 31744..31999 of
    lm_head; an export writes them back into a copy of lm_head.
    """

    action_rows: nn.Parameter | None
    prompt_ids: Tensor
    prompt_lengths: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor
    proprio_low: Tensor
    proprio_range: Tensor
    proprio_mask: Tensor

    def __init__(
        self,
        model: OFTNetwork,
        section: OpenVLAOFTSection,
        *,
        source: Source,
        num_images: int,
        prompts: PromptTable,
        statistics: DatasetStatistics,
    ) -> None:
        super().__init__()
        config = model.config
        width = config.llama.hidden_size
        self.observation_spec = ObservationSpec(num_images, config.image_size, config.proprio_dim)
        num_bins = action_tokens.NUM_BINS if model.action_head is None else None
        self.action_spec = ActionSpec(config.chunk_size, config.action_dim, num_bins)
        self.source = source
        self.statistics = statistics
        self.section = section
        self._task_buckets = prompts.lengths
        self._buckets = prompts.distinct_lengths
        self.model = model
        if section.lora is not None:
            add_adapters(model.language_model, section.lora)
        with META:
            self.value_head = build_value_head(section.value_head, width=width)
            rows = torch.empty(action_tokens.NUM_BINS, width, dtype=torch.float32)
        self.action_rows = nn.Parameter(rows) if section.train_action_rows else None
        model.language_model.recompute_layers = section.gradient_checkpointing
        self._register_tables(prompts)
        self._choose_trainable(section)

    def network(self, inputs: PolicyInputs) -> TokenOutput:
        """Return logits (B, A, 256) and values (B,), float32; with an L1 head means and widths (B, A, 2) as logits."""
        self._check_frames(inputs.frames)
        prompts, lengths = self._prompts(inputs)
        hidden = self.model.read_out(
            normalize_pixels(inputs.frames, self.pixel_mean, self.pixel_std),
            prompts,
            lengths,
            self._normalized_proprio(inputs.state) if self.model.proprio_projector is not None else None,
        )
        logits = self._regression(hidden) if self.is_regression else self.model.action_logits(hidden, self.action_rows)
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.value_head((hidden.detach() if self.section.detach_value else hidden).float())
        return TokenOutput(logits=logits, values=values)

    @property
    def is_regression(self) -> bool:
        """Return whether an L1 head gives the actions: nothing is sampled then, and nothing can be trained."""
        return self.model.action_head is not None

    @property
    def is_trained_whole(self) -> bool:
        """Return whether every weight that reaches the output is trained."""
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        return frozen <= {LM_HEAD} and self.action_rows is not None  # of lm_head only the action rows do

    def bucket_of(self, task_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (B,) tokens of the tasks' prompts."""
        return self._task_buckets[task_index]

    def compile_layers(self) -> None:
        """Compile the language model's layers, in place; see `LanguageModel.compile_layers`."""
        self.model.language_model.compile_layers()

    def decode_tokens(self, tokens: TokenArray, task_index: NDArray[np.int64]) -> FloatArray:  # noqa: ARG002
        """Decode (B, A) tokens to (B, K, D) LIBERO commands; all tasks of a run share their suite's statistics."""
        spec = self.action_spec
        values = tokens if self.is_regression else action_tokens.decode_tokens(tokens)
        normalized = values.reshape(-1, spec.chunk_size, spec.action_dim)
        actions = action_tokens.unnormalize_actions(normalized, self.statistics.action)
        return action_tokens.to_libero_gripper(actions).astype(np.float32)

    def is_value_parameter(self, name: str) -> bool:
        """Return whether a parameter belongs to the critic's head."""
        return name.startswith("value_head.")

    def fill_trainable(self, *, seed: int, device: torch.device) -> None:
        """Initialise what is not in the shards: adapters (without effect yet), action rows (a copy), critic.

        The critic is loaded if an export of the same kind of critic lies beside the shards.
        """
        fill_adapters(self.model.language_model, seed=seed, device=device)
        fill_linear_and_norms(self.value_head, seed=seed, device=device, prefix="value_head.")
        if self.source.files is not None and self.source.files.value_head is not None:
            load_value_head(self.value_head, self.source.files.value_head, kind=self.section.value_head)
        if self.action_rows is not None:
            first = action_tokens.FIRST_ACTION_ID
            rows = self.model.language_model.lm_head.weight[first : first + action_tokens.NUM_BINS]
            self.action_rows = nn.Parameter(rows.detach().to(device, torch.float32, copy=True))

    def _regression(self, hidden: Tensor) -> Tensor:
        """Return the head's actions as Gaussians, (B, A, 2).

        Their mode is the action; their width was never trained.
        """
        mean = self.model.l1_actions(hidden).float().flatten(1)
        return torch.stack([mean, torch.zeros_like(mean)], dim=-1)

    def _register_tables(self, prompts: PromptTable) -> None:
        mean, std = normalization_tensors(self.source.pixels)
        tables = {
            "prompt_ids": torch.from_numpy(prompts.ids),
            "prompt_lengths": torch.from_numpy(prompts.lengths),
            "pixel_mean": mean,
            "pixel_std": std,
        }
        if self.model.proprio_projector is not None:
            proprio = self.statistics.proprio
            assert proprio is not None, "the builder refuses a projector without statistics"
            tables["proprio_low"] = torch.from_numpy(proprio.q01).float()
            tables["proprio_mask"] = torch.from_numpy(proprio.mask)
            tables["proprio_range"] = torch.from_numpy(proprio.q99 - proprio.q01 + action_tokens.EPSILON).float()
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def _choose_trainable(self, section: OpenVLAOFTSection) -> None:
        projector = self.model.proprio_projector
        self.model.requires_grad_(False)
        for name, parameter in self.model.named_parameters():
            is_backbone = section.train_backbone and name != LM_HEAD and not name.startswith("proprio_projector.")
            is_backbone &= section.train_embeddings or name != EMBEDDINGS
            parameter.requires_grad_(is_adapter(name) or is_backbone)
        if projector is not None and section.train_proprio_projector:
            projector.requires_grad_(True)

    def _prompts(self, inputs: PolicyInputs) -> tuple[Tensor, Tensor | None]:
        """Return prompts (B, L), L the longest possible, and their lengths (B,); None if all have that length.

        It never reads from the device, which would synchronise.
        """
        buckets = inputs.buckets or self._buckets
        lengths = None if len(buckets) == 1 else self.prompt_lengths[inputs.task_index]
        return self.prompt_ids[inputs.task_index, : max(buckets)], lengths

    def _normalized_proprio(self, state: Tensor) -> Tensor:
        """Map (B, S) to [-1, 1] by the quantiles, clipped; masked components are only clipped, as in the original."""
        scaled = 2.0 * (state.float() - self.proprio_low) / self.proprio_range - 1.0
        return torch.where(self.proprio_mask, scaled, state.float()).clamp(-1.0, 1.0)

    def _check_frames(self, frames: Tensor) -> None:
        expected = self.observation_spec.frames_shape
        if tuple(frames.shape[1:]) != expected or frames.dtype != torch.uint8:
            raise ValueError(
                f"frames must be uint8 of shape (B, {', '.join(map(str, expected))}); "
                f"found {frames.dtype} of shape {tuple(frames.shape)}"
            )
