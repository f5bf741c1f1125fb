import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vla_rl.ipc.cuda_memory import SharingError
from vla_rl.ipc.mailbox import WeightMailbox
from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.shared_weights import NotShared
from vla_rl.ipc.slots import ExchangeSlots, slot_fields
from vla_rl.learner.engine import Engine
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.run.assembly import _frozen_handle, share_frozen, trainable_tensors
from vla_rl.workers.inference_worker import InferenceSettings, make_server

BUILD = functools.partial(
    build_openvla_oft,
    OpenVLAOFTSection(
        name="openvla_oft",
        image_size=56,
        lora=LoraSection(rank=2, alpha=2.0, targets=["q_proj", "v_proj"]),
    ),
    PolicyContext(seed=0, suite="libero_spatial", tasks=("pick up the bowl",), num_images=1),
)


@pytest.fixture(params=["shared", "own"])
def copies(request):
    """Whether the inference worker maps the learner's frozen tensors or loads its own."""
    return request.param


@pytest.fixture
def cell(tmp_path, copies):
    """A learner's policy, and the server that an inference worker would make beside it."""
    policy = BUILD(device="cpu")
    frozen = share_frozen(policy)
    Engine(
        policy,
        strategy="single",
        zero_stage=2,
        precision="fp32",
        device="cpu",
        optimizer=OptimizerSection(policy_lr=1e-3, value_lr=1e-3, schedule="constant"),
    )
    settings = InferenceSettings(
        build=BUILD,
        device="cpu",
        bf16=False,
        greedy=False,
        seed=0,
        max_batch=1,
        max_wait_s=0.0,
        log_path=tmp_path / "log",
        threads=1,
    )
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in trainable_tensors(policy).items()}
    fields = slot_fields(policy.observation_spec, policy.action_spec, 1, store_logits=False)
    with frozen, WeightMailbox.create(layout) as mailbox, SharedArrays.create("slots", fields) as slots:
        server = make_server(
            settings, mailbox, ExchangeSlots.view(slots), frozen.tensors() if copies == "shared" else None
        )
        yield policy, mailbox, server


@pytest.mark.parametrize("copies", ["shared"], indirect=True)
def test_the_inference_worker_maps_the_learners_frozen_tensors_and_copies_none(cell):
    policy, _, server = cell
    served = dict(server._policy.named_parameters())
    frozen = [name for name, parameter in policy.named_parameters() if not parameter.requires_grad]
    assert len(frozen) > 50
    for name in frozen:
        assert served[name].data_ptr() == policy.get_parameter(name).data_ptr(), name
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert served[name].data_ptr() != parameter.data_ptr(), name


@pytest.mark.parametrize("copies", ["own"], indirect=True)
def test_an_inference_worker_with_its_own_copy_has_the_same_tensors_elsewhere(cell):
    policy, _, server = cell
    served = dict(server._policy.named_parameters())
    for name, parameter in policy.named_parameters():
        assert served[name].data_ptr() != parameter.data_ptr(), name
        if not parameter.requires_grad:
            assert torch.equal(served[name], parameter), name


def test_an_adopted_version_gives_the_learners_trainable_tensors(cell):
    policy, mailbox, server = cell
    assert not server.adopt()
    mailbox.publish(3, trainable_tensors(policy))
    assert server.adopt()
    assert server.version == 3
    served = dict(server._policy.named_parameters())
    for name, tensor in trainable_tensors(policy).items():
        assert torch.equal(served[name], tensor), name
    assert not server.adopt()  # nothing newer


def plan_that(share_frozen, *, frozen_parameters=1):
    """As much of a plan as decides what the inference worker is told of the frozen weights."""
    return SimpleNamespace(
        setup=SimpleNamespace(runtime=SimpleNamespace(share_frozen=share_frozen)),
        policy=SimpleNamespace(frozen_parameters=frozen_parameters),
    )


class OfAGPU:
    """Shared weights on a GPU whose memory no process can share."""

    @property
    def handle(self):
        raise SharingError("processes cannot share GPU memory here: CUDA error: operation not supported")


def test_an_owner_that_cannot_share_says_so_to_the_inference_worker_or_refuses_where_it_must():
    memory: Any = SimpleNamespace(frozen=OfAGPU())
    told = _frozen_handle(plan_that("auto"), memory)
    assert told == NotShared(
        "processes cannot share GPU memory here: CUDA error: operation not supported", asked_for=False
    )
    with pytest.raises(ValueError, match=r"^runtime.share_frozen is true, but processes cannot share GPU memory here"):
        _frozen_handle(plan_that(True), memory)


def test_without_shared_memory_the_worker_is_told_whether_anything_is_frozen():
    memory: Any = SimpleNamespace(frozen=None)
    assert _frozen_handle(plan_that(False), memory) == NotShared("runtime.share_frozen is false", asked_for=True)
    assert _frozen_handle(plan_that(False, frozen_parameters=0), memory) is None
    assert _frozen_handle(plan_that("auto", frozen_parameters=0), memory) is None
