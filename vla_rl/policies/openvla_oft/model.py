"""OpenVLA-OFT: one forward pass from images and a prompt to the hiddens of a whole chunk of actions.

The sequence is BOS, patches of every image, one proprioception token (if given), the prompt after BOS, one zero vector
per action component, STOP (unless the profile drops it), padding. Attention is bidirectional. Hidden i of action
component i is read one position early: the first at the last prompt token, the rest at the placeholders but the last.

Letters: B decisions, N images, A = K D action components, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policies.action_tokens import FIRST_ACTION_ID, NUM_BINS
from vla_rl.policies.openvla_oft.config import BOS_ID, LONE_SPACE_ID, PAD_ID, STOP_ID, OFTConfig
from vla_rl.policies.openvla_oft.heads import L1ActionHead, Projector, ProprioProjector
from vla_rl.policies.openvla_oft.language import LanguageModel
from vla_rl.policies.openvla_oft.profiles import Profile
from vla_rl.policies.openvla_oft.vision import CHANNELS_PER_IMAGE, VisionBackbone


class OFTNetwork(nn.Module):
    """OpenVLA-OFT network. State-dict names equal those of the public shards and component files.

    `proprio_projector` and `action_head` are None where the checkpoint has none.
    """

    proprio_projector: ProprioProjector | None
    action_head: L1ActionHead | None
    bos_id: Tensor
    stop_id: Tensor

    def __init__(self, config: OFTConfig, profile: Profile, *, proprio: bool, l1_head: bool) -> None:
        super().__init__()
        width = config.llama.hidden_size
        self.config = config
        self.profile = profile
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config.vision_dim, width)
        self.language_model = LanguageModel(config.llama)
        self.proprio_projector = ProprioProjector(config.proprio_dim, width) if proprio else None
        self.action_head = (
            L1ActionHead(width=width, chunk_size=config.chunk_size, action_dim=config.action_dim) if l1_head else None
        )
        # On the device, because torch.compile may skip CUDA graphs where a number comes from the host; real even when
        # the parameters are not, and in no checkpoint.
        for name, token_id in (("bos_id", BOS_ID), ("stop_id", STOP_ID)):
            self.register_buffer(name, torch.tensor(token_id, device="cpu"), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the (frozen) weights."""
        return self.language_model.model.norm.weight.dtype  # type: ignore[no-any-return]

    def vision_features(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, N · patches, d_dinov2 + d_siglip) of normalised images (B, 6 N, H, W)."""
        return self.vision_backbone(pixel_values.to(self.dtype))  # type: ignore[no-any-return]

    def action_hidden(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        proprio: Tensor | None = None,
    ) -> Tensor:
        """Return hiddens (B, A, d) at the action positions, from a tokenised prompt.

        Args:
            pixel_values: (B, 6 N, H, W) normalised images.
            input_ids: (B, L) prompt with BOS, right-padded; the lone space 29871 is appended if it is not the last.
            attention_mask: (B, L), 0 at padding; None when nothing is padded.
            proprio: (B, S) normalised; needs a proprioception projector.

        Raises:
            ValueError: a shape does not fit the others' or the network.
        """
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)}; expected the shape of input_ids, "
                f"{tuple(input_ids.shape)}"
            )
        lengths = _prompt_lengths(input_ids, attention_mask)
        prompts, lengths = _with_lone_space(input_ids, lengths)
        uniform = bool((lengths == prompts.shape[1]).all())
        return self.read_out(pixel_values, prompts, None if uniform else lengths, proprio)

    def read_out(
        self, pixel_values: Tensor, prompts: Tensor, lengths: Tensor | None, proprio: Tensor | None = None
    ) -> Tensor:
        """Return hiddens like `action_hidden`, for complete prompts (B, L) of given lengths (B,); None: all are L.

        Does not synchronise with the device.
        """
        embeddings = self.embed(pixel_values, prompts, lengths, proprio)
        num_prompt, num_suffix = prompts.shape[1], self._num_suffix_tokens
        num_context = embeddings.shape[1] - (num_prompt - 1) - num_suffix  # BOS, patches, proprioception
        attend = None
        if lengths is not None:
            columns = torch.arange(embeddings.shape[1], device=embeddings.device)
            attend = columns < (num_context + lengths - 1 + num_suffix)[:, None]
        hidden: Tensor = self.language_model(embeddings, attend)
        num_readouts = self.config.num_action_tokens
        if lengths is None:
            first = num_context + num_prompt - 2
            return hidden[:, first : first + num_readouts]
        rows = (num_context + lengths - 2)[:, None] + torch.arange(num_readouts, device=hidden.device)
        return hidden.gather(1, rows[:, :, None].expand(-1, -1, hidden.shape[-1]))

    def action_logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return float32 logits (B, A, 256) of hiddens (B, A, d): only lm_head's action rows are multiplied.

        Args:
            hidden: hiddens at the action positions.
            rows: (256, d) trained rows to use in place of lm_head's own.
        """
        if rows is None:
            rows = self.language_model.lm_head.weight[FIRST_ACTION_ID : FIRST_ACTION_ID + NUM_BINS]
        # 56 × 256 products are cheap, and rounding logits to bfloat16 would add noise to every ratio.
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), rows.float())

    def l1_actions(self, hidden: Tensor) -> Tensor:
        """Return normalised actions (B, K, D) of the regression head."""
        if self.action_head is None:
            raise ValueError("this checkpoint has no L1 action head (no action_head file beside its shards)")
        return self.action_head(hidden)  # type: ignore[no-any-return]

    @property
    def _num_suffix_tokens(self) -> int:
        return self.config.num_action_tokens + int(self.profile.keep_stop)

    def embed(
        self, pixel_values: Tensor, prompts: Tensor, lengths: Tensor | None, proprio: Tensor | None = None
    ) -> Tensor:
        """Return the embedded sequence (B, T, d) of complete prompts; arguments as `read_out`.

        Raises:
            ValueError: pictures or proprioception of a shape that does not fit the prompts or the network.
        """
        channels, side = pixel_values.shape[1], self.config.image_size
        if channels == 0 or channels % CHANNELS_PER_IMAGE or pixel_values.shape[2:] != (side, side):
            raise ValueError(
                f"pixel_values is {tuple(pixel_values.shape)}; expected {CHANNELS_PER_IMAGE} channels per image "
                f"and {side} pixels a side"
            )
        batch = prompts.shape[0]
        if pixel_values.shape[0] != batch:
            raise ValueError(
                f"pixel_values is {tuple(pixel_values.shape)}; expected {batch} rows, as many as there are prompts"
            )
        embed_tokens = self.language_model.model.embed_tokens
        text_ids, is_placeholder = self._text(prompts, lengths)
        text = embed_tokens(text_ids).masked_fill(is_placeholder[:, :, None], 0.0)
        parts = [embed_tokens(prompts[:, :1]), self.projector(self.vision_features(pixel_values))]
        if proprio is not None:
            if self.proprio_projector is None:
                raise ValueError("proprio was given, but this checkpoint has no proprio_projector file")
            if proprio.shape != (batch, self.config.proprio_dim):
                expected = (batch, self.config.proprio_dim)
                raise ValueError(f"proprio is {tuple(proprio.shape)}; expected {expected}: a state per prompt")
            parts.append(self.proprio_projector(proprio)[:, None].to(text.dtype))
        return torch.cat([*parts, text], dim=1)

    def _text(self, prompts: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ids (B, L - 1 + suffix) of everything after the images, and the positions of the zero placeholders."""
        batch, max_length = prompts.shape
        suffix = self._num_suffix_tokens
        ids = F.pad(prompts[:, 1:], (0, suffix), value=PAD_ID)
        columns = torch.arange(ids.shape[1], device=ids.device)[None]
        prompt_end = (max_length if lengths is None else lengths[:, None]) - 1
        placeholders_end = prompt_end + self.config.num_action_tokens
        is_placeholder = (columns >= prompt_end) & (columns < placeholders_end)
        if self.profile.keep_stop:
            ids = torch.where(columns == placeholders_end, self.stop_id, ids)
        return torch.where(is_placeholder, self.bos_id, ids), is_placeholder.expand(batch, -1)


def _prompt_lengths(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.full((input_ids.shape[0],), input_ids.shape[1], device=input_ids.device)
    lengths = attention_mask.long().sum(dim=1)
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"attention_mask hides the whole prompt of row(s) {empty}; every row needs at least BOS")
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    if not torch.equal(attention_mask.bool(), columns < lengths[:, None]):
        raise ValueError("attention_mask must be ones, then zeros (right padding) in every row")
    return lengths


def _with_lone_space(input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Append 29871 to the rows that do not end in it; the result is as wide as its longest row."""
    last = input_ids.gather(1, lengths[:, None] - 1).squeeze(1)
    lacking = last != LONE_SPACE_ID
    padded = F.pad(input_ids, (0, 1), value=PAD_ID)
    filler = torch.where(lacking, LONE_SPACE_ID, PAD_ID).to(input_ids.dtype)
    completed = padded.scatter(1, lengths[:, None], filler[:, None])
    lengths = lengths + lacking.long()
    return completed[:, : int(lengths.max())], lengths
