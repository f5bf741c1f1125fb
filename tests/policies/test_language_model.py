"""The language model against stock Llama, whose layers it runs; and what its forward pass looks like to a compiler."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vla_rl.policies.openvla_oft.language import LanguageModel
from vla_rl.policies.openvla_oft.tiny import tiny_config
from vla_rl.policies.parameters import move_buffers
from vla_rl.types import PolicyInputs

LENGTH, WIDTH = 17, 64
PADDED = torch.arange(LENGTH) < torch.tensor([LENGTH, 12, 9])[:, None]


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(0)
    return LanguageModel(tiny_config().llama).eval()


def sequence():
    return torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def stock(language_model, embeddings, attend):
    """LlamaModel's own forward pass; a 4-D mask is passed on as it is."""
    mask = None if attend is None else attend[:, None, None, :].expand(-1, 1, LENGTH, -1)
    output = language_model.model(inputs_embeds=embeddings, attention_mask=mask, use_cache=False, is_causal=False)
    return output.last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("attend", [None, PADDED], ids=["unpadded", "padded"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
def test_the_layers_by_themselves_give_stock_llamas_bits(language_model, attend, bf16):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        assert torch.equal(language_model(sequence(), attend), stock(language_model, sequence(), attend))


def test_gradients_have_stock_llamas_bits_with_checkpointing_and_without():
    torch.manual_seed(0)
    language_model = LanguageModel(tiny_config().llama)

    def gradients(run, *, training):
        language_model.train(training).zero_grad()
        embeddings = sequence().requires_grad_()
        run(embeddings).square().sum().backward()
        return [embeddings.grad, *(p.grad.clone() for p in language_model.model.layers.parameters())]

    expected = gradients(lambda x: stock(language_model, x, PADDED), training=False)
    plain = gradients(lambda x: language_model(x, PADDED), training=True)
    language_model.recompute_layers = True
    recomputed = gradients(lambda x: language_model(x, PADDED), training=True)
    for other in (plain, recomputed):
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


@pytest.mark.parametrize("attend", [None, PADDED], ids=["unpadded", "padded"])
@torch.no_grad()
def test_a_compiled_pass_masks_only_what_is_padded(language_model, attend):
    masks = []

    def look(graph, example_inputs):
        for node in graph.graph.nodes:
            if "scaled_dot_product_attention" in str(node.target):
                masks.append(node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(language_model, backend=look, fullgraph=True, dynamic=False)
    assert torch.equal(compiled(sequence(), attend), language_model(sequence(), attend))
    assert [mask is not None for mask in masks] == [attend is not None] * 3


class Devices(TorchDispatchMode):
    """Remembers operations with a tensor on another device than `expected`, and those that make one of a token id."""

    def __init__(self, expected):
        super().__init__()
        self.expected, self.strays = expected, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        seen = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        # Of floating point they are attention's own: it makes numbers of its mask.
        lifts = function is torch.ops.aten.scalar_tensor.default and not result.is_floating_point()
        self.strays += [str(function) for each in seen if lifts or each.device.type != self.expected]
        return result


@pytest.mark.parametrize("lengths", ["of one length", "of several"])
@torch.no_grad()
def test_a_pass_on_a_device_computes_with_nothing_on_the_host(build, monkeypatch, lengths):
    """A tensor on the host, be it a single number, can make torch.compile leave CUDA graphs out. Meta is the device."""
    device = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which no meta device has
    policy = build(empty=True).eval()
    move_buffers(policy, device)
    inputs = PolicyInputs(
        torch.empty(3, *policy.observation_spec.frames_shape, dtype=torch.uint8, device=device),
        torch.empty(3, policy.observation_spec.state_dim, device=device),
        torch.zeros(3, dtype=torch.int64, device=device),
        buckets=(int(policy.bucket_of(np.array([0]))[0]),) if lengths == "of one length" else None,
    )
    with Devices("meta") as devices:
        output = policy.network(inputs)
    assert output.logits.is_meta and devices.strays == []
