"""What only a GPU can show: `scripts/test --gpu`, on a machine with torch, transformers, accelerate, peft and pytest.

Neither LIBERO nor a recipe is needed. Tests that can run on a CPU too do so in the default tier, so that what runs on
the first GPU is known to work. A test with `cuda` alone shows what a CPU does not have.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from vla_rl.credit import Gae
from vla_rl.ipc.mailbox import MailboxHandle, WeightMailbox
from vla_rl.ipc.shared_weights import SharedWeights, SharedWeightsHandle, share_tensors
from vla_rl.ipc.transfers import PlainTransfers, transfers_for
from vla_rl.learner.engine import Engine
from vla_rl.learner.learner import Learner
from vla_rl.policies.devices import peak_memory, use_device
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.mlp.network import build_mlp
from vla_rl.policies.mlp.section import MLPSection
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.policies.parameters import assign_parameters
from vla_rl.policies.token_policy import TokenOutput
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.rl.surrogates import Gipo
from vla_rl.studies.gpu_room import available_gpu_memory
from vla_rl.types import PolicyInputs, SegmentBatch, StateSpace
from vla_rl.workers.compiled import CompiledForward

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, needs_gpu])]
TASKS = ("pick up the red mug", "turn on the stove and put the moka pot on it", "open the drawer")
CHILD_S = 120.0

SECTION = OpenVLAOFTSection(name="openvla_oft", image_size=28, lora=LoraSection(rank=4))
CONTEXT = PolicyContext(seed=0, suite="libero_spatial", tasks=TASKS, num_images=1)


def build(*, device, empty=False, tasks=TASKS, **changes):
    """The tiny OpenVLA-OFT."""
    context = dataclasses.replace(CONTEXT, tasks=tasks)
    return build_openvla_oft(SECTION.model_copy(update=changes), context, device=device, empty=empty)


@pytest.fixture(autouse=True)
def own_device():
    """As every process of a run does first."""
    if HAS_GPU:
        use_device("cuda:0")


def inputs_for(policy, task_index, device):
    rng = np.random.default_rng(0)
    batch = len(task_index)
    frames = rng.integers(0, 256, (batch, *policy.observation_spec.frames_shape), dtype=np.uint8)
    state = rng.normal(0.0, 0.3, (batch, policy.observation_spec.state_dim)).astype(np.float32)
    index = torch.tensor(task_index)
    return PolicyInputs(torch.from_numpy(frames).to(device), torch.from_numpy(state).to(device), index.to(device))


# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task_index", [[0, 1, 2], [1, 1]], ids=["padded", "of one length"])
@torch.no_grad()
def test_float32_gives_what_the_cpu_gives(device, task_index):
    here, there = build(device="cpu"), build(device=device)
    pairs = ((here, "cpu"), (there, device))
    expected, actual = (policy.network(inputs_for(policy, task_index, at)) for policy, at in pairs)
    assert (actual.logits.cpu() - expected.logits).abs().max() < 1e-3
    assert (actual.values.cpu() - expected.values).abs().max() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_with_checkpointing_gives_finite_gradients_to_all_that_is_trained(device):
    policy = build(device=device, dtype="bfloat16", gradient_checkpointing=True).train()
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        output = policy.network(inputs_for(policy, [0, 1], device))
    (output.logits.square().mean() + output.values.square().mean()).backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert len(gradients) == len(trained) > 0
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_a_compiled_pass_follows_adapters_that_change_in_place():
    policy = build(device="cuda:0", tasks=TASKS[:2]).eval()
    compiled = CompiledForward(policy, max_batch=2)
    for change in (0.0, 0.05, 0.05):
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:
                parameter.add_(change)
        for task_index in ([0], [0, 1], [1, 1]):
            inputs = inputs_for(policy, task_index, "cuda:0")
            expected, actual = policy.network(inputs), TokenOutput(*compiled(inputs))
            torch.testing.assert_close(actual.logits, expected.logits, atol=1e-3, rtol=0)
            torch.testing.assert_close(actual.values, expected.values, atol=1e-3, rtol=0)


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_cuda_graphs_give_what_the_policy_gives_and_follow_new_weights():
    context = PolicyContext(seed=0, suite="toy", tasks=("reach",), states=StateSpace(3, 2, 2))
    policy = build_mlp(MLPSection(name="mlp", num_bins=5, hidden_dim=64), context, device="cuda:0").eval()
    compiled = CompiledForward(policy, max_batch=4)
    for call in range(6):
        rows = 1 + call % 4
        inputs = PolicyInputs(
            torch.zeros(rows, 0, 0, 0, 3, dtype=torch.uint8, device="cuda:0"), torch.randn(rows, 3, device="cuda:0"),
            torch.zeros(rows, dtype=torch.int64, device="cuda:0"),
        )  # fmt: skip
        policy.policy_head[1].weight.add_(0.1)
        torch.testing.assert_close(compiled(inputs)[0], policy.network(inputs).logits, atol=1e-4, rtol=1e-4)


# --- learning --------------------------------------------------------------------------------------------------------


def make_batch(policy):
    """Two segments of two decisions, one at an episode's end."""
    rng = np.random.default_rng(0)
    shape, tokens = (2, 2), policy.action_spec.num_tokens
    ends = np.array([[False, True], [False, False]])
    return SegmentBatch(
        frames=rng.integers(0, 256, (2, 3, *policy.observation_spec.frames_shape), dtype=np.uint8),
        state=rng.normal(0.0, 0.3, (2, 3, policy.observation_spec.state_dim)).astype(np.float32),
        task_index=np.array([0, 1]),
        episode=np.array([0, 1]),
        group=np.zeros(2, dtype=np.int64),
        tokens=rng.integers(0, 256, (*shape, tokens)).astype(np.int16),
        behavior_logprobs=np.full((*shape, tokens), -np.log(256), dtype=np.float32),
        behavior_logits=None,
        behavior_values=np.zeros(shape, dtype=np.float32),
        rewards=rng.normal(size=shape).astype(np.float32),
        executed=np.full(shape, 8, dtype=np.int16),
        terminated=ends,
        truncated=np.zeros(shape, dtype=np.bool_),
        policy_version=np.zeros(shape, dtype=np.int64),
        age=np.zeros(shape, dtype=np.int64),
        mask=np.ones(shape, dtype=np.bool_),
    )


def updated(device, *, before=lambda policy: None):
    """Metrics of one whole update and the action rows after it."""
    policy = build(device=device)
    before(policy)
    engine = Engine(
        policy,
        strategy="single",
        zero_stage=2,
        precision="fp32",
        device="cuda" if device.startswith("cuda") else "cpu",
        optimizer=OptimizerSection(policy_lr=1e-4, value_lr=1e-4, schedule="constant"),
    )
    learner = Learner(
        engine,
        surrogate=Gipo(name="gipo", sigma=0.5),
        credit=Gae(name="gae", discount=0.99, gae_lambda=0.95, time_limit="end"),
        loss=LossWeights(),
        batch_size=2,
        num_micro_batches=1,
        old_threshold=1,
    )
    return learner.update(make_batch(policy), policy_version=0), policy.action_rows.detach().cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_a_whole_update_is_that_of_the_cpu(device):
    (expected, rows), (actual, moved) = updated("cpu"), updated(device)
    assert actual.keys() == expected.keys()
    for name in ("learner/policy_loss", "learner/value_loss", "learner/grad_norm", "ratio/abs_log_p95"):
        assert actual[name] == pytest.approx(expected[name], rel=0.02, abs=1e-4), name
    assert (moved - rows).abs().mean() < 2e-5  # Adam's first step is 1e-4 whatever the gradient, but for its sign


@pytest.mark.parametrize("device", DEVICES)
def test_running_out_of_memory_halves_the_micro_batches_and_gives_the_same_update(device):
    asked = []

    def scarce(policy):
        """More memory than there is, as soon as more than three rows pass: of the GPU itself, where there is one."""
        network = policy.network

        def short(inputs):
            asked.append(len(inputs.state))
            if len(inputs.state) > 3 and device == "cpu":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            if len(inputs.state) > 3:
                torch.empty(2 * torch.cuda.get_device_properties(0).total_memory, dtype=torch.uint8, device=device)
            return network(inputs)

        policy.network = short

    (plain, rows), (cut, moved) = updated(device), updated(device, before=scarce)
    assert cut["learner/micro_batches"] == 2.0 and max(asked) > 3
    assert cut["learner/grad_norm"] == pytest.approx(plain["learner/grad_norm"], rel=0.02)
    assert (moved - rows).abs().mean() < 2e-5


# --- processes -------------------------------------------------------------------------------------------------------


def use_shared(handle: SharedWeightsHandle, device: str, way: str, tell) -> None:
    """A child that maps the weights, changes one, and ends as told."""
    use_device(device)
    tensors = SharedWeights.attach(handle).tensors()
    tensors["w"][0] = 7.0
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    tell.send("written")
    if way == "os._exit":
        os._exit(0)
    time.sleep(CHILD_S)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["os._exit", "SIGKILL"])
def test_shared_memory_is_given_back_however_its_user_ends(device, way):
    if device != "cpu":
        torch.zeros(1, device=device)
        gc.collect()
        before = torch.cuda.memory_allocated()
    shared = share_tensors({"w": torch.zeros(2**22, device=device)})
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=use_shared, args=(shared.handle, device, way, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        assert ours.poll(CHILD_S) and ours.recv() == "written"
        if way == "SIGKILL":
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        child.join(CHILD_S)
        assert child.exitcode is not None
    finally:
        if child.is_alive():
            child.kill()
            child.join(CHILD_S)
    assert shared.tensors()["w"][0] == 7.0
    shared.close()
    del shared
    gc.collect()
    if device != "cpu":
        assert torch.cuda.memory_allocated() == before


def adopt_while_computing(frozen: SharedWeightsHandle, handle: MailboxHandle, device: str, last: int, tell) -> None:
    """A child that maps the frozen weights, adopts every version it finds, and computes with it in between."""
    use_device(device)
    policy = build(device=device, empty=True)
    mapped = SharedWeights.attach(frozen).tensors()
    trainable = {
        name: torch.empty(p.shape, dtype=p.dtype, device=device)
        for name, p in policy.named_parameters()
        if name not in mapped
    }
    assign_parameters(policy, {**mapped, **trainable})
    policy.eval()
    deadline, version = time.monotonic() + CHILD_S, -1
    with WeightMailbox.attach(handle) as mailbox, torch.no_grad():
        while version < last and time.monotonic() < deadline:
            if mailbox.latest_version() > version:
                version = mailbox.read(trainable)
                uniform = trainable["action_rows"].unique().tolist()
                assert uniform == [float(version)], f"a mixture of versions: {uniform[:4]}"
            logits = policy.network(inputs_for(policy, [0, 1], device)).logits
    tell.send((version, logits.cpu().numpy()))


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_two_processes_publish_and_adopt_while_both_compute(device):
    last = 20
    policy = build(device=device).eval()
    parameters = dict(policy.named_parameters())
    shared = share_tensors({name: p.detach() for name, p in parameters.items() if not p.requires_grad})
    trainable = {name: p.detach() for name, p in parameters.items() if p.requires_grad}
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in trainable.items()}
    with shared, WeightMailbox.create(layout) as mailbox:
        child = context.Process(
            target=adopt_while_computing, args=(shared.handle, mailbox.handle, device, last, theirs), daemon=True
        )
        child.start()
        theirs.close()
        for version in range(last + 1):
            trainable["action_rows"].fill_(float(version))
            logits = policy.network(inputs_for(policy, [0, 1], device)).logits
            mailbox.publish(version, trainable)
        try:
            assert ours.poll(CHILD_S)
            adopted, theirs_logits = ours.recv()
        finally:
            child.join(CHILD_S)
            if child.is_alive():
                child.kill()
                child.join(CHILD_S)
    assert adopted == last and child.exitcode == 0
    np.testing.assert_allclose(theirs_logits, logits.cpu().numpy(), atol=1e-3 * np.abs(theirs_logits).max())


@pytest.mark.parametrize("device", DEVICES)
def test_a_snapshot_is_what_was_queued_before_it_and_nothing_that_is_queued_after(device):
    """Copies run beside the stream that computes: after what it was given before, and complete when publish returns."""
    shape = (2**20,)
    weights, into = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    slow = torch.randn(2048 if device != "cpu" else 64, 2048 if device != "cpu" else 64, device=device)
    with WeightMailbox.create({"w": (shape, torch.float32)}) as mailbox:
        for version in range(10):
            for _ in range(20):  # a GPU still computes when the copies are asked for
                slow = (slow @ slow).tanh()
            weights.fill_(float(version))
            mailbox.publish(version, {"w": weights})
            weights.fill_(-1.0)
            for _ in range(20):
                slow = (slow @ slow).tanh()
            into.fill_(-2.0)
            assert mailbox.read({"w": into}) == version
            assert into.unique().tolist() == [float(version)]
        buffers = [buffer["w"] for buffer in mailbox._buffers]
        assert all(buffer.is_pinned() for buffer in buffers) == (device != "cpu")
    assert not any(buffer.is_pinned() for buffer in buffers)


@pytest.mark.gpu
@needs_gpu
def test_memory_that_cannot_be_pinned_leaves_no_error_behind(caplog):
    found = transfers_for(torch.device("cuda:0"), 0, 4096)  # nothing is mapped there
    assert isinstance(found, PlainTransfers)
    assert len(caplog.records) == 1
    assert torch.ones(3, device="cuda:0").sum() == 3.0
    torch.cuda.synchronize()


@pytest.mark.gpu
@needs_gpu
def test_peaks_count_what_this_process_allocates():
    block = torch.zeros(2**26, dtype=torch.uint8, device="cuda:0")
    peak = peak_memory("cuda:0")
    assert peak is not None and peak.reserved >= peak.allocated >= block.numel()


@pytest.mark.parametrize("device", DEVICES)
def test_a_study_is_told_the_free_memory_of_the_card_and_nothing_where_there_is_none(device):
    free = available_gpu_memory()
    assert (free is None) == (not HAS_GPU)
    assert free is None or 0 < free < torch.cuda.get_device_properties(0).total_memory
