"""Decisions of one server: buckets, fixed batch sizes, and too little memory."""

import logging

import numpy as np
import pytest
import torch
from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter

from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.slots import ExchangeSlots, slot_fields
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.mlp.network import MLPPolicy, build_mlp
from vla_rl.policies.mlp.section import MLPSection
from vla_rl.types import StateSpace
from vla_rl.workers.compiled import CompiledForward, batch_sizes
from vla_rl.workers.inference_server import InferenceServer

NUM_SLOTS = 7


class FirstVersion:
    def latest_version(self):
        return 0

    def read(self, into):
        return 0


class Watched(MLPPolicy):
    """Remembers the batches it saw; runs out of memory where one has more than `limit` rows."""

    limit = 100
    forgotten = 0

    def forget_pass(self):
        self.forgotten += 1

    def bucket_of(self, task_index):
        return 10 * task_index

    def network(self, inputs):
        self.seen.append((len(inputs.state), inputs.buckets))
        if len(inputs.state) > self.limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().network(inputs)


def mlp():
    section = MLPSection(name="mlp", num_bins=5, hidden_dim=8)
    context = PolicyContext(seed=0, suite="toy", tasks=("reach",), states=StateSpace(3, 2, 2))
    return build_mlp(section, context, device="cpu").eval()


@pytest.fixture
def policy():
    policy = mlp()
    policy.__class__, policy.seen = Watched, []
    return policy


@pytest.fixture
def slots(policy):
    fields = slot_fields(policy.observation_spec, policy.action_spec, NUM_SLOTS, store_logits=True)
    with SharedArrays.create("slots", fields) as arrays:
        view = ExchangeSlots.view(arrays)
        view.state[:] = np.random.default_rng(0).normal(size=view.state.shape)
        view.task_index[:] = [0, 1, 0, 0, 2, 1, 0]
        yield view


def make_server(policy, slots, *, max_batch=NUM_SLOTS, compiled=None, greedy=True, seed: int | None = 0):
    server = InferenceServer(
        policy=policy, trainable={}, mailbox=FirstVersion(), slots=slots, device="cpu", greedy=greedy,
        seed=seed, max_batch=max_batch, compiled=compiled,
    )  # fmt: skip
    assert server.adopt()
    return server


def answers(slots):
    return [array.copy() for array in (slots.tokens, slots.logprobs, slots.value, slots.actions, slots.logits)]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_batch_says_which_buckets_it_holds(policy, slots):
    server = make_server(policy, slots)
    server.serve([0, 2, 6])
    server.serve(range(NUM_SLOTS))
    assert policy.seen == [(3, (0,)), (7, (0, 10, 20))]


def test_more_slots_than_a_batch_takes_are_served_in_several(policy, slots):
    make_server(policy, slots).serve(range(NUM_SLOTS))
    at_once = answers(slots)
    slots.value[:] = 0.0
    server = make_server(policy, slots, max_batch=3)
    server.serve(range(NUM_SLOTS))
    assert [rows for rows, _ in policy.seen] == [7, 3, 3, 1]
    assert (server.batches, server.decisions) == (1, 7)
    assert_same(at_once, answers(slots))


def test_out_of_memory_halves_the_batches_from_then_on_and_the_decisions_are_the_same(policy, slots, caplog):
    make_server(policy, slots).serve(range(NUM_SLOTS))
    expected = answers(slots)
    slots.value[:] = 0.0
    policy.seen, policy.limit = [], 2
    server = make_server(policy, slots)
    with caplog.at_level(logging.WARNING):
        server.serve(range(NUM_SLOTS))
        server.serve([0, 1, 2])
    assert [rows for rows, _ in policy.seen] == [7, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [record.args for record in caplog.records] == [(3,), (1,)]
    assert policy.forgotten == 2  # modules release what a pass that failed left in them
    assert_same(expected, answers(slots))


def test_a_decision_with_a_seed_of_its_own_does_not_depend_on_those_beside_or_before_it(policy, slots):
    slots.sampling_seed[:] = [9, 2**31, 0, 4, 4, 5, 6]
    make_server(policy, slots, greedy=False, seed=None).serve(range(NUM_SLOTS))
    together = slots.tokens.copy()
    slots.tokens[:] = 0
    server = make_server(policy, slots, greedy=False, seed=None, max_batch=2)
    for chosen in ([6, 1, 3], [0], [4, 2, 5]):
        server.serve(chosen)
    assert slots.tokens.tolist() == together.tolist()
    slots.sampling_seed[0] = 10
    server.serve([0])
    assert slots.tokens[0].tolist() != together[0].tolist()


def test_out_of_memory_with_one_decision_ends_the_worker_with_advice(policy, slots):
    policy.limit = 0
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught:
        make_server(policy, slots).serve([0])
    assert any("learner.micro_batch" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, (1,)), (2, (1, 2)), (20, (3, 5, 10, 20)), (32, (4, 8, 16, 32)), (7, (1, 2, 4, 7))]
)
def test_sizes_are_halves_of_the_largest_and_at_most_four(max_batch, sizes):
    assert batch_sizes(max_batch) == sizes


@pytest.mark.slow
def test_a_compiled_server_decides_alike_at_fixed_sizes_and_follows_new_weights(slots):
    plain = mlp()
    seen = []

    def watch(graph, example_inputs):
        seen.append(next(each.shape[0] for each in example_inputs if each.dim() == 2 and each.shape[1] == 3))
        return graph.forward

    compiled = CompiledForward(plain, max_batch=NUM_SLOTS, backend=watch)  # type: ignore[arg-type]
    server = make_server(plain, slots, compiled=compiled)
    server.warm_up()
    assert seen == [1, 2, 4, 7]
    for change in (0.0, 0.5):
        with torch.no_grad():
            plain.policy_head[1].weight.add_(change)
        for chosen in ([0, 1, 2], [5], range(NUM_SLOTS)):
            make_server(plain, slots).serve(chosen)
            expected = answers(slots)
            slots.value[chosen] = 0.0
            server.serve(chosen)
            assert_same(expected, answers(slots))
    assert len(seen) == 4  # nothing was compiled again


def test_why_torch_leaves_cuda_graphs_out_is_logged_once(policy, slots, caplog):
    class SkippingPass:
        """As a compiled pass: torch says at every size why there is no graph."""

        sizes = (1, 2)

        def __call__(self, inputs):
            log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to cpu device (lift)")
            return policy.network(inputs)

    server = make_server(policy, slots, compiled=SkippingPass())
    with caplog.at_level(logging.WARNING, logger="vla_rl"):
        server.warm_up()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("vla_rl")]
    assert told == [
        "rollout.compile: computing without CUDA graphs, at least in part: skipping cudagraphs due to cpu device (lift)"
    ]
