"""Stock Llama made bidirectional. The only importer of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla_rl.policies.openvla_oft.config import BOS_ID, PAD_ID, STOP_ID, LlamaDims


class LanguageModel(nn.Module):
    """`model` and `lm_head` under the checkpoint's names; every token attends to every other."""

    def __init__(self, dims: LlamaDims) -> None:
        super().__init__()
        config = llama_config(dims)
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(dims.hidden_size, dims.vocab_size, bias=False)
        # The rotary table is a buffer that no checkpoint stores, so it must be real even when the parameters are not.
        with torch.device("cpu"):
            self.model.rotary_emb = LlamaRotaryEmbedding(config)

    def forward(self, embeddings: Tensor, attend: Tensor | None) -> Tensor:
        """Final hiddens (B, L, d) of embeddings (B, L, d).

        Args:
            embeddings: the whole sequence; positions count from 0.
            attend: (B, L) bool, False at padding, or None when nothing is padded: attention then gets no mask at all
                and uses its fastest kernel, compiled or not.
        """
        mask = None
        if attend is not None:
            mask = attend[:, None, None, :].expand(-1, 1, embeddings.shape[1], -1)
        # Layer by layer instead of through LlamaModel, which makes a mask of its own: it looks at the given one, which
        # stalls the device, and under torch.compile some of its releases build a full one where none was given.
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotary = self.model.rotary_emb(embeddings, position_ids=positions)
        hidden = embeddings
        for layer in self.model.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
                is_causal=False,  # stock Llama is causal otherwise
            )
        return self.model.norm(hidden)  # type: ignore[no-any-return]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass; has effect in training mode only."""
        # transformers renamed the method within the supported range and warns about the old name.
        renamed = getattr(self.model, "activation_checkpointing_enable", None)
        enable = renamed or self.model.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # re-entrant checkpoints lose the gradient when the input has none


def llama_config(dims: LlamaDims) -> Any:  # noqa: ANN401 - transformers is not typed
    """The library's configuration with nothing left to its defaults that changes the arithmetic."""
    return LlamaConfig(
        hidden_size=dims.hidden_size,
        intermediate_size=dims.intermediate_size,
        num_hidden_layers=dims.num_hidden_layers,
        num_attention_heads=dims.num_attention_heads,
        num_key_value_heads=dims.num_key_value_heads,
        head_dim=dims.hidden_size // dims.num_attention_heads,
        vocab_size=dims.vocab_size,
        max_position_embeddings=dims.max_position_embeddings,
        rms_norm_eps=dims.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": dims.rope_theta},
        hidden_act="silu",
        attention_bias=False,
        attention_dropout=0.0,
        mlp_bias=False,
        tie_word_embeddings=False,
        bos_token_id=BOS_ID,
        eos_token_id=STOP_ID,
        pad_token_id=PAD_ID,
        attn_implementation="sdpa",
        is_causal=False,
    )
