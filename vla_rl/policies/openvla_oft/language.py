"""Stock Llama made bidirectional. The only importer of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla_rl.policies.openvla_oft.config import BOS_ID, PAD_ID, STOP_ID, LlamaDims

MAX_GRAPHS = 12  # 2 kinds of mask x 2 kinds of batch x 3 kinds of gradient


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
        self.recompute_layers = False  # in the backward pass, in training mode

    def forward(self, embeddings: Tensor, attend: Tensor | None) -> Tensor:
        """Return final hiddens (B, L, d) of embeddings (B, L, d).

        Args:
            embeddings: the whole sequence; positions count from 0.
            attend: (B, L) bool, False at padding, or None when nothing is padded: attention then gets no mask at all
                and uses its fastest kernel, compiled or not.
        """
        mask = None
        if attend is not None:
            mask = attend[:, None, None, :].expand(-1, 1, embeddings.shape[1], -1)
        # Layer by layer instead of through LlamaModel, which makes its own mask: it inspects the given one, which
        # stalls the device, and under torch.compile some releases build a full one if none was given.
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)[None]
        rotary = self.model.rotary_emb(embeddings, position_ids=positions)
        hidden = embeddings
        recompute = self.recompute_layers and self.training and torch.is_grad_enabled()
        for layer in self.model.layers:
            # Around the layer, so that a compiled one is recomputed compiled. Re-entrant checkpoints would lose the
            # gradient if the input has none.
            call = partial(checkpoint, layer, use_reentrant=False) if recompute else layer
            hidden = call(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
                is_causal=False,  # stock Llama is causal otherwise
            )
        return self.model.norm(hidden)  # type: ignore[no-any-return]

    def compile_layers(self, *, backend: str = "inductor") -> None:
        """Compile every layer, in place: names of parameters stay, and the layers share compiled graphs.

        Number of rows and length of the sequence may vary without a new compilation. There is one for each combination
        that occurs of: with a mask or without; one row or several; without gradients, with gradients, or with gradients
        except of the input (the first layer). More than `MAX_GRAPHS` would be a bug and raise.

        Args:
            backend: backend of torch.compile; tests use those that generate no code.
        """
        # Llama's numbers (the epsilon of a norm) are constants; as variables they would make each graph compile twice.
        torch._dynamo.config.specialize_float = True
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
        # Fused kernels would keep float32 between operations where uncompiled layers round to bfloat16: as much noise
        # between acting and learning as bfloat16 itself makes.
        options = {"emulate_precision_casts": True} if backend == "inductor" else None
        for layer in self.model.layers:
            layer.compile(backend=backend, dynamic=True, fullgraph=True, options=options)


def llama_config(dims: LlamaDims) -> Any:  # noqa: ANN401 - transformers is not typed
    """Return the library's configuration, with nothing that changes the arithmetic left at its default."""
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
