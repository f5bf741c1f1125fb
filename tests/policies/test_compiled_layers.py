"""Compiled layers: how many graphs there are, and what they compute.

Tolerances: torch's compiler joins operations, so sums round in another order. Seen with inductor on a CPU in float32:
logits within 3e-5 of about 20; gradients within 4e-6 of their norm, and within 1.3e-4 on six layers of width 512, whose
sharp random attention magnifies roundings.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft import tiny
from vla_rl.policies.openvla_oft.config import LlamaDims
from vla_rl.policies.openvla_oft.language import MAX_GRAPHS, LanguageModel
from vla_rl.types import PolicyInputs

MIDDLE = LlamaDims(
    hidden_size=512, intermediate_size=1376, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8
)


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def moved_adapters(policy):
    """B starts as zero and would hide the gradient of A."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.05, generator=generator)
    return policy


def of_tasks(policy, make_inputs, tasks):
    """Inputs with the buckets that the learner passes: of one length there is no mask."""
    inputs = make_inputs(policy, tasks)
    buckets = sorted(set(policy.bucket_of(inputs.task_index.numpy()).tolist()))
    return PolicyInputs(inputs.frames, inputs.state, inputs.task_index, buckets=tuple(buckets))


def gradient_step(policy, inputs):
    """Output, and all gradients as one vector."""
    policy.train()
    output = policy.network(inputs)
    (torch.log_softmax(output.logits, dim=-1)[..., 3].mean() + output.values.square().mean()).backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    gradient = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
    policy.zero_grad()
    return output, gradient


@torch.no_grad()
def values_pass(policy, inputs):
    return policy.eval().network(inputs)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_sizes_of_batches_and_lengths_of_prompts_bring_no_new_graph(build, make_inputs, checkpointing):
    """With a mask and without, each with gradients and without; the trained projector makes every input need one."""
    policy = moved_adapters(build(gradient_checkpointing=checkpointing))
    counter = CompileCounterWithBackend("aot_eager")
    policy.model.language_model.compile_layers(backend=counter)
    graphs = []
    for tasks in ([0, 0], [0, 1, 2], [1] * 3, [2] * 5, [0, 2], [1, 1], [2, 0, 0, 1, 1, 0], [0] * 7):
        inputs = of_tasks(policy, make_inputs, tasks)
        values_pass(policy, inputs)
        gradient_step(policy, inputs)
        graphs.append(counter.frame_count)
    assert graphs == [2, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.slow
def test_all_graphs_there_can_be_are_allowed(build, make_inputs):
    """The first layer's input needs no gradient where nothing before it is trained; one row is a case of its own."""
    policy = moved_adapters(build(proprio=False, train_proprio_projector=False))
    counter = CompileCounterWithBackend("aot_eager")
    policy.model.language_model.compile_layers(backend=counter)
    for tasks in ([0, 0], [0, 1], [2, 2, 2], [0, 1, 2]):
        values_pass(policy, of_tasks(policy, make_inputs, tasks))
        gradient_step(policy, of_tasks(policy, make_inputs, tasks))
    assert counter.frame_count == 6
    single = make_inputs(policy, [0])
    for inputs in (single, of_tasks(policy, make_inputs, [0])):  # padded as any prompt, or not
        values_pass(policy, inputs)
        gradient_step(policy, inputs)
    assert counter.frame_count == MAX_GRAPHS


def test_names_of_parameters_stay(build):
    plain, compiled = build(), build()
    compiled.compile_layers()
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert dict(compiled.named_parameters()).keys() == dict(plain.named_parameters()).keys()


def test_weights_changed_in_place_count_at_once(build, make_inputs):
    compiled, plain = (moved_adapters(build()) for _ in range(2))
    compiled.model.language_model.compile_layers(backend="aot_eager")
    inputs = of_tasks(plain, make_inputs, [0, 0])
    values_pass(compiled, inputs)
    with torch.no_grad():
        for policy in (compiled, plain):
            for name, parameter in policy.named_parameters():
                if ".lora_" in name:
                    parameter.mul_(-1.5)
    torch.testing.assert_close(
        values_pass(compiled, inputs).logits, values_pass(plain, inputs).logits, atol=1e-4, rtol=0
    )


def equal_steps(compiled, plain, make_inputs, *, tolerance=3e-5, rounded=None):
    """With `rounded`, what one rounding of every weight does is allowed: float32 says no more about a deep network."""
    for tasks in ([0, 0], [0, 1, 2]):
        inputs = of_tasks(plain, make_inputs, tasks)
        output, gradient = gradient_step(compiled, inputs)
        expected, reference = gradient_step(plain, inputs)
        allowed = 2e-4
        if rounded is not None:
            moved, moved_gradient = gradient_step(rounded, inputs)
            allowed = float((moved.logits - expected.logits).detach().abs().max())
            tolerance = float((moved_gradient - reference).norm() / reference.norm())
            assert allowed < 2e-3 * expected.logits.detach().std()
        torch.testing.assert_close(output.logits, expected.logits, atol=allowed, rtol=0)
        torch.testing.assert_close(output.values, expected.values, atol=allowed, rtol=0)
        assert (gradient - reference).norm() <= tolerance * reference.norm()
        assert reference.norm() > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_plain_layers(build, make_inputs, dropout):
    """With dropout the same numbers are drawn: this backend runs torch's own operations."""
    lora = LoraSection(rank=4, dropout=dropout)
    compiled, plain = (moved_adapters(build(gradient_checkpointing=True, lora=lora)) for _ in range(2))
    compiled.model.language_model.compile_layers(backend="aot_eager")
    if dropout:
        inputs = of_tasks(plain, make_inputs, [0, 0])
        outputs = []
        for policy in (compiled, plain):
            torch.manual_seed(0)
            outputs.append(gradient_step(policy, inputs)[1])
        assert (outputs[0] - outputs[1]).norm() <= 3e-5 * outputs[1].norm()
    else:
        equal_steps(compiled, plain, make_inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("middle", "checkpointing"),
    [(False, False), (False, True), (True, True)],
    ids=["tiny-kept", "tiny-recomputed", "middle-recomputed"],
)
def test_code_that_torch_writes_computes_what_plain_layers_do(build, make_inputs, monkeypatch, middle, checkpointing):
    if middle:
        config = dataclasses.replace(tiny.tiny_config(image_size=112), llama=MIDDLE)
        monkeypatch.setattr(tiny, "tiny_config", lambda **_: config)
    choices = {"image_size": 112 if middle else 28, "gradient_checkpointing": checkpointing}
    compiled, plain, rounded = (moved_adapters(build(**choices)) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.mul_(1 + 2**-24 * torch.randn(parameter.shape, generator=generator).sign())
    compiled.compile_layers()
    equal_steps(compiled, plain, make_inputs, rounded=rounded if middle else None)


@pytest.mark.slow
def test_compiled_layers_round_to_bfloat16_where_plain_ones_do():
    """Else half of all hidden states would differ by a rounding, as much as between bfloat16 and float32."""
    hidden = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        language = LanguageModel(dataclasses.replace(MIDDLE, hidden_size=64, num_hidden_layers=2)).bfloat16().eval()
        if compiled:
            language.compile_layers()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(language(hidden, None).float())
    plain, code = found
    assert (plain != code).float().mean() < 0.01
    assert (plain - code).abs().mean() < 1e-4 * plain.abs().mean()
